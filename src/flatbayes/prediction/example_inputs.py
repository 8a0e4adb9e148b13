"""Inputs like those of training, for compiled and exported networks."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from flatbayes.core.randomness import Stream, make_generator
from flatbayes.data import Standardize
from flatbayes.prediction.sampling import NetworkSampler

MAX_RELATIVE_ROUNDING = 1e-3
"""Rounding of features by float32, in standard deviations, above which exported networks take float64."""


def get_floating_shape(info: Mapping[str, Any]) -> Sequence[int] | None:
    """Shape of an example, where networks take floating numbers; None if it is unknown, or they take integers."""
    return info.get("input_shape") or (info.get("example_shape") if info.get("inputs") else None)


def make_example_inputs(sampler: NetworkSampler) -> Tensor | None:
    """Two random raw inputs with the shape, mean and standard deviation of the training data.

    They are float64 if float32 would round features by more than a thousandth of a standard deviation. None is
    returned if the shape is unknown, or the network takes integers, such as tokens.
    """
    shape = get_floating_shape(sampler.info)
    if not shape:
        return None
    noise = torch.randn(2, *shape, generator=make_generator(Stream.EXAMPLE_INPUTS))
    transform = sampler.transform
    if not isinstance(transform, Standardize):
        return noise
    mean, std = transform.mean.cpu(), transform.std.cpu()
    inputs = mean + std * noise
    needs_float64 = bool((mean.abs() * torch.finfo(torch.float32).eps > MAX_RELATIVE_ROUNDING * std).any())
    return inputs.double() if needs_float64 else inputs.float()
