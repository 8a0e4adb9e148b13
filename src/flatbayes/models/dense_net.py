"""Densely connected network, DenseNet (Huang et al., CVPR 2017), with a stem for small or for large images."""

from collections import OrderedDict

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flatbayes.core.names import check_choice
from flatbayes.models.building import (
    Stem,
    check_arguments,
    check_depth,
    check_image_shape,
    check_sizes,
    init_kaiming_,
)

LAYERS_PER_BLOCK = {121: (6, 12, 24, 16), 161: (6, 12, 36, 24), 169: (6, 12, 32, 32), 201: (6, 12, 48, 32)}
"""Number of layers of each of the four blocks, by depth."""
GROWTH_BY_DEPTH = {161: 48}
DEFAULT_GROWTH = 32
"""Channels that a layer adds, for all other depths."""
BOTTLENECK_FACTOR = 4
"""Channels between the two convolutions of a layer, as a multiple of the growth."""


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
        growth: Channels that each layer adds; None for the paper's, 48 for depth 161 and 32 otherwise.
        dropout: Dropout rate of the channels that a layer adds.

    Raises:
        ValueError: The inputs are not images, there is no network of this depth or stem, the growth is not positive,
            or the dropout rate is outside [0, 1).

    Examples:
        >>> model = DenseNet((3, 32, 32), num_classes=10, depth=121, growth=4)
        >>> model(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 10])
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
        check_choice("stem", stem, Stem)
        growth = GROWTH_BY_DEPTH.get(depth, DEFAULT_GROWTH) if growth is None else growth
        check_sizes("growth", [growth])
        width = 2 * growth
        features: dict[str, nn.Module] = {}
        if stem == "large":
            features["conv0"] = nn.Conv2d(channels, width, 7, 2, padding=3, bias=False)
            features |= {"norm0": nn.BatchNorm2d(width), "relu0": nn.ReLU(), "pool0": nn.MaxPool2d(3, 2, padding=1)}
        else:
            features["conv0"] = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        for i, num_layers in enumerate(LAYERS_PER_BLOCK[depth], start=1):
            if i > 1:
                features[f"transition{i - 1}"] = make_transition(width, width // 2)
                width //= 2
            layers = {
                f"denselayer{k + 1}": DenseLayer(width + k * growth, growth, dropout) for k in range(num_layers)
            }
            features[f"denseblock{i}"] = nn.Sequential(OrderedDict(layers))
            width += num_layers * growth
        features["norm5"] = nn.BatchNorm2d(width)
        self.features = nn.Sequential(OrderedDict(features))
        self.pool = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(width, num_classes)
        init_kaiming_(self)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Logits."""
        logits: Tensor = self.classifier(self.pool(self.features(x)))
        return logits


class DenseLayer(nn.Module):
    """Concatenation of x and F(x), where F is a 1x1 and a 3x3 convolution, each after BatchNorm and ReLU.

    F(x) has `growth` channels.
    """

    def __init__(self, in_channels: int, growth: int, dropout: float) -> None:
        super().__init__()
        inner = BOTTLENECK_FACTOR * growth
        self.norm1, self.conv1 = nn.BatchNorm2d(in_channels), nn.Conv2d(in_channels, inner, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(inner), nn.Conv2d(inner, growth, 3, padding=1, bias=False)
        self.relu, self.dropout = nn.ReLU(), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """The input with further channels."""
        inner = self.conv1(self.relu(self.norm1(x)))
        return torch.cat([x, self.dropout(self.conv2(self.relu(self.norm2(inner))))], dim=1)


def make_transition(in_channels: int, out_channels: int) -> nn.Sequential:
    """Transition between two blocks, which reduces the channels and halves the size."""
    layers: dict[str, nn.Module] = {
        "norm": nn.BatchNorm2d(in_channels),
        "relu": nn.ReLU(),
        "conv": nn.Conv2d(in_channels, out_channels, 1, bias=False),
        "pool": nn.AvgPool2d(2, ceil_mode=True),  # ceil_mode keeps a single pixel
    }
    return nn.Sequential(OrderedDict(layers))
