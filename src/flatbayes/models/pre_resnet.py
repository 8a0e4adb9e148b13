"""The pre-activation ResNet (He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016)."""

from jaxtyping import Float
from torch import Tensor, nn

from flatbayes.models.checks import check_arguments, check_depth, check_image_shape
from flatbayes.models.residual import PreActivationBlock, make_residual_network

BASIC_DEPTHS = range(8, 44, 6)
BOTTLENECK_DEPTHS = range(47, 10_000, 9)


class PreResNet(nn.Module):
    """The CIFAR variant: three stages of 16, 32 and 64 channels, four times as many with bottlenecks.

    Args:
        input_shape: Channels, height and width of an image of at least 8 x 8 pixels.
        num_classes: Size of the output.
        depth: Number of layers: 6n + 2 below 44, with blocks of two 3x3 convolutions; 9n + 2 from there on,
            with bottlenecks. 20, 110 and 164 are common.
        dropout: Probability of dropping a unit before the last convolution of each block.

    Raises:
        ValueError: The inputs are not images, there is no network of this depth, or the dropout rate is
            outside [0, 1).
    """

    def __init__(self, input_shape: tuple[int, ...], num_classes: int, depth: int = 20, dropout: float = 0.0) -> None:
        super().__init__()
        check_arguments(input_shape, num_classes, dropout)
        channels = check_image_shape(input_shape, "PreResNet")
        check_depth("PreResNet", depth, [*BASIC_DEPTHS, *BOTTLENECK_DEPTHS])

        def make_basic_block(in_channels: int, out_channels: int, stride: int) -> nn.Module:
            return PreActivationBlock((in_channels, out_channels, out_channels), (3, 3), stride, dropout)

        def make_bottleneck_block(in_channels: int, out_channels: int, stride: int) -> nn.Module:
            return PreActivationBlock(
                (in_channels, out_channels // 4, out_channels // 4, out_channels), (1, 3, 1), stride, dropout
            )

        if depth in BASIC_DEPTHS:
            widths, blocks, block = (16, 32, 64), (depth - 2) // 6, make_basic_block
        else:
            widths, blocks, block = (64, 128, 256), (depth - 2) // 9, make_bottleneck_block
        self.network = make_residual_network(channels, num_classes, widths, blocks, block)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Logits."""
        logits: Tensor = self.network(x)
        return logits
