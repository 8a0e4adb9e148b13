"""The only place that edits weights, and the contexts after which they are what they were, bit for bit.

`(w + e) - e` is not `w` in floating point, so weights come back from a copy, or from the memory that they had; and on
an exception too.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from flatbayes.core.norms import broadcast_per_network


def trainable_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that learning moves; a tied tensor counts once."""
    return [param for param in model.parameters() if param.requires_grad]


@contextmanager
def perturb(params: Sequence[Tensor], directions: list[Tensor], scale: float | Tensor = 1.0) -> Iterator[None]:
    """Inside, every parameter is `param + scale * direction`.

    Args:
        params: Tensors to move.
        directions: One direction per parameter, of its shape. The list is emptied, so that gradients in it can go
            before there are new ones.
        scale: A number, or a tensor without dimensions where reading it would wait for a device, or one number for
            each stacked network.
    """
    if can_swap_storage(params):
        values = axpy(params, directions, scale)
        directions.clear()
        with swap_storage(params, values):
            yield
    else:
        with preserve(params):
            with torch.no_grad():
                copy_values(params, axpy(params, directions, scale))
            directions.clear()
            yield


@contextmanager
def swap_values(params: Sequence[Tensor], values: Sequence[Tensor]) -> Iterator[None]:
    """Inside, every parameter holds the given value.

    Args:
        params: Tensors to overwrite.
        values: One value per parameter, of its shape; another dtype or device is converted.
    """
    with preserve(params):
        with torch.no_grad():
            torch._foreach_copy_(list(params), list(values))
        yield


@contextmanager
def write_blockwise(
    params: Sequence[Tensor], make_block: Callable[[slice], Tensor], block_size: int
) -> Iterator[None]:
    """Inside, parameters hold what is made for them, a part at a time.

    Args:
        params: Tensors to overwrite.
        make_block: Makes the values of a stretch of `flatten(params)`; called once for each, in order.
        block_size: Largest number of entries of a stretch.
    """
    total = sum(param.numel() for param in params)
    places = [slice(k, min(k + block_size, total)) for k in range(0, total, block_size)]
    if can_swap_storage(params) and all(param.is_contiguous() for param in params):
        vector = torch.empty(total, dtype=params[0].dtype)
        for place in places:
            vector[place] = make_block(place)
        with swap_storage(params, unflatten(vector, params)):
            yield
        return
    with preserve(params):
        with torch.no_grad():
            if all(param.is_contiguous() for param in params):
                for place, pieces in iter_blocks(params, block_size):
                    torch._foreach_copy_(pieces, make_block(place).split([len(piece) for piece in pieces]))
            else:  # their entries are not in the order of the vector
                values = torch.cat([make_block(place) for place in places])
                torch._foreach_copy_(list(params), unflatten(values, params))
        yield


def axpy(params: Sequence[Tensor], directions: Sequence[Tensor], scale: float | Tensor) -> list[Tensor]:
    """`param + scale * direction` in new tensors, in one pass if the scale is a number."""
    with torch.no_grad():
        if isinstance(scale, Tensor) and scale.ndim:
            pairs = zip(params, directions, strict=True)
            return [torch.addcmul(param, d, broadcast_per_network(scale, d).to(d.dtype)) for param, d in pairs]
        if isinstance(scale, Tensor):
            steps = torch._foreach_mul(list(directions), scale.to(directions[0]))
            return list(torch._foreach_add(list(params), steps))
        return list(torch._foreach_add(list(params), list(directions), alpha=scale))


def can_swap_storage(params: Sequence[Tensor]) -> bool:
    """Whether parameters may hold other memory for a while, which saves copying their values there and back.

    Not where someone else may know the memory: on accelerators, where graphs are recorded with their addresses; where
    a parameter is a part of something larger, or has a class of its own; where two share it.
    """
    alone = all(
        param.is_cpu
        and type(param) in (nn.Parameter, Tensor)
        and param.untyped_storage().nbytes() == param.numel() * param.element_size()
        for param in params
    )
    return alone and 0 < len(params) == len({param.data_ptr() for param in params})


@contextmanager
def swap_storage(params: Sequence[Tensor], values: Sequence[Tensor]) -> Iterator[None]:
    """Inside, parameters hold other memory, afterwards their own again.

    Args:
        params: Tensors that are `replaceable`.
        values: Another tensor for each, of its shape and dtype.
    """
    own = [param.data for param in params]
    torch.clear_autocast_cache()
    try:
        for param, value in zip(params, values, strict=True):
            param.data = value
        yield
    finally:
        for param, value in zip(params, own, strict=True):
            param.data = value
        torch.clear_autocast_cache()


@contextmanager
def preserve(params: Sequence[Tensor]) -> Iterator[None]:
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
                copy_values(params, saved)
        torch.clear_autocast_cache()


def to_local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds: all of it, unless it is divided among processes."""
    if type(tensor) in (Tensor, nn.Parameter):
        return tensor
    part: Callable[[], Tensor] | None = getattr(tensor, "to_local", None)
    return tensor if part is None else part()


def copy_values(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copy values into tensors, each process those of the part that it holds."""
    torch._foreach_copy_([to_local(tensor) for tensor in tensors], [to_local(value) for value in values])


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """All entries in one vector, in order (a copy)."""
    return torch.cat([to_local(tensor.detach()).reshape(-1) for tensor in tensors])


def unflatten(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Views of the vector in the shapes of `like`: the inverse of `flatten`."""
    pieces = vector.split([tensor.numel() for tensor in like])
    return [piece.view(tensor.shape) for piece, tensor in zip(pieces, like, strict=True)]


def iter_blocks(tensors: Sequence[Tensor], block_size: int) -> Iterator[tuple[slice, list[Tensor]]]:
    """Stretches of `flatten(tensors)`, one after the other, without making it.

    Args:
        tensors: What would be flattened.
        block_size: Largest number of entries of a stretch.

    Yields:
        The stretch as a slice of the vector, and the pieces of the tensors that it is made of, as vectors of views.
    """
    start, held, pieces = 0, 0, list[Tensor]()
    for tensor in tensors:
        rest = to_local(tensor.detach()).reshape(-1)
        while len(rest):
            piece, rest = rest[: block_size - held], rest[block_size - held :]
            pieces.append(piece)
            held += len(piece)
            if held == block_size:
                yield slice(start, start + held), pieces
                start, held, pieces = start + held, 0, []
    if held:
        yield slice(start, start + held), pieces
