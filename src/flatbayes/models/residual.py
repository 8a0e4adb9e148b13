"""Residual networks with pre-activation blocks for small images: PreResNet and WideResNet.

PreResNet is the CIFAR variant of He et al. ("Identity Mappings in Deep Residual Networks", ECCV 2016), WideResNet the
network of Zagoruyko and Komodakis (BMVC 2016). Both consist of three stages of the same block.
"""

from collections import OrderedDict
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from flatbayes.models.building import (
    check_arguments,
    check_depth,
    check_image_shape,
    check_sizes,
    init_kaiming_,
    norm_relu,
)

BASIC_DEPTHS = range(8, 44, 6)
"""Depths of a PreResNet with blocks of two convolutions."""
BOTTLENECK_DEPTHS = range(47, 10_000, 9)
"""Depths of a PreResNet with bottleneck blocks."""
WIDE_DEPTHS = range(10, 10_000, 6)
"""Depths of a WideResNet."""


class PreResNet(nn.Module):
    """Pre-activation ResNet: three stages of 16, 32 and 64 channels, four times as many with bottlenecks.

    Args:
        input_shape: Channels, height and width of an image of at least 8 x 8 pixels.
        num_classes: Size of the output.
        depth: Number of layers: 6n + 2 below 44, with blocks of two 3x3 convolutions; 9n + 2 from there on,
            with bottlenecks. 20, 110 and 164 are common.
        dropout: Dropout rate before the last convolution of each block.

    Raises:
        ValueError: The inputs are not images, there is no network of this depth, or the dropout rate is
            outside [0, 1).

    Examples:
        >>> model = PreResNet((3, 32, 32), num_classes=10, depth=8)
        >>> model(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(self, input_shape: tuple[int, ...], num_classes: int, depth: int = 20, dropout: float = 0.0) -> None:
        super().__init__()
        check_arguments(input_shape, num_classes, dropout)
        channels = check_image_shape(input_shape, "PreResNet")
        check_depth("PreResNet", depth, [*BASIC_DEPTHS, *BOTTLENECK_DEPTHS])
        is_bottleneck = depth in BOTTLENECK_DEPTHS
        widths, layers_per_block = ((64, 128, 256), 3) if is_bottleneck else ((16, 32, 64), 2)
        self.network = make_residual_network(
            channels, num_classes, widths, (depth - 2) // (3 * layers_per_block), dropout, is_bottleneck=is_bottleneck
        )

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Logits."""
        logits: Tensor = self.network(x)
        return logits


class WideResNet(nn.Module):
    """WRN-depth-width: pre-activation blocks of two 3x3 convolutions with dropout between them.

    Args:
        input_shape: Channels, height and width of an image of at least 8 x 8 pixels.
        num_classes: Size of the output.
        depth: Number of layers, 6n + 4.
        width: Factor on the channels of the three stages, 16, 32 and 64.
        dropout: Dropout rate between the two convolutions of a block; the paper uses 0.3.

    Raises:
        ValueError: The inputs are not images, there is no network of this depth, the width is not positive,
            or the dropout rate is outside [0, 1).

    Examples:
        >>> model = WideResNet((3, 32, 32), num_classes=10, depth=10, width=1)
        >>> model(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_classes: int,
        depth: int = 28,
        width: int = 10,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_arguments(input_shape, num_classes, dropout)
        check_sizes("width", [width])
        channels = check_image_shape(input_shape, "WideResNet")
        check_depth("WideResNet", depth, WIDE_DEPTHS)
        widths = (16 * width, 32 * width, 64 * width)
        self.network = make_residual_network(channels, num_classes, widths, (depth - 4) // 6, dropout)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Logits."""
        logits: Tensor = self.network(x)
        return logits


class PreActivationBlock(nn.Module):
    """x + F(x) with BatchNorm and ReLU before each convolution of F (He et al., ECCV 2016, Figure 4e).

    If the number of channels or the size changes, x is replaced by a 1x1 convolution of the first activation. Dropout
    comes before the last convolution, as in a wide ResNet.

    The first convolution of size 3 has the stride. The first of the channels are those of the input.
    """

    def __init__(self, channels: tuple[int, ...], kernel_sizes: tuple[int, ...], stride: int, dropout: float) -> None:
        super().__init__()
        strides = [stride if i == kernel_sizes.index(3) else 1 for i in range(len(kernel_sizes))]
        convs = [
            nn.Conv2d(in_channels, out_channels, kernel, step, padding=kernel // 2, bias=False)
            for (in_channels, out_channels), kernel, step in zip(
                pairwise(channels), kernel_sizes, strides, strict=True
            )
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
    channels: int,
    num_classes: int,
    widths: tuple[int, int, int],
    num_blocks: int,
    dropout: float,
    *,
    is_bottleneck: bool = False,
) -> nn.Sequential:
    """A stem of 16 channels, three stages (the second and third halve the image), and a linear classifier.

    With `is_bottleneck` blocks are 1x1, 3x3 and 1x1 convolutions, the inner ones with a quarter of the channels,
    instead of two 3x3 convolutions.
    """

    def make_block(in_channels: int, out_channels: int, stride: int) -> PreActivationBlock:
        if is_bottleneck:
            inner = out_channels // 4
            return PreActivationBlock((in_channels, inner, inner, out_channels), (1, 3, 1), stride, dropout)
        return PreActivationBlock((in_channels, out_channels, out_channels), (3, 3), stride, dropout)

    stem_channels = 16
    layers: dict[str, nn.Module] = {"stem": nn.Conv2d(channels, stem_channels, 3, padding=1, bias=False)}
    for i, (in_channels, out_channels) in enumerate(pairwise((stem_channels, *widths))):
        first = make_block(in_channels, out_channels, 1 if i == 0 else 2)
        others = [make_block(out_channels, out_channels, 1) for _ in range(num_blocks - 1)]
        layers[f"stage{i + 1}"] = nn.Sequential(first, *others)
    layers["activation"] = norm_relu(widths[-1])
    layers["pool"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    layers["classifier"] = nn.Linear(widths[-1], num_classes)
    network = nn.Sequential(OrderedDict(layers))
    init_kaiming_(network)
    return network
