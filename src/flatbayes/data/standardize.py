"""Standardization of inputs to mean 0 and standard deviation 1, with the statistics of the training split."""

from dataclasses import dataclass

import torch
from torch import Tensor

from flatbayes.core.devices import has_float64
from flatbayes.core.display import format_fields
from flatbayes.core.names import format_count

EXAMPLES_PER_CHUNK = 1024  # bounds the memory of the float64 copies
SEQUENCE_AXES = 2
"""Number of axes of the mean of sequences."""


@dataclass(frozen=True, kw_only=True)
class Standardize:
    """Subtract a mean and divide by a standard deviation, or keep token ids as they are.

    Attributes:
        mean: Per channel of images, [channels, 1, 1], or of sequences, [1, channels] or [channels, 1]; or per
            feature, [features]; integers for inputs that are token ids.
        std: Same shape as `mean`; positive.

    Examples:
        >>> standardize = Standardize.fit(torch.tensor([[1.0, 10.0], [3.0, 30.0]]))
        >>> standardize(torch.tensor([[2.0, 20.0]]))
        tensor([[0., 0.]])
    """

    mean: Tensor
    std: Tensor

    __repr__ = format_fields

    @staticmethod
    def fit(inputs: Tensor, channel_axis: int = 1) -> "Standardize":
        """Compute mean and standard deviation per channel over all pixels or time steps, or per feature.

        A constant channel or feature gets the standard deviation 1. Both are float64 if the inputs are: a time in
        seconds since 1970 has steps of 128 in float32.

        Args:
            inputs: Images, [n, channels, height, width], features, [n, features], or sequences of three axes.
            channel_axis: Axis of the channels or features; 2 for sequences of the shape [n, length, channels].
        """
        if len(inputs) == 0:
            raise ValueError("The mean of no examples is not defined: Standardize.fit got 0. Give it training data.")
        pooled = [axis for axis in range(inputs.ndim) if axis != channel_axis]
        chunks = torch.split(inputs, EXAMPLES_PER_CHUNK)
        num_values = inputs.numel() // inputs.shape[channel_axis]
        sums = [chunk.double().sum(pooled, keepdim=True) for chunk in chunks]
        mean = torch.stack(sums).sum(0) / num_values
        squares = [(chunk.double() - mean).square().sum(pooled, keepdim=True) for chunk in chunks]
        variance = torch.stack(squares).sum(0) / num_values
        # An exact comparison: rounding gives a constant a tiny variance, and division by it would amplify noise.
        is_constant = inputs.amax(pooled, keepdim=True) == inputs.amin(pooled, keepdim=True)
        std = torch.where(is_constant, 1.0, variance.sqrt())
        dtype = torch.float64 if inputs.dtype == torch.float64 else torch.float32
        return Standardize(mean=mean[0].to(dtype), std=std[0].to(dtype))

    def __call__(self, inputs: Tensor) -> Tensor:
        """Compute (inputs - mean) / std, on the device of the inputs.

        Returns:
            Float32, computed in float64 if the inputs or the statistics are float64; int64 for token ids.

        Raises:
            ValueError: The inputs have other channels or features than those of the fit.
        """
        return standardize_inputs(inputs, self.mean, self.std)

    def to(self, device: torch.device | str) -> "Standardize":
        """The standardization with its statistics on a device, so that a call copies nothing to that device.

        Statistics in float64 stay where they are if the device has no float64.
        """
        device = torch.device(device)
        if self.mean.device == device or (self.mean.dtype == torch.float64 and not has_float64(device)):
            return self
        return Standardize(mean=self.mean.to(device), std=self.std.to(device))


def standardize_inputs(inputs: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Compute (inputs - mean) / std, on the device of the inputs.

    Args:
        inputs: [n, ...]. Sequences may have the shape [n, 1, *axes] too, in which data splits store them.
        mean: Per channel, [channels, 1, 1], or [1, channels] or [channels, 1] of sequences; or per feature,
            [features].
        std: Same shape as `mean`. If both are integers, the inputs are token ids and stay as they are.

    Returns:
        Float32, computed in float64 if the inputs or the statistics are float64; int64 for token ids.

    Raises:
        ValueError: The inputs have other channels or features than the mean.
    """
    if mean.ndim == SEQUENCE_AXES and inputs.ndim == mean.ndim + 2 and inputs.shape[1] == 1:
        inputs = inputs[:, 0]
    if mean.ndim == SEQUENCE_AXES:
        is_right = inputs.ndim == mean.ndim + 1 and mean.shape[0] in (1, inputs.shape[1])
        is_right = is_right and mean.shape[1] in (1, inputs.shape[2])
    else:
        is_right = inputs.ndim == mean.ndim + 1 and inputs.shape[1] == len(mean)
    if not is_right:
        noun, shape = {
            1: ("feature", "[n, features]"),
            SEQUENCE_AXES: ("channel", "[n, channels, length]" if len(mean) > 1 else "[n, length, channels]"),
        }.get(mean.ndim, ("channel", "[n, channels, height, width]"))
        raise ValueError(
            f"Expected inputs of {format_count(max(mean.shape), noun)}, {shape}, got the shape "
            f"{tuple(inputs.shape)}. Give inputs like those of the training."
        )
    if not mean.is_floating_point():
        return inputs.long()
    dtype = torch.float64 if torch.float64 in (inputs.dtype, mean.dtype) else torch.float32
    device = inputs.device if dtype == torch.float32 or has_float64(inputs.device) else torch.device("cpu")
    centred = inputs.to(device, dtype) - mean.to(device, dtype)
    return (centred / std.to(device, dtype)).float().to(inputs.device)
