"""A share of the batch, asked for by whoever calls a closure, without either side knowing the other.

A flatness may aim with less than the batch of a step; it says so around the closure that it calls. A closure that
passes its batch through `asked_part` then computes its loss on that part alone. One that does not is right as well,
and costs a whole gradient. What is asked for is local to the thread.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

FEWEST = 2
"""Examples in a part, at least: batch normalisation has no use for a single one."""

_SHARE: ContextVar[float] = ContextVar("share", default=1.0)


@contextmanager
def asking_for(share: float) -> Iterator[None]:
    """Inside, closures are asked for this share of their batch.

    Args:
        share: Above 0 and at most 1, of the batch of the step, whatever an outer context asks for.
    """
    token = _SHARE.set(share)
    try:
        yield
    finally:
        _SHARE.reset(token)


def asked_share() -> float:
    """The share that closures are asked for just now; 1 unless a flatness aims with less."""
    return _SHARE.get()


def asked_part(*batch: Tensor) -> tuple[Tensor, ...]:
    """The first examples of a batch, as many as are asked for: all of them, unless a flatness aims with less.

    Examples:
        >>> import torch
        >>> inputs, targets = torch.zeros(8, 3), torch.zeros(8)
        >>> with asking_for(0.25):
        ...     [len(tensor) for tensor in asked_part(inputs, targets)]
        [2, 2]

    Args:
        batch: Tensors with one row for each example, in an order that says nothing about them.
    """
    share = _SHARE.get()
    if share == 1:
        return batch
    return tuple(tensor[: max(FEWEST, math.ceil(share * len(tensor)))] for tensor in batch)
