"""The only place that edits weights, and the contexts after which they are what they were.

Weights are restored from a copy, since `(w + e) - e` is not `w` in floating point; and on an exception too.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from flatbayes.core.stacked import for_each


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
    with restored(params):
        shift(params, offsets, 1.0)
        yield


@contextmanager
def installed(params: Sequence[Tensor], values: Sequence[Tensor]) -> Iterator[None]:
    """Inside, every parameter holds the given value.

    Args:
        params: Tensors to overwrite.
        values: One value per parameter, of its shape; another dtype or device is converted.
    """
    with restored(params):
        with torch.no_grad():
            torch._foreach_copy_(list(params), list(values))
        yield


@contextmanager
def rewritten(params: Sequence[Tensor], part: Callable[[slice], Tensor], size: int) -> Iterator[None]:
    """Inside, parameters hold what is made for them, a part at a time, so that no second vector of all is needed.

    Args:
        params: Tensors to overwrite.
        part: Makes the values of a stretch of `flatten(params)`; called once for each, in order.
        size: Largest number of entries of a stretch.
    """
    with restored(params):
        with torch.no_grad():
            if all(param.is_contiguous() for param in params):
                for place, pieces in blocks(params, size):
                    torch._foreach_copy_(pieces, part(place).split([len(piece) for piece in pieces]))
            else:  # their entries are not in the order of the vector
                values = torch.cat([part(place) for place, _ in blocks(params, size)])
                torch._foreach_copy_(list(params), unflatten(values, params))
        yield


def shift(params: Sequence[Tensor], directions: Sequence[Tensor], scale: float | Tensor) -> None:
    """`param += scale * direction`, in place, in one pass if the scale is a number.

    Args:
        params: Tensors to move, inside `restored`.
        directions: One direction per parameter, of its shape.
        scale: A number, or a tensor without dimensions where reading it would wait for a device, or one number for
            each stacked network.
    """
    with torch.no_grad():
        if isinstance(scale, Tensor) and scale.ndim:
            for param, direction in zip(params, directions, strict=True):
                param.addcmul_(direction, for_each(scale, direction).to(direction.dtype))
        elif isinstance(scale, Tensor):
            torch._foreach_add_(list(params), torch._foreach_mul(list(directions), scale.to(directions[0])))
        else:
            torch._foreach_add_(list(params), list(directions), alpha=scale)


@contextmanager
def restored(params: Sequence[Tensor]) -> Iterator[None]:
    """Whatever happens to the values of the parameters inside, of which there may be none, is undone at the end."""
    with torch.no_grad():
        saved = [param.clone() for param in params]
    # An autocast block around the whole step keeps low-precision copies of the weights, blind to in-place edits.
    torch.clear_autocast_cache()
    try:
        yield
    finally:
        if saved:
            with torch.no_grad():
                torch._foreach_copy_(list(params), saved)
        torch.clear_autocast_cache()


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """All entries in one vector, in order (a copy)."""
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def unflatten(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Views of the vector in the shapes of `like`: the inverse of `flatten`."""
    pieces = vector.split([tensor.numel() for tensor in like])
    return [piece.view(tensor.shape) for piece, tensor in zip(pieces, like, strict=True)]


def blocks(tensors: Sequence[Tensor], size: int) -> Iterator[tuple[slice, list[Tensor]]]:
    """Stretches of `flatten(tensors)`, one after the other, without making it.

    Args:
        tensors: What would be flattened.
        size: Largest number of entries of a stretch.

    Yields:
        The stretch as a slice of the vector, and the pieces of the tensors that it is made of, as vectors of views.
    """
    start, held, pieces = 0, 0, list[Tensor]()
    for tensor in tensors:
        rest = tensor.detach().reshape(-1)
        while len(rest):
            piece, rest = rest[: size - held], rest[size - held :]
            pieces.append(piece)
            held += len(piece)
            if held == size:
                yield slice(start, start + held), pieces
                start, held, pieces = start + held, 0, []
    if held:
        yield slice(start, start + held), pieces
