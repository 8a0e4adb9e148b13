"""What the two residual networks share: the pre-activation block, and a network of three stages of it."""

from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from flatbayes.models.initialization import init_kaiming_

BlockFactory = Callable[[int, int, int], nn.Module]
"""Builds a block from its input channels, output channels and stride."""


class PreActivationBlock(nn.Module):
    """x + F(x) with BatchNorm and ReLU before each convolution of F (He et al., ECCV 2016, Figure 4e).

    Where channels or size change, a 1x1 convolution of the first activation takes the place of x. Dropout
    comes before the last convolution, as in a wide ResNet.

    Args:
        channels: Of the input, and of the output of each convolution: one more than convolutions.
        kernel_sizes: Size of each convolution; the first of size 3 has the stride.
        stride: Step of the block in pixels.
        dropout: Probability of dropping a unit.
    """

    def __init__(self, channels: tuple[int, ...], kernel_sizes: tuple[int, ...], stride: int, dropout: float) -> None:
        super().__init__()
        strides = [stride if i == kernel_sizes.index(3) else 1 for i in range(len(kernel_sizes))]
        convs = [
            nn.Conv2d(before, after, kernel, step, padding=kernel // 2, bias=False)
            for (before, after), kernel, step in zip(pairwise(channels), kernel_sizes, strides, strict=True)
        ]
        self.activation = norm_relu(channels[0])
        branch: list[nn.Module] = []
        for conv in convs[:-1]:
            branch += [conv, *norm_relu(conv.out_channels)]
        self.branch = nn.Sequential(*branch, nn.Dropout(dropout), convs[-1])
        self.projection = (
            None
            if stride == 1 and channels[0] == channels[-1]
            else nn.Conv2d(channels[0], channels[-1], 1, stride, bias=False)
        )

    def forward(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch out_channels out_height out_width"]:
        """The next feature map."""
        activated = self.activation(x)
        shortcut = x if self.projection is None else self.projection(activated)
        out: Tensor = shortcut + self.branch(activated)
        return out


def make_residual_network(
    channels: int, num_classes: int, widths: tuple[int, int, int], num_blocks: int, make_block: BlockFactory
) -> nn.Sequential:
    """A stem of 16 channels, three stages (the second and third halve the image), and a linear classifier.

    Args:
        channels: Of the images.
        num_classes: Size of the output.
        widths: Output channels of each stage.
        num_blocks: Number of blocks of each stage.
        make_block: Builds one of them.
    """
    stem = 16
    parts: dict[str, nn.Module] = {"stem": nn.Conv2d(channels, stem, 3, padding=1, bias=False)}
    for i, (before, width) in enumerate(pairwise((stem, *widths))):
        first = make_block(before, width, 1 if i == 0 else 2)
        others = [make_block(width, width, 1) for _ in range(num_blocks - 1)]
        parts[f"stage{i + 1}"] = nn.Sequential(first, *others)
    parts["activation"] = norm_relu(widths[-1])
    parts["pool"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    parts["classifier"] = nn.Linear(widths[-1], num_classes)
    network = nn.Sequential(OrderedDict(parts))
    init_kaiming_(network)
    return network


def norm_relu(channels: int) -> nn.Sequential:
    """BatchNorm, then ReLU."""
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())
