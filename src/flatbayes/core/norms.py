"""The norm of all entries of many tensors together."""

from collections.abc import Sequence

import torch
from torch import Tensor

from flatbayes.core.stacked import num_vectorized, vectorized_norms


def global_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Euclidean norm of all entries together, or of each of stacked networks; accumulated in at least float32."""
    if num_vectorized():
        return vectorized_norms(tensors)
    if all(t.dtype in (torch.float32, torch.float64) for t in tensors):
        norms: list[Tensor] = list(torch._foreach_norm(list(tensors)))
    else:
        norms = [torch.linalg.vector_norm(t.float()) for t in tensors]
    total: Tensor = torch.linalg.vector_norm(torch.stack([n.to(norms[0]) for n in norms]))
    return total
