"""Euclidean norms over all entries of many tensors, of one network or of each of several vectorized ones."""

from collections.abc import Sequence

import torch
from torch import Tensor

from flatbayes.core.context import num_vectorized


def global_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Euclidean norm of all entries of all tensors, accumulated in at least float32.

    Args:
        tensors: Such as one gradient per parameter.

    Returns:
        A tensor without dimensions; inside `vectorized`, the norm of each network, of shape (networks,).
    """
    if num_vectorized():
        return vectorized_norms(tensors)
    tensors = [t.coalesce().values() if t.is_sparse else t for t in tensors]
    if all(t.dtype in (torch.float32, torch.float64) for t in tensors):
        norms: list[Tensor] = list(torch._foreach_norm(list(tensors)))
    else:
        norms = [torch.linalg.vector_norm(t if t.is_complex() else t.float()) for t in tensors]
    total: Tensor = torch.linalg.vector_norm(torch.stack([n.to(norms[0]) for n in norms]))
    return total


def vectorized_norms(tensors: Sequence[Tensor]) -> Tensor:
    """Euclidean norm of all entries of each network, accumulated in at least float32.

    Args:
        tensors: Tensors with the networks along their first dimension.

    Returns:
        Norms of shape (networks,).
    """
    exact = [(t if t.dtype in (torch.float32, torch.float64) else t.float()) for t in tensors]
    norms = [torch.linalg.vector_norm(t, dim=list(range(1, t.ndim))) if t.ndim > 1 else t.abs() for t in exact]
    total: Tensor = torch.linalg.vector_norm(torch.stack([n.to(norms[0]) for n in norms]), dim=0)
    return total


def broadcast_per_network(values: Tensor, like: Tensor) -> Tensor:
    """One value per network in a shape that broadcasts against `like`; a value without dimensions is unchanged."""
    return values.reshape(-1, *[1] * (like.ndim - 1)) if values.ndim else values
