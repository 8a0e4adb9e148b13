"""A share of the batch, asked for by whoever calls a closure, without either side knowing the other.

A flatness may aim with less than the batch of a step; it says so around the closure that it calls. A closure that
passes its batch through `subset_batch` then computes its loss on that part alone. One that does not is right as well,
and costs a whole gradient. What is asked for is local to the thread.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

MIN_ASCENT_EXAMPLES = 2
"""Examples in a part, at least: batch normalisation has no use for a single one."""

_BATCH_FRACTION: ContextVar[float] = ContextVar("share", default=1.0)


@contextmanager
def batch_fraction(fraction: float) -> Iterator[None]:
    """Inside, closures are asked for this share of their batch.

    Args:
        fraction: Above 0 and at most 1, of the batch of the step, whatever an outer context asks for.
    """
    token = _BATCH_FRACTION.set(fraction)
    try:
        yield
    finally:
        _BATCH_FRACTION.reset(token)


def get_batch_fraction() -> float:
    """The share that closures are asked for just now; 1 unless a flatness aims with less."""
    return _BATCH_FRACTION.get()


def subset_batch(*batch: Tensor) -> tuple[Tensor, ...]:
    """The first examples of a batch, as many as are asked for: all of them, unless a flatness aims with less.

    Examples:
        >>> import torch
        >>> inputs, targets = torch.zeros(8, 3), torch.zeros(8)
        >>> with batch_fraction(0.25):
        ...     [len(tensor) for tensor in subset_batch(inputs, targets)]
        [2, 2]

    Args:
        batch: Tensors with one row for each example, in an order that says nothing about them.
    """
    share = _BATCH_FRACTION.get()
    if share == 1:
        return batch
    return tuple(tensor[: max(MIN_ASCENT_EXAMPLES, math.ceil(share * len(tensor)))] for tensor in batch)
