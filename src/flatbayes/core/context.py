"""The closure context: batch fraction, weight distributions and number of vectorized networks around a closure call.

This is the only implicit channel between the two axes. A closure takes no arguments, and posterior, flatness and
training loop do not refer to each other, so values that one of them sets and another reads are in one frozen
`ClosureContext`, for the duration of a `with` block:

=====================  ============================  ======================================  ===============
field                  set by                        read by                                 default
=====================  ============================  ======================================  ===============
`batch_fraction`       the ascent loop               closures, through `subset_batch`        1: whole batch
`sub_batch`            MSharpness, BSAM              closures, through `subset_batch`        none: whole batch
`weight_distribution`  SGVB, LRT, IVON, SWAG, BLoB   PosteriorSAM                            none
`num_vectorized`       the training loop             norms, perturbations and clipping       0: one network
=====================  ============================  ======================================  ===============

The context belongs to the thread (a `contextvars.ContextVar`), and an exception restores the outer one.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

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


@dataclass(eq=False)
class SubBatch:
    """One of several parts of a batch, of about equal size, and what the closure that computes on it reports.

    Attributes:
        index: Number of the part, from 0 on.
        max_sub_batches: Number of parts of a large batch.
        num_sub_batches: Number of parts of this batch, which have at least `MIN_ASCENT_EXAMPLES` examples each; 0
            until `subset_batch` was called.
        num_examples: Number of examples in the part; 0 until `subset_batch` was called.
        weight: Number of examples in the part, divided by that in the batch; of all processes together.
        batch_sizes: Sizes of the batches of all processes that compute on their parts together, so that each has as
            many parts; empty for this process alone.
    """

    index: int
    max_sub_batches: int
    num_sub_batches: int = 0
    num_examples: int = 0
    weight: float = 0.0
    batch_sizes: Sequence[int] = ()

    def select_rows(self, batch_size: int) -> slice:
        """The rows of the part in a batch of this size. The first call stores the numbers."""
        sizes = self.batch_sizes or (batch_size,)
        count = max(1, min(self.max_sub_batches, min(sizes) // MIN_ASCENT_EXAMPLES))
        rows = self._find_rows(batch_size, count)
        if self.num_sub_batches == 0:
            self.num_sub_batches, self.num_examples = count, rows.stop - rows.start
            parts = [self._find_rows(size, count) for size in sizes]
            self.weight = sum(part.stop - part.start for part in parts) / sum(sizes)
        return rows

    def _find_rows(self, batch_size: int, count: int) -> slice:
        return slice(batch_size * self.index // count, batch_size * (self.index + 1) // count)


class CovarianceProduct(NamedTuple):
    """A product with the covariance Σ of the weights.

    Attributes:
        products: Σ v, one tensor for each of v; 0 for parameters without a distribution.
        norm: sqrt(vᵀ Σ v), a tensor without dimensions, or one for each vectorized network.
        is_new_memory: Whether nothing else holds the products.
    """

    products: list[Tensor]
    norm: Tensor
    is_new_memory: bool = True


class WeightDistribution(ABC):
    """The Gaussian that a posterior has for the weights during training, by products with its covariance."""

    @property
    def is_estimated(self) -> bool:
        """False before the posterior has a distribution, for one that estimates it from the weights of training."""
        return True

    @abstractmethod
    def get_marginal(self, param: Tensor) -> DiagonalGaussian | None:
        """Mean and standard deviation of each weight of a parameter; None for one without a distribution."""

    @abstractmethod
    def multiply_covariance(self, params: Sequence[Tensor], vectors: Sequence[Tensor]) -> CovarianceProduct:
        """Multiply vectors, such as gradients, with the covariance of parameters, some of which may have none."""


@dataclass(frozen=True, eq=False)
class ClosureContext:
    """What holds during a closure call.

    Attributes:
        batch_fraction: Fraction of its batch that a closure computes the loss on, above 0 and at most 1.
        sub_batch: Part of the batch that closures take for the batch; None for the whole batch.
        weight_distribution: The distribution of the weights; None if there is none.
        num_vectorized: Number of networks that are stacked along the first dimension of every parameter and
            gradient; 0 if the parameters are those of one network.
    """

    batch_fraction: float = 1.0
    sub_batch: SubBatch | None = None
    weight_distribution: WeightDistribution | None = None
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

    It is above 0 and at most 1, and replaces that of an outer context.
    """
    with _set_context(replace(_CONTEXT.get(), batch_fraction=fraction)):
        yield


@contextmanager
def sub_batch(part: SubBatch) -> Iterator[None]:
    """Closures that are called inside take a part of their batch for the batch.

    It replaces that of an outer context, and a `batch_fraction` is one of the part.
    """
    with _set_context(replace(_CONTEXT.get(), sub_batch=part)):
        yield


@contextmanager
def offer_distribution(distribution: WeightDistribution | None) -> Iterator[None]:
    """Inside, the weights have this distribution, whatever their values are; None leaves that of an outer context."""
    if distribution is None:
        yield
        return
    with _set_context(replace(_CONTEXT.get(), weight_distribution=distribution)):
        yield


@contextmanager
def vectorized(num_networks: int) -> Iterator[None]:
    """Inside, parameters and gradients hold several networks, stacked along the first dimension; 0 is for one."""
    with _set_context(replace(_CONTEXT.get(), num_vectorized=num_networks)):
        yield


def get_batch_fraction() -> float:
    """The fraction of the batch that closures compute their loss on; 1 outside of `batch_fraction`."""
    return _CONTEXT.get().batch_fraction


def get_distribution() -> WeightDistribution | None:
    """The distribution of the weights; None outside of `offer_distribution`."""
    return _CONTEXT.get().weight_distribution


def get_sub_batch() -> SubBatch | None:
    """The part that closures take for their batch; None for the whole batch."""
    return _CONTEXT.get().sub_batch


def num_vectorized() -> int:
    """Number of networks stacked in the parameters; 0 for one network, not stacked."""
    return _CONTEXT.get().num_vectorized


def subset_batch(*batch: ModelInputs) -> tuple[Any, ...]:
    """The examples of a batch that `sub_batch` and `batch_fraction` select; the whole batch outside of both.

    Examples:
        >>> from flatbayes.core.context import batch_fraction
        >>> inputs, targets = torch.zeros(8, 3), torch.zeros(8)
        >>> with batch_fraction(0.25):
        ...     [len(tensor) for tensor in subset_batch(inputs, targets)]
        [2, 2]

    Args:
        batch: Tensors, or tuples and dictionaries of them, with one row per example, in random order.

    Returns:
        The rows of the part, and of these the first: the fraction rounded up, and at least `MIN_ASCENT_EXAMPLES`.
    """
    fraction, active = get_batch_fraction(), get_sub_batch()
    if active is not None:
        rows = active.select_rows(count_examples(batch[0]))
        batch = tuple(slice_examples(inputs, rows) for inputs in batch)
    if fraction == 1:
        return batch
    size = max(MIN_ASCENT_EXAMPLES, math.ceil(round(fraction * count_examples(batch[0]), 6)))
    return tuple(slice_examples(inputs, slice(size)) for inputs in batch)
