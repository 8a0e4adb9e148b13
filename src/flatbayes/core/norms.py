"""The norm of all entries of many tensors together."""

from collections.abc import Sequence

import torch
from torch import Tensor


def global_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Euclidean norm of all entries together, accumulated in at least float32."""
    if all(t.dtype in (torch.float32, torch.float64) for t in tensors):
        norms: list[Tensor] = list(torch._foreach_norm(list(tensors)))
    else:
        norms = [torch.linalg.vector_norm(t.float()) for t in tensors]
    total: Tensor = torch.linalg.vector_norm(torch.stack([n.to(norms[0]) for n in norms]))
    return total
