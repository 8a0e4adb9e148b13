"""A multi-layer perceptron."""

import math
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from flatbayes.models.checks import check_arguments, check_sizes


class MLP(nn.Module):
    """Fully connected layers with ReLU, dropout after each hidden one. Inputs of any shape are flattened.

    Args:
        input_shape: Shape of one example.
        num_classes: Size of the output.
        hidden: Units of each hidden layer; none makes the model linear.
        dropout: Probability of dropping a unit.

    Raises:
        ValueError: A size is not positive, or the dropout rate is outside [0, 1).
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_classes: int,
        hidden: tuple[int, ...] = (128, 128),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_arguments(input_shape, num_classes, dropout)
        for units in hidden:
            check_sizes("hidden", [units])
        sizes = [math.prod(input_shape), *hidden]
        layers: list[nn.Module] = [nn.Flatten()]
        for size, units in pairwise(sizes):
            layers += [nn.Linear(size, units), nn.ReLU(), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], num_classes))

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch classes"]:
        """Logits."""
        logits: Tensor = self.layers(x)
        return logits
