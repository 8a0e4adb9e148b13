"""Several networks in one, told to whoever is called inside, without either side knowing the other.

Whoever trains networks of one architecture at once holds each parameter of all of them in one tensor, the networks
along its first dimension, and says so around the step. Most of a step works entry by entry and need not know. What
takes all weights together, such as a norm, asks, and answers for each network. What is said is local to the thread.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

_NUM_VECTORIZED: ContextVar[int] = ContextVar("networks", default=0)


@contextmanager
def vectorized(num_networks: int) -> Iterator[None]:
    """Inside, every parameter and its gradient are those of so many networks, stacked along the first dimension.

    Args:
        num_networks: How many; 0 for one network, not stacked.
    """
    token = _NUM_VECTORIZED.set(num_networks)
    try:
        yield
    finally:
        _NUM_VECTORIZED.reset(token)


def num_vectorized() -> int:
    """How many networks the parameters hold here; 0 where they are those of one network, not stacked."""
    return _NUM_VECTORIZED.get()


def vectorized_norms(tensors: Sequence[Tensor]) -> Tensor:
    """Euclidean norm of all entries of each network, shape (networks,), accumulated in at least float32."""
    exact = [(t if t.dtype in (torch.float32, torch.float64) else t.float()) for t in tensors]
    norms = [torch.linalg.vector_norm(t, dim=list(range(1, t.ndim))) if t.ndim > 1 else t.abs() for t in exact]
    total: Tensor = torch.linalg.vector_norm(torch.stack([n.to(norms[0]) for n in norms]), dim=0)
    return total


def broadcast_per_network(values: Tensor, like: Tensor) -> Tensor:
    """One value per network in a shape that multiplies `like`; a value without dimensions stays as it is."""
    return values.reshape(-1, *[1] * (like.ndim - 1)) if values.ndim else values
