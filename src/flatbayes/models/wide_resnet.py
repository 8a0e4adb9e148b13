"""The wide residual network (Zagoruyko & Komodakis, BMVC 2016)."""

from jaxtyping import Float
from torch import Tensor, nn

from flatbayes.models.checks import check_arguments, check_depth, check_image_shape, check_sizes
from flatbayes.models.residual import PreActivationBlock, make_residual_network

VALID_DEPTHS = range(10, 10_000, 6)


class WideResNet(nn.Module):
    """WRN-depth-width: pre-activation blocks of two 3x3 convolutions with dropout between them.

    Args:
        input_shape: Channels, height and width of an image of at least 8 x 8 pixels.
        num_classes: Size of the output.
        depth: Number of layers, 6n + 4.
        width: Factor on the channels of the three stages, 16, 32 and 64.
        dropout: Probability of dropping a unit between the two convolutions of a block; the paper takes 0.3.

    Raises:
        ValueError: The inputs are not images, there is no network of this depth, the width is not positive,
            or the dropout rate is outside [0, 1).
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
        check_depth("WideResNet", depth, VALID_DEPTHS)

        def make_block(in_channels: int, out_channels: int, stride: int) -> nn.Module:
            return PreActivationBlock((in_channels, out_channels, out_channels), (3, 3), stride, dropout)

        widths = (16 * width, 32 * width, 64 * width)
        self.network = make_residual_network(channels, num_classes, widths, (depth - 4) // 6, make_block)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Logits."""
        logits: Tensor = self.network(x)
        return logits
