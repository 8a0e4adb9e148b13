"""VGG network (Simonyan & Zisserman, ICLR 2015) for small images, with or without BatchNorm."""

from jaxtyping import Float
from torch import Tensor, nn

from flatbayes.models.building import (
    check_arguments,
    check_depth,
    check_hidden,
    check_image_shape,
    check_sizes,
    init_kaiming_,
)

WIDTH_FACTORS = (1, 2, 4, 8, 8)
"""Channels of each stage, as multiples of those of the first stage."""
CONVS_PER_STAGE = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""Number of 3x3 convolutions of each of the five stages, by depth."""


class VGG(nn.Module):
    """Five stages of 3x3 convolutions with ReLU, each halving the image, then fully connected layers.

    Dropout follows every ReLU. Without BatchNorm the learning rate must be lower, 0.05 or less.

    Args:
        input_shape: Channels, height and width of an image.
        num_classes: Size of the output.
        depth: Number of layers with weights in the original, which has three linear layers: 11, 13, 16 or 19.
        batch_norm: Add BatchNorm after each convolution, which then has no bias.
        hidden: Units of the fully connected layers before the last one; the original for small images has two of
            512.
        width: Channels of the first stage; the others have two, four and eight times as many.
        dropout: Dropout rate.

    Raises:
        ValueError: The inputs are not images, there is no network of this depth, a size is not positive, or the
            dropout rate is outside [0, 1).

    Examples:
        >>> model = VGG((3, 32, 32), num_classes=10, depth=11, width=8)
        >>> model(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_classes: int,
        depth: int = 16,
        batch_norm: bool = True,
        hidden: tuple[int, ...] = (512, 512),
        width: int = 64,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_arguments(input_shape, num_classes, dropout)
        channels = check_image_shape(input_shape, "VGG")
        check_depth("VGG", depth, list(CONVS_PER_STAGE))
        check_sizes("width", [width])
        check_hidden(hidden)
        layers: list[nn.Module] = []
        for factor, convolutions in zip(WIDTH_FACTORS, CONVS_PER_STAGE[depth], strict=True):
            for _ in range(convolutions):
                layers.append(nn.Conv2d(channels, factor * width, 3, padding=1, bias=not batch_norm))
                channels = factor * width
                layers += [nn.BatchNorm2d(channels)] if batch_norm else []
                layers += [nn.ReLU(), nn.Dropout(dropout)]
            layers.append(nn.MaxPool2d(2, ceil_mode=True))  # ceil_mode keeps a single pixel
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        classifier: list[nn.Module] = []
        for units in hidden:
            classifier += [nn.Linear(channels, units), nn.ReLU(), nn.Dropout(dropout)]
            channels = units
        self.classifier = nn.Sequential(*classifier, nn.Linear(channels, num_classes))
        init_kaiming_(self)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Logits."""
        logits: Tensor = self.classifier(self.features(x))
        return logits
