"""A last layer for homoscedastic regression."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class ConstantScale(nn.Module):
    """Means that depend on the input, and learnt raw scales that do not.

    Args:
        num_features: Size of the input.
        num_outputs: Size of the output; the second half of it are the raw scales.

    Raises:
        ValueError: The number of outputs is odd.
    """

    def __init__(self, num_features: int, num_outputs: int) -> None:
        super().__init__()
        if num_outputs % 2:
            raise ValueError(
                f"A constant scale needs a mean and a raw scale for each target, an even number of outputs, got "
                f"{num_outputs}. It is for regression only."
            )
        self.mean = nn.Linear(num_features, num_outputs // 2)
        self.raw_scale = nn.Parameter(torch.zeros(num_outputs // 2))

    def forward(self, features: Float[Tensor, "batch features"]) -> Float[Tensor, "batch outputs"]:
        """Means, then raw scales."""
        mean: Tensor = self.mean(features)
        return torch.cat([mean, self.raw_scale.expand_as(mean)], dim=1)
