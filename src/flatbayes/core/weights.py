"""Weight edits: the only code that changes weights in place, with contexts that restore them bit for bit.

`(w + e) - e` is not `w` in floating point, so weights are restored from a copy, or from the memory that they had,
also after an exception.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from flatbayes.core.devices import any_on_accelerator
from flatbayes.core.norms import broadcast_per_network
from flatbayes.core.padding import list_padding_rows
from flatbayes.core.tensor_lists import (
    ReusableMemory,
    clone_tensors,
    copy_values,
    group_tensors,
    has_same_layout,
    to_local,
    unflatten,
)
from flatbayes.core.traversal import list_parameters


def trainable_parameters(model: nn.Module) -> list[nn.Parameter]:
    """List the parameters that require gradients; a tied tensor counts once."""
    return [param for param in list_parameters(model) if param.requires_grad]


def perturb(
    params: Sequence[Tensor],
    directions: list[Tensor],
    scale: float | Tensor = 1.0,
    *,
    overwrite: bool = False,
    memory: ReusableMemory | None = None,
) -> AbstractContextManager[None]:
    """A context inside which every parameter is `param + scale * direction`.

    Args:
        params: Tensors to perturb.
        directions: One direction per parameter, of its shape. The list is emptied, and directions that nothing else
            holds are freed one by one while the perturbed weights are computed, so that both together need the
            memory of one copy; gradients can be freed before new ones are computed.
        scale: A number; or a tensor without dimensions, where reading it would wait for a device; or one number for
            each vectorized network.
        overwrite: Whether the perturbed weights may be computed in the memory of the directions.
        memory: Memory for them that is reused from call to call, where they do not overwrite the directions.
    """
    pending = directions[::-1]
    directions.clear()
    if not can_swap_storage(params):
        return _perturb_in_place(params, pending, scale)
    if overwrite:
        memory, pairs = None, zip(params, reversed(pending), strict=True)
        outputs = [direction if has_same_layout(direction, param) else None for param, direction in pairs]
    else:
        outputs = [None] * len(params) if memory is None else [*memory.take(params)]
    with torch.no_grad():
        values = [add_scaled(param, pending.pop(), scale, out) for param, out in zip(params, outputs, strict=True)]
    return swap_storage(params, values, memory)


@contextmanager
def _perturb_in_place(params: Sequence[Tensor], directions: list[Tensor], scale: float | Tensor) -> Iterator[None]:
    """The context of `perturb` for parameters whose memory stays where it is; the directions are in reverse order."""
    directions.reverse()
    groups = group_tensors(params)
    pending = [[directions[k] for k in group] for group in groups]
    directions.clear()
    saved = list[tuple[list[Tensor], list[Tensor]]]()
    clear_caches()
    try:
        for group in groups:
            tensors = [params[k] for k in group]
            saved.append((tensors, clone_tensors(tensors)))
            with torch.no_grad():
                copy_values(tensors, axpy(saved[-1][1], pending.pop(0), scale))
        yield
    finally:
        with torch.no_grad():
            for tensors, originals in reversed(saved):
                copy_values(tensors, originals)
        clear_caches()


@contextmanager
def swap_values(params: Sequence[Tensor], values: Sequence[Tensor]) -> Iterator[None]:
    """Inside, every parameter holds the given value, of its shape; another dtype or device is converted.

    Rows for padding, marked by `mark_padding_rows`, keep their own values.
    """
    rows = [row.detach() for row in list_padding_rows(params)]  # views
    own_rows = clone_tensors(rows)
    with preserve(params):
        with torch.no_grad():
            copy_values(params, values)
            copy_values(rows, own_rows)
        yield


@contextmanager
def write_blockwise(
    params: Sequence[Tensor], make_block: Callable[[slice], Tensor], block_size: int
) -> Iterator[None]:
    """Inside, parameters hold values that are computed block by block.

    Blocks of `flatten(params)` with at most `block_size` entries are computed in order, each by one call with its
    slice.
    """
    total = sum(param.numel() for param in params)
    block_slices = [slice(k, min(k + block_size, total)) for k in range(0, total, block_size)]
    are_contiguous = all(param.is_contiguous() for param in params)
    has_one_dtype = len({param.dtype for param in params}) == 1  # a view of a vector has the dtype of the vector
    if has_one_dtype and can_swap_storage(params) and are_contiguous:
        vector = torch.empty(total, dtype=params[0].dtype)
        for block_slice in block_slices:
            vector[block_slice] = make_block(block_slice)
        with swap_storage(params, unflatten(vector, params)):
            yield
        return
    with preserve(params):
        with torch.no_grad():
            if are_contiguous:
                for block_slice, pieces in iter_blocks(params, block_size):
                    torch._foreach_copy_(pieces, make_block(block_slice).split([len(piece) for piece in pieces]))
            else:  # their entries are in memory in another order than in the vector
                values = torch.cat([make_block(block_slice) for block_slice in block_slices])
                torch._foreach_copy_(list(params), unflatten(values, params))
        yield


def axpy(params: Sequence[Tensor], directions: Sequence[Tensor], scale: float | Tensor) -> list[Tensor]:
    """`param + scale * direction` in new tensors, in one pass if the scale is a number; see `perturb`."""
    pairs = zip(params, directions, strict=True)
    with torch.no_grad():
        if isinstance(scale, Tensor) and scale.ndim:
            return [add_scaled(param, direction, scale) for param, direction in pairs]
        directions = [d if d.dtype is p.dtype else d.to(p.dtype) for p, d in pairs]
        if isinstance(scale, Tensor):
            steps = list(torch._foreach_mul(directions, scale.to(directions[0].device, promoted_dtype(directions))))
            torch._foreach_add_(steps, list(params))
            return steps
        return list(torch._foreach_add(list(params), list(directions), alpha=scale))


def add_scaled(param: Tensor, direction: Tensor, scale: float | Tensor, out: Tensor | None = None) -> Tensor:
    """`param + scale * direction`, without gradients enabled, in `out`, such as the direction, or new memory."""
    if direction.dtype is not param.dtype:
        direction = direction.to(param.dtype)
    if not isinstance(scale, Tensor):
        return torch.add(param, direction, alpha=scale, out=out)
    if scale.ndim:
        return torch.addcmul(param, direction, broadcast_per_network(scale, direction).to(param.dtype), out=out)
    return torch.add(param, direction * scale, out=out)


def clear_caches() -> None:
    """Clear what does not follow edits: low-precision copies of autocast around several passes, parametrizations."""
    torch.clear_autocast_cache()
    clear_parametrizations()


def clear_parametrizations() -> None:
    """Clear the weights that parametrizations have computed within `torch.nn.utils.parametrize.cached`."""
    if parametrize._cache_enabled:
        parametrize._cache.clear()


def promoted_dtype(tensors: Iterable[Tensor]) -> torch.dtype:
    """The dtype of `flatten(tensors)`: that to which all of theirs are promoted."""
    return reduce(torch.promote_types, (tensor.dtype for tensor in tensors))


def can_swap_storage(params: Sequence[Tensor]) -> bool:
    """Whether parameters can point to other memory for a while, which saves copying their values there and back.

    False where other code may rely on the memory: on accelerators, whose graphs record its address; where a parameter
    is a view of a larger tensor or has a class of its own; where two parameters share memory.
    """
    if not params or any_on_accelerator(params):
        return False
    own_their_memory = all(
        type(param) in (nn.Parameter, Tensor) and param.untyped_storage().nbytes() == param.nbytes for param in params
    )
    return own_their_memory and len(params) == len({param.data_ptr() for param in params})


@contextmanager
def swap_storage(
    params: Sequence[Tensor], values: list[Tensor], memory: ReusableMemory | None = None
) -> Iterator[None]:
    """Inside, parameters point to the memory of other tensors; afterwards to their own again.

    `can_swap_storage` holds for the parameters; `memory` gets the other tensors afterwards.
    """
    own_data = [param.data for param in params]
    clear_caches()
    try:
        for param, value in zip(params, values, strict=True):
            param.data = value
        yield
    finally:
        for param, value in zip(params, own_data, strict=True):
            param.data = value
        clear_caches()
        if memory is not None:
            memory.put(values)


@contextmanager
def preserve(params: Sequence[Tensor]) -> Iterator[None]:
    """Restore the values of the parameters, of which there may be none, at the end."""
    saved = clone_tensors(params)
    clear_caches()
    try:
        yield
    finally:
        with torch.no_grad():
            copy_values(params, saved)
        clear_caches()


def iter_blocks(tensors: Sequence[Tensor], block_size: int) -> Iterator[tuple[slice, list[Tensor]]]:
    """Iterate over blocks of `flatten(tensors)` without computing that vector.

    Yields:
        The slice of the vector, and the views of the tensors that it consists of, each a vector.
    """
    start, size, pieces = 0, 0, list[Tensor]()
    for tensor in tensors:
        vector = to_local(tensor.detach()).reshape(-1)
        length, done = vector.numel(), 0
        while done < length:
            count = min(block_size - size, length - done)
            pieces.append(vector if count == length else vector[done : done + count])
            size, done = size + count, done + count
            if size == block_size:
                yield slice(start, start + size), pieces
                start, size, pieces = start + size, 0, []
    if size:
        yield slice(start, start + size), pieces
