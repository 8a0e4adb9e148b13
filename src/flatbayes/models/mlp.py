"""Multi-layer perceptron, with an optional last layer for homoscedastic regression."""

import math
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from flatbayes.core.constant_scale import ConstantScale
from flatbayes.models.building import check_arguments, check_hidden


class MLP(nn.Module):
    """Fully connected layers with ReLU, and dropout after each hidden layer. Inputs of any shape are flattened.

    Args:
        input_shape: Shape of one example.
        num_classes: Size of the output: a logit for each class; for a regression, a mean and then a raw scale for
            each target.
        hidden: Units of each hidden layer; an empty tuple gives a linear model.
        dropout: Dropout rate.
        constant_scale: For a regression: learn raw scales that are the same for every input (homoscedastic noise).

    Raises:
        ValueError: A size is not positive, the dropout rate is outside [0, 1), or `constant_scale` is set and the
            number of outputs is odd.
        TypeError: `hidden` is no sequence of whole numbers.

    Examples:
        >>> model = MLP(input_shape=(8,), num_classes=2, hidden=(16,))
        >>> model(torch.randn(5, 8)).shape
        torch.Size([5, 2])
        >>> fit(MLP, data, MAP(), config=config).predict(inputs[:5]).mean.shape
        torch.Size([5, 10])
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_classes: int,
        hidden: tuple[int, ...] = (128, 128),
        dropout: float = 0.0,
        constant_scale: bool = False,
    ) -> None:
        super().__init__()
        check_arguments(input_shape, num_classes, dropout)
        check_hidden(hidden)
        sizes = [math.prod(input_shape), *hidden]
        layers: list[nn.Module] = [nn.Flatten()]
        for size, units in pairwise(sizes):
            layers += [nn.Linear(size, units), nn.ReLU(), nn.Dropout(dropout)]
        if constant_scale and num_classes % 2:
            raise ValueError(
                f"A constant scale needs a mean and a raw scale for each target, an even number of outputs, got "
                f"{num_classes}. It is for regression only."
            )
        last = nn.Linear(sizes[-1], num_classes // 2 if constant_scale else num_classes)
        self.layers = nn.Sequential(*layers, ConstantScale(last, num_classes // 2) if constant_scale else last)

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch outputs"]:
        """Logits, or means and raw scales."""
        outputs: Tensor = self.layers(x)
        return outputs
