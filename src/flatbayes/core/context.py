"""The closure context: batch fraction, weight distributions and number of vectorized networks around a closure call.

This is the only implicit channel between the two axes. A closure takes no arguments, and posterior, flatness and
training loop do not refer to each other, so values that one of them sets and another reads are in one frozen
`ClosureContext`, for the duration of a `with` block:

=====================  ======================  ============================================  ===============
field                  set by                  read by                                       default
=====================  ======================  ============================================  ===============
`batch_fraction`       the ascent loop         closures, through `subset_batch`              1: whole batch
`weight_distributions` SGVB, LRT, IVON         PosteriorSAM                                  none
`num_vectorized`       the training loop       norms, perturbations and clipping             0: one network
=====================  ======================  ============================================  ===============

The context belongs to the thread (a `contextvars.ContextVar`), and an exception restores the outer one.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from flatbayes.core.input_trees import ModelInputs, count_examples, slice_examples

MIN_ASCENT_EXAMPLES = 2
"""Smallest number of examples in a subset of a batch: batch normalisation cannot normalise a single one."""


@dataclass(frozen=True)
class DiagonalGaussian:
    """A factorised Gaussian over one parameter.

    Attributes:
        mean: Means, in the parameter's shape.
        std: Standard deviations, positive, in the parameter's shape.
    """

    mean: Tensor
    std: Tensor


@dataclass(frozen=True, eq=False)
class ClosureContext:
    """What holds during a closure call.

    Attributes:
        batch_fraction: Fraction of its batch that a closure computes the loss on, above 0 and at most 1.
        weight_distributions: The distribution of each parameter that has one, by the identity of its tensor.
        num_vectorized: Number of networks that are stacked along the first dimension of every parameter and
            gradient; 0 if the parameters are those of one network.
    """

    batch_fraction: float = 1.0
    weight_distributions: Mapping[Tensor, DiagonalGaussian] = field(default_factory=dict)
    num_vectorized: int = 0


_DEFAULT_CONTEXT = ClosureContext()
_CONTEXT: ContextVar[ClosureContext] = ContextVar("closure_context", default=_DEFAULT_CONTEXT)


@contextmanager
def _set_context(context: ClosureContext) -> Iterator[None]:
    token = _CONTEXT.set(context)
    try:
        yield
    finally:
        _CONTEXT.reset(token)


@contextmanager
def batch_fraction(fraction: float) -> Iterator[None]:
    """Closures that are called inside compute their loss on the first `fraction` of their batch.

    Args:
        fraction: Above 0 and at most 1. It replaces the fraction of an outer context.
    """
    with _set_context(replace(_CONTEXT.get(), batch_fraction=fraction)):
        yield


@contextmanager
def weight_distribution(params: Sequence[Tensor], means: Sequence[Tensor], stds: Sequence[Tensor]) -> Iterator[None]:
    """Inside, the parameters have these Gaussian distributions; other parameters keep those of an outer context.

    Args:
        params: The tensors that the model holds, whatever their current values are.
        means: One tensor of means per parameter, of its shape.
        stds: One tensor of standard deviations per parameter, of its shape.
    """
    context = _CONTEXT.get()
    inner = {param: DiagonalGaussian(mean, std) for param, mean, std in zip(params, means, stds, strict=True)}
    with _set_context(replace(context, weight_distributions={**context.weight_distributions, **inner})):
        yield


@contextmanager
def vectorized(num_networks: int) -> Iterator[None]:
    """Inside, every parameter and its gradient hold several networks, stacked along the first dimension.

    Args:
        num_networks: Number of networks; 0 for one network, not stacked.
    """
    with _set_context(replace(_CONTEXT.get(), num_vectorized=num_networks)):
        yield


def get_batch_fraction() -> float:
    """The fraction of the batch that closures compute their loss on; 1 outside of `batch_fraction`."""
    return _CONTEXT.get().batch_fraction


def get_weight_distribution(param: Tensor) -> DiagonalGaussian | None:
    """The distribution of this very tensor; None outside of `weight_distribution`."""
    return _CONTEXT.get().weight_distributions.get(param)


def num_vectorized() -> int:
    """Number of networks stacked in the parameters; 0 for one network, not stacked."""
    return _CONTEXT.get().num_vectorized


def subset_batch(*batch: ModelInputs) -> tuple[Any, ...]:
    """The first examples of a batch, in the number that `batch_fraction` sets; the whole batch outside of it.

    Examples:
        >>> from flatbayes.core.context import batch_fraction
        >>> inputs, targets = torch.zeros(8, 3), torch.zeros(8)
        >>> with batch_fraction(0.25):
        ...     [len(tensor) for tensor in subset_batch(inputs, targets)]
        [2, 2]

    Args:
        batch: Tensors, or tuples and dictionaries of them, with one row per example, in random order.

    Returns:
        The first rows of each: the fraction rounded up, and at least `MIN_ASCENT_EXAMPLES`.
    """
    fraction = get_batch_fraction()
    if fraction == 1:
        return batch
    size = max(MIN_ASCENT_EXAMPLES, math.ceil(fraction * count_examples(batch[0])))
    return tuple(slice_examples(inputs, slice(size)) for inputs in batch)
