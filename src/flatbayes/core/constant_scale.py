"""A noise that is the same for all inputs, for networks that predict means only."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flatbayes.core.network_interface import choose_output, select_output


class ConstantScale(nn.Module):
    """A network of means with learnt raw scales that are equal for all inputs: homoscedastic regression.

    For a network with one output for each target, such as one that was trained with `torch.nn.MSELoss`. Its outputs
    are then those that `Gaussian` takes. A raw scale of 0, the initial one, is the noise of the residuals if `fit`
    recognises the network as trained, and of a linear model otherwise.

    Args:
        mean: Network whose output is the mean of each target, (batch, targets), or (batch,) for one.
        num_targets: Number of targets.

    Raises:
        ValueError: `num_targets` is below 1.

    Examples:
        >>> network = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))  # trained with a squared error
        >>> ConstantScale(network)(torch.randn(5, 8)).shape  # the mean and the raw scale
        torch.Size([5, 2])
    """

    def __init__(self, mean: nn.Module, num_targets: int = 1) -> None:
        super().__init__()
        if num_targets < 1:
            raise ValueError(f"num_targets must be at least 1, got {num_targets}.")
        self.mean = mean
        self.raw_scale = nn.Parameter(torch.zeros(num_targets))

    def forward(self, *args: Any, **kwargs: Any) -> Float[Tensor, "batch outputs"]:
        """Means, then raw scales.

        Args:
            *args: Arguments of the network of means.
            **kwargs: Likewise.

        Raises:
            ValueError: That network has another number of outputs.
        """
        outputs: Any = self.mean(*args, **kwargs)
        if not isinstance(outputs, Tensor):
            outputs = select_output(outputs, choose_output(outputs, type(self.mean).__name__))
        mean = outputs[:, None] if outputs.ndim == 1 else outputs
        if mean.shape[1:] != self.raw_scale.shape:
            raise ValueError(
                f"The network gives outputs of shape {tuple(outputs.shape)}, and ConstantScale needs a mean for each "
                f"target, (batch, {len(self.raw_scale)}). Set num_targets to the number of targets."
            )
        return torch.cat([mean, self.raw_scale.to(mean).expand_as(mean)], dim=1)
