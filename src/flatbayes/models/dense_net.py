"""The densely connected network (Huang et al., CVPR 2017), with a stem for small images or the original one."""

from collections import OrderedDict

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flatbayes.models.checks import check_arguments, check_depth, check_image_shape, check_sizes
from flatbayes.models.initialization import init_kaiming_
from flatbayes.models.resnet import Stem, check_stem

LAYERS_PER_BLOCK = {121: (6, 12, 24, 16), 161: (6, 12, 36, 24), 169: (6, 12, 32, 32), 201: (6, 12, 48, 32)}
"""Layers of each of the four blocks, by depth."""
GROWTH_BY_DEPTH = {161: 48}
DEFAULT_GROWTH = 32
BOTTLENECK_FACTOR = 4


class DenseNet(nn.Module):
    """DenseNet-depth with bottlenecks and compression: each layer sees the outputs of all before it in its block.

    Parameters are named as torchvision names them, so that a state dict of its network of this depth loads into one
    with the large stem.

    Args:
        input_shape: Channels, height and width of an image.
        num_classes: Size of the output.
        depth: Number of layers: 121, 161, 169 or 201.
        stem: `small` is a 3x3 convolution, for images such as CIFAR's; `large` a 7x7 convolution and pooling, which
            make ImageNet's four times smaller on each side.
        growth: Channels that each layer adds; None takes those of the paper, 48 for 161 layers and else 32.
        dropout: Probability of dropping a unit of what a layer adds.

    Raises:
        ValueError: The inputs are not images, there is no network of this depth or stem, the growth is not positive,
            or the dropout rate is outside [0, 1).
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_classes: int,
        depth: int = 121,
        stem: Stem = "small",
        growth: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_arguments(input_shape, num_classes, dropout)
        channels = check_image_shape(input_shape, "DenseNet")
        check_depth("DenseNet", depth, list(LAYERS_PER_BLOCK))
        check_stem(stem)
        growth = GROWTH_BY_DEPTH.get(depth, DEFAULT_GROWTH) if growth is None else growth
        check_sizes("growth", [growth])
        width = 2 * growth
        parts: dict[str, nn.Module] = {}
        if stem == "large":
            parts["conv0"] = nn.Conv2d(channels, width, 7, 2, padding=3, bias=False)
            parts |= {"norm0": nn.BatchNorm2d(width), "relu0": nn.ReLU(), "pool0": nn.MaxPool2d(3, 2, padding=1)}
        else:
            parts["conv0"] = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        for i, number in enumerate(LAYERS_PER_BLOCK[depth], start=1):
            if i > 1:
                parts[f"transition{i - 1}"] = make_transition(width, width // 2)
                width //= 2
            layers = {f"denselayer{k + 1}": DenseLayer(width + k * growth, growth, dropout) for k in range(number)}
            parts[f"denseblock{i}"] = nn.Sequential(OrderedDict(layers))
            width += number * growth
        parts["norm5"] = nn.BatchNorm2d(width)
        self.features = nn.Sequential(OrderedDict(parts))
        self.pool = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(width, num_classes)
        init_kaiming_(self)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Logits."""
        logits: Tensor = self.classifier(self.pool(self.features(x)))
        return logits


class DenseLayer(nn.Module):
    """x, and what a 1x1 and a 3x3 convolution, each after BatchNorm and ReLU, make of it.

    Args:
        in_channels: Channels of the input.
        growth: Channels that are added.
        dropout: Probability of dropping a unit of these.
    """

    def __init__(self, in_channels: int, growth: int, dropout: float) -> None:
        super().__init__()
        inner = BOTTLENECK_FACTOR * growth
        self.norm1, self.conv1 = nn.BatchNorm2d(in_channels), nn.Conv2d(in_channels, inner, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(inner), nn.Conv2d(inner, growth, 3, padding=1, bias=False)
        self.relu, self.dropout = nn.ReLU(), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """More channels."""
        inner = self.conv1(self.relu(self.norm1(x)))
        return torch.cat([x, self.dropout(self.conv2(self.relu(self.norm2(inner))))], dim=1)


def make_transition(in_channels: int, out_channels: int) -> nn.Sequential:
    """Between two blocks: fewer channels, and half the size."""
    parts: dict[str, nn.Module] = {
        "norm": nn.BatchNorm2d(in_channels),
        "relu": nn.ReLU(),
        "conv": nn.Conv2d(in_channels, out_channels, 1, bias=False),
        "pool": nn.AvgPool2d(2, ceil_mode=True),  # a single pixel stays one
    }
    return nn.Sequential(OrderedDict(parts))
