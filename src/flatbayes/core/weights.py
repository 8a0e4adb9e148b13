"""The only place that edits weights: two contexts in which they differ, and after which they do not.

Both restore from a copy, since `(w + e) - e` is not `w` in floating point; and both do so on an exception too.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that learning moves; a tied tensor counts once."""
    return [param for param in model.parameters() if param.requires_grad]


@contextmanager
def displaced(params: Sequence[Tensor], offsets: Sequence[Tensor]) -> Iterator[None]:
    """Inside, every parameter is `param + offset`.

    Args:
        params: Tensors to move.
        offsets: One displacement per parameter, of its shape.
    """
    with _restored(params), _fresh_casts():
        with torch.no_grad():
            torch._foreach_add_(list(params), list(offsets))
        yield


@contextmanager
def installed(params: Sequence[Tensor], values: Sequence[Tensor]) -> Iterator[None]:
    """Inside, every parameter holds the given value.

    Args:
        params: Tensors to overwrite.
        values: One value per parameter, of its shape; another dtype or device is converted.
    """
    with _restored(params), _fresh_casts():
        with torch.no_grad():
            torch._foreach_copy_(list(params), list(values))
        yield


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """All entries in one vector, in order (a copy)."""
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def unflatten(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Views of the vector in the shapes of `like`: the inverse of `flatten`."""
    pieces = vector.split([tensor.numel() for tensor in like])
    return [piece.view(tensor.shape) for piece, tensor in zip(pieces, like, strict=True)]


@contextmanager
def _restored(params: Sequence[Tensor]) -> Iterator[None]:
    saved = [param.detach().clone() for param in params]
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(list(params), saved)


@contextmanager
def _fresh_casts() -> Iterator[None]:
    # An autocast block around the whole step keeps low-precision copies of the weights, blind to in-place edits.
    torch.clear_autocast_cache()
    try:
        yield
    finally:
        torch.clear_autocast_cache()
