"""A multi-layer perceptron."""

import math
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from flatbayes.models.checks import check_arguments, check_sizes
from flatbayes.models.constant_scale import ConstantScale


class MLP(nn.Module):
    """Fully connected layers with ReLU, dropout after each hidden one. Inputs of any shape are flattened.

    Args:
        input_shape: Shape of one example.
        num_classes: Size of the output: a logit for each class; for a regression, a mean and then a raw scale for
            each target.
        hidden: Units of each hidden layer; none makes the model linear.
        dropout: Probability of dropping a unit.
        constant_scale: For a regression: learn raw scales that are the same for every input (homoscedastic noise).

    Raises:
        ValueError: A size is not positive, the dropout rate is outside [0, 1), or there is a constant scale and not
            an even number of outputs.
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
        for units in hidden:
            check_sizes("hidden", [units])
        sizes = [math.prod(input_shape), *hidden]
        layers: list[nn.Module] = [nn.Flatten()]
        for size, units in pairwise(sizes):
            layers += [nn.Linear(size, units), nn.ReLU(), nn.Dropout(dropout)]
        last = ConstantScale(sizes[-1], num_classes) if constant_scale else nn.Linear(sizes[-1], num_classes)
        self.layers = nn.Sequential(*layers, last)

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch outputs"]:
        """Logits, or means and raw scales."""
        outputs: Tensor = self.layers(x)
        return outputs
