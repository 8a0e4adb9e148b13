"""Small convolutional network for small images."""

from jaxtyping import Float
from torch import Tensor, nn

from flatbayes.models.building import check_arguments, check_image_shape, check_sizes, init_kaiming_


class ConvNet(nn.Module):
    """Two stages of two 3x3 convolutions each, for digits of 8 x 8 up to pictures of 32 x 32 pixels.

    Convolutions are followed by BatchNorm and ReLU, stages by pooling and dropout.

    Args:
        input_shape: Channels, height and width of an image.
        num_classes: Size of the output.
        width: Channels of the first stage; the second has twice as many.
        dropout: Dropout rate after each stage.

    Raises:
        ValueError: The inputs are not images, a size is not positive, or the dropout rate is outside [0, 1).

    Examples:
        >>> model = ConvNet(input_shape=(1, 8, 8), num_classes=10, width=4)
        >>> model(torch.randn(5, 1, 8, 8)).shape
        torch.Size([5, 10])
        >>> fit(ConvNet, data, MAP(), config=config).predict(inputs[:5]).mean.shape
        torch.Size([5, 10])
    """

    def __init__(self, input_shape: tuple[int, ...], num_classes: int, width: int = 16, dropout: float = 0.0) -> None:
        super().__init__()
        check_arguments(input_shape, num_classes, dropout)
        check_sizes("width", [width])
        channels = check_image_shape(input_shape, "ConvNet")
        self.features = nn.Sequential(
            *conv_norm_relu(channels, width),
            *conv_norm_relu(width, width),
            nn.MaxPool2d(2, ceil_mode=True),
            nn.Dropout(dropout),
            *conv_norm_relu(width, 2 * width),
            *conv_norm_relu(2 * width, 2 * width),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(dropout),
        )
        self.classifier = nn.Linear(2 * width, num_classes)
        init_kaiming_(self)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Logits."""
        logits: Tensor = self.classifier(self.features(x))
        return logits


def conv_norm_relu(in_channels: int, out_channels: int) -> list[nn.Module]:
    """A 3x3 convolution that keeps the image's size, BatchNorm and ReLU."""
    return [nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False), nn.BatchNorm2d(out_channels), nn.ReLU()]
