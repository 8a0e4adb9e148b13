"""A residual network of 1.2 million weights that is cheap on a CPU: 16 million multiply-adds for 32 pixels a side."""

from collections.abc import Sequence

from torch import Tensor, nn

from flatbayes.models.resnet import BasicBlock


class SmallResNet(nn.Module):
    """Four basic residual blocks behind a stem of stride 2: 32 channels at 16 pixels to 256 at 2.

    Args:
        input_shape: Channels, height and width of an image.
        num_classes: Size of the output.
        widths: Channels of the blocks.
        dropout: Dropout rate between the convolutions of each block.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_classes: int,
        widths: Sequence[int] = (32, 64, 128, 256),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        first, last = widths[0], widths[-1]
        stem = nn.Conv2d(input_shape[0], first, 3, stride=2, padding=1, bias=False)
        self.stem = nn.Sequential(stem, nn.BatchNorm2d(first), nn.ReLU())
        pairs = zip((first, *widths[:-1]), widths, strict=True)
        self.blocks = nn.Sequential(*[BasicBlock(a, b, 1 + (i > 0), dropout) for i, (a, b) in enumerate(pairs)])
        self.fc = nn.Linear(last, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.fc(self.blocks(self.stem(x)).mean((2, 3)))
        return logits
