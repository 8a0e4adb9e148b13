"""The wide residual network (Zagoruyko & Komodakis, BMVC 2016)."""

from jaxtyping import Float
from torch import Tensor, nn

from flatbayes.models.checks import check_arguments, check_depth, check_image, check_sizes
from flatbayes.models.residual import PreActivationBlock, residual_network

DEPTHS = range(10, 10_000, 6)


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
        channels = check_image(input_shape, "WideResNet")
        check_depth("WideResNet", depth, DEPTHS)

        def block(before: int, after: int, stride: int) -> nn.Module:
            return PreActivationBlock((before, after, after), (3, 3), stride, dropout)

        widths = (16 * width, 32 * width, 64 * width)
        self.network = residual_network(channels, num_classes, widths, (depth - 4) // 6, block)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Logits."""
        logits: Tensor = self.network(x)
        return logits
