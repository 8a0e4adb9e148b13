"""Residual network, ResNet (He et al., CVPR 2016), with a stem for small or for large images."""

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

BASIC_BLOCKS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
"""Number of blocks of two convolutions in each of the four stages, by depth."""
BOTTLENECK_BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
"""Number of bottleneck blocks in each of the four stages, by depth."""


class ResNet(nn.Module):
    """ResNet-depth: four stages of 64, 128, 256 and 512 channels, four times as many with bottlenecks.

    Parameters are named as torchvision names them, so that a state dict of its network of this depth loads into one
    with the large stem.

    Args:
        input_shape: Channels, height and width of an image.
        num_classes: Size of the output.
        depth: Number of layers: 10, 18 or 34, with blocks of two 3x3 convolutions; 50, 101 or 152, with bottlenecks.
        stem: `small` is a 3x3 convolution, for images such as CIFAR's; `large` a 7x7 convolution and pooling, which
            make ImageNet's four times smaller on each side.
        width: Channels of the first stage.
        dropout: Dropout rate before the last convolution of each block.

    Raises:
        ValueError: The inputs are not images, there is no network of this depth or stem, the width is not positive,
            or the dropout rate is outside [0, 1).

    Examples:
        >>> model = ResNet((3, 32, 32), num_classes=10, depth=10, width=8)
        >>> model(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_classes: int,
        depth: int = 18,
        stem: Stem = "small",
        width: int = 64,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_arguments(input_shape, num_classes, dropout)
        check_sizes("width", [width])
        channels = check_image_shape(input_shape, "ResNet")
        check_depth("ResNet", depth, [*BASIC_BLOCKS, *BOTTLENECK_BLOCKS])
        check_choice("stem", stem, Stem)
        kernel, step = (7, 2) if stem == "large" else (3, 1)
        self.conv1 = nn.Conv2d(channels, width, kernel, step, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, padding=1) if stem == "large" else nn.Identity()
        basic = depth in BASIC_BLOCKS
        block_class: BlockClass = BasicBlock if basic else BottleneckBlock
        in_channels, stages = width, []
        for i, num_blocks in enumerate(BASIC_BLOCKS[depth] if basic else BOTTLENECK_BLOCKS[depth]):
            inner_channels, stride = width * 2**i, 1 if i == 0 else 2
            stages.append(make_stage(block_class, in_channels, inner_channels, num_blocks, stride, dropout))
            in_channels = inner_channels * block_class.expansion
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(in_channels, num_classes)
        init_kaiming_(self)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Logits."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(self.avgpool(x))
        return logits


class BasicBlock(nn.Module):
    """relu(x + F(x)), F being two 3x3 convolutions."""

    expansion = 1

    def __init__(self, in_channels: int, inner_channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, inner_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner_channels)
        self.conv2 = nn.Conv2d(inner_channels, inner_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner_channels)
        self.relu, self.dropout = nn.ReLU(), nn.Dropout(dropout)
        self.downsample = make_shortcut(in_channels, inner_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """The next feature map."""
        out = self.dropout(self.relu(self.bn1(self.conv1(x))))
        activated: Tensor = self.relu(self.downsample(x) + self.bn2(self.conv2(out)))
        return activated


class BottleneckBlock(nn.Module):
    """relu(x + F(x)), F being a 1x1, a 3x3 and a 1x1 convolution, the second with the stride."""

    expansion = 4

    def __init__(self, in_channels: int, inner_channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        out = inner_channels * self.expansion
        self.conv1 = nn.Conv2d(in_channels, inner_channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner_channels)
        self.conv2 = nn.Conv2d(inner_channels, inner_channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner_channels)
        self.conv3 = nn.Conv2d(inner_channels, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.relu, self.dropout = nn.ReLU(), nn.Dropout(dropout)
        self.downsample = make_shortcut(in_channels, out, stride)

    def forward(self, x: Tensor) -> Tensor:
        """The next feature map."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.dropout(self.relu(self.bn2(self.conv2(out))))
        activated: Tensor = self.relu(self.downsample(x) + self.bn3(self.conv3(out)))
        return activated


BlockClass = type[BasicBlock] | type[BottleneckBlock]


def make_stage(
    block_class: BlockClass,
    in_channels: int,
    inner_channels: int,
    num_blocks: int,
    stride: int,
    dropout: float,
) -> nn.Sequential:
    """A sequence of blocks, the first of which changes the number of channels and the size."""
    first = block_class(in_channels, inner_channels, stride, dropout)
    out_channels = inner_channels * block_class.expansion
    others = (block_class(out_channels, inner_channels, 1, dropout) for _ in range(num_blocks - 1))
    return nn.Sequential(first, *others)


def make_shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """The identity, or a 1x1 convolution and BatchNorm if the number of channels or the size changes."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))
