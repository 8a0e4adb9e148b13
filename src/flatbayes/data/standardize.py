"""Inputs of mean 0 and standard deviation 1, by the statistics of the training examples."""

from dataclasses import dataclass

import torch
from torch import Tensor

EXAMPLES_PER_CHUNK = 1024  # examples converted to float64 at a time


@dataclass(frozen=True, kw_only=True)
class Standardize:
    """Subtracts a mean and divides by a standard deviation.

    Attributes:
        mean: One per channel, [channels, 1, 1], or one per feature, [features].
        std: Of the same shape; positive.
    """

    mean: Tensor
    std: Tensor

    @staticmethod
    def fit(inputs: Tensor) -> "Standardize":
        """Statistics per channel over all pixels, or per feature; a constant one is only centred.

        Args:
            inputs: Images, [n, channels, height, width], or features, [n, features].
        """
        if len(inputs) == 0:
            raise ValueError("The mean of no examples is not defined: Standardize.fit got 0. Give it training data.")
        pooled = [0, *range(2, inputs.ndim)]
        chunks = torch.split(inputs, EXAMPLES_PER_CHUNK)
        values = inputs.numel() // inputs.shape[1]
        sums = [chunk.double().sum(pooled, keepdim=True) for chunk in chunks]
        mean = torch.stack(sums).sum(0) / values
        squares = [(chunk.double() - mean).square().sum(pooled, keepdim=True) for chunk in chunks]
        variance = torch.stack(squares).sum(0) / values
        # Compared exactly: rounding leaves a constant with a tiny deviation, which would blow it up.
        constant = inputs.amax(pooled, keepdim=True) == inputs.amin(pooled, keepdim=True)
        std = torch.where(constant, 1.0, variance.sqrt())
        return Standardize(mean=mean[0].float(), std=std[0].float())

    def __call__(self, inputs: Tensor) -> Tensor:
        """(inputs - mean) / std in float32, on the device of the inputs.

        Raises:
            ValueError: The inputs have other channels or features than those of the fit.
        """
        return standardize_inputs(inputs, self.mean, self.std)


def standardize_inputs(inputs: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(inputs - mean) / std in float32, on the device of the inputs.

    Args:
        inputs: [n, ...].
        mean: One per channel, [channels, 1, 1], or one per feature, [features].
        std: Of the same shape.

    Raises:
        ValueError: The inputs have other channels or features than the mean.
    """
    if inputs.ndim != mean.ndim + 1 or inputs.shape[1] != len(mean):
        kind = "channels, [n, channels, height, width]" if mean.ndim == 3 else "features, [n, features]"
        raise ValueError(
            f"Expected inputs of {len(mean)} {kind}, got the shape {tuple(inputs.shape)}. Give inputs like those of "
            "the training."
        )
    return (inputs.float() - mean.to(inputs.device)) / std.to(inputs.device)
