"""Euclidean norms and inner products over all entries of many tensors, of one network or of each vectorized one."""

from collections.abc import Sequence

import torch
from torch import Tensor

from flatbayes.core.context import num_vectorized
from flatbayes.core.devices import any_on_accelerator
from flatbayes.core.tensor_lists import flatten, group_tensors


def global_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Euclidean norm of all entries of all tensors, accumulated in at least float32.

    It has no dimensions; inside `vectorized` it is the norm of each network, of shape (networks,).
    """
    return combine_norms(tensor_norms(tensors))


def tensor_norms(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Euclidean norm of each tensor, accumulated in at least float32; see `global_norm`.

    Each has no dimensions; inside `vectorized` it is of shape (networks,).
    """
    if num_vectorized():
        exact = [(t if t.dtype in (torch.float32, torch.float64) else t.float()) for t in tensors]
        return [torch.linalg.vector_norm(t, dim=list(range(1, t.ndim))) if t.ndim > 1 else t.abs() for t in exact]
    tensors = [t.coalesce().values() if t.is_sparse else t for t in tensors]
    if {t.dtype for t in tensors} <= {torch.float32, torch.float64}:
        return list(torch._foreach_norm(tensors))
    return [torch.linalg.vector_norm(t if t.is_complex() else t.float()) for t in tensors]


def combine_norms(norms: Sequence[Tensor]) -> Tensor:
    """The norm of all entries of tensors whose norms are given; the result of `global_norm`."""
    if len({(n.dtype, n.device) for n in norms}) > 1:
        norms = [n.to(norms[0]) for n in norms]
    total: Tensor = torch.linalg.vector_norm(torch.stack(list(norms)), dim=0 if norms[0].ndim else None)
    return total


def global_inner_product(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """Sum of the products of all entries of all tensors, accumulated in at least float32.

    It has no dimensions; inside `vectorized` it is the product of each network, of shape (networks,).
    """
    if num_vectorized():
        products = [_multiply(a, b) for a, b in zip(left, right, strict=True)]
        return torch.stack([product.reshape(len(product), -1).sum(1) for product in products]).sum(0)
    if not any_on_accelerator(left):
        return torch.stack([_multiply(a, b).sum() for a, b in zip(left, right, strict=True)]).sum()
    sums = []
    for group in group_tensors(left):
        pairs = torch._foreach_mul([left[k] for k in group], [right[k] for k in group])
        vector = flatten(pairs)
        sums.append(vector.sum(dtype=torch.promote_types(vector.dtype, torch.float32)))
    return torch.stack(sums).sum()


def _multiply(left: Tensor, right: Tensor) -> Tensor:
    dtype = torch.promote_types(left.dtype, torch.float32)
    return left.to(dtype) * right.to(dtype)


def broadcast_per_network(values: Tensor, like: Tensor) -> Tensor:
    """One value per network in a shape that broadcasts against `like`; a value without dimensions is unchanged."""
    return values.reshape(-1, *[1] * (like.ndim - 1)) if values.ndim else values
