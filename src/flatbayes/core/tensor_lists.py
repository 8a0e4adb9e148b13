"""Operations on many tensors in few kernels: groups of bounded size, copies, and constants.

On an accelerator a kernel takes a few microseconds to launch, whatever it computes, so that an operation on each of
the hundreds of small tensors of a network costs more than the arithmetic. `torch._foreach_*` and operations on one
vector launch one kernel for many tensors, if these have one dtype and one device. An intermediate result for all
weights would need a further copy of them, so the tensors are processed in groups of at most `MAX_GROUP_ENTRIES`.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from flatbayes.core.devices import any_on_accelerator

MAX_GROUP_ENTRIES = 2**20
"""Largest number of entries of a group of several tensors: 4 MiB in float32, which an accelerator processes in about
the time in which it launches a kernel."""


class ReusableMemory:
    """Memory for one copy of the weights, which training reuses from step to step.

    The C library's allocator returns memory of this size to the system, or finds other memory for it in every step;
    both cost more than the arithmetic. The memory belongs to one user at a time.
    """

    def __init__(self) -> None:
        self._tensors = list[Tensor]()

    def take(self, like: Sequence[Tensor]) -> list[Tensor]:
        """Tensors with arbitrary values in the shapes and memory formats of others."""
        tensors, self._tensors = self._tensors, []
        if len(tensors) == len(like) and all(map(has_same_layout, tensors, like)):
            return tensors
        tensors.clear()  # before new memory is allocated
        return [torch.empty_like(tensor, requires_grad=False) for tensor in like]

    def put(self, tensors: list[Tensor]) -> None:
        """Keep the memory of tensors that are not used any more for the next call of `take`."""
        self._tensors = tensors

    def release(self) -> None:
        """Free the memory, where other large tensors follow."""
        self._tensors = []


def has_same_layout(tensor: Tensor, like: Tensor) -> bool:
    """Whether a tensor has the dtype, shape and strides of another one."""
    return tensor.dtype is like.dtype and tensor.shape == like.shape and tensor.stride() == like.stride()


def count_writes(tensor: Tensor) -> int:
    """Number of writes in place to a tensor; 0 if it or its memory was made in inference mode, which counts none."""
    try:
        return tensor._version
    except RuntimeError:
        return 0


def group_tensors(tensors: Sequence[Tensor], max_entries: int | None = None) -> list[list[int]]:
    """Indices of tensors that are processed together: of one dtype and device, and in bounded number.

    A group has at most `max_entries` entries, by default `MAX_GROUP_ENTRIES`, unless it is a single tensor.

    Returns:
        Groups that have every index once, each in ascending order.
    """
    max_entries = MAX_GROUP_ENTRIES if max_entries is None else max_entries
    if len({(t.dtype, t.device) for t in tensors}) == 1 and sum(t.numel() for t in tensors) <= max_entries:
        return [[*range(len(tensors))]]
    groups = list[list[int]]()
    last = dict[tuple[torch.dtype, torch.device], tuple[list[int], int]]()
    for k, tensor in enumerate(tensors):
        kind, size = (tensor.dtype, tensor.device), tensor.numel()
        group, total = last.get(kind, ([], 0))
        if not group or total + size > max_entries:
            group, total = [], 0
            groups.append(group)
        group.append(k)
        last[kind] = group, total + size
    return groups


def clone_tensors(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies in new memory, with one kernel for all tensors of a dtype and device."""
    with torch.no_grad():
        if not all(tensor.layout is torch.strided for tensor in tensors):
            return [tensor.clone() for tensor in tensors]
        copies = [torch.empty_like(tensor) for tensor in tensors]
        copy_values(copies, tensors)
        return copies


def to_local(tensor: Tensor) -> Tensor:
    """The shard of a tensor that this process holds; a tensor that is not sharded itself."""
    if type(tensor) in (Tensor, nn.Parameter):
        return tensor
    get_shard: Callable[[], Tensor] | None = getattr(tensor, "to_local", None)
    return tensor if get_shard is None else get_shard()


def copy_values(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copy values into tensors in place, with one kernel for all tensors of a dtype and device.

    Of sharded tensors every process copies its own shard.
    """
    targets, sources = [to_local(tensor) for tensor in tensors], [to_local(value) for value in values]
    if len({target.dtype for target in targets}) > 1:
        for group in group_tensors(targets, max_entries=sum(target.numel() for target in targets)):
            torch._foreach_copy_([targets[k] for k in group], [sources[k] for k in group])
    elif targets:
        torch._foreach_copy_(targets, sources)


def zero_tensors(like: Sequence[Tensor]) -> list[Tensor]:
    """Zeros like each of the tensors, in one kernel for all of a dtype and device, and each in memory of its own."""
    zeros = [torch.empty_like(tensor, requires_grad=False) for tensor in like]
    for group in group_tensors(zeros, max_entries=sum(tensor.numel() for tensor in zeros)):
        torch._foreach_zero_([zeros[k] for k in group])
    return zeros


def fill_with_zeros(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> list[Tensor]:
    """The tensor of each name of `like`, in its order, and zeros like its tensor where there is none."""
    missing = {name: tensor for name, tensor in like.items() if name not in tensors}
    zeros = dict(zip(missing, zero_tensors(list(missing.values())), strict=True))
    return [zeros[name] if name in zeros else tensors[name] for name in like]


def full_tensors(like: Sequence[Tensor], value: float) -> list[Tensor]:
    """Tensors of one value in the shapes of others: views of a vector, one kernel for all of a dtype and device."""
    if any(to_local(tensor) is not tensor for tensor in like):
        return [torch.full_like(tensor, value) for tensor in like]
    results = list(like)
    for group in group_tensors(like, max_entries=sum(tensor.numel() for tensor in like)):
        members = [like[k] for k in group]
        vector = members[0].new_full((sum(tensor.numel() for tensor in members),), value)
        for k, result in zip(group, unflatten(vector, members), strict=True):
            results[k] = result
    return results


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """Copy all entries into one vector, in order."""
    return torch.cat([to_local(tensor.detach()).reshape(-1) for tensor in tensors])


def flatten_wide(tensors: Sequence[Tensor]) -> Tensor:
    """The result of `flatten` in the dtype of `widen`, for averages and for what small steps change."""
    vector = flatten(tensors)
    return vector.to(widen(vector.dtype))


def widen(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums of such numbers: at least float32, since half precision rounds small changes to zero."""
    return torch.promote_types(dtype, torch.float32)


def unflatten(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Views of the vector in the shapes of `like`: the inverse of `flatten`."""
    pieces = vector.split([tensor.numel() for tensor in like])
    return [piece.view(tensor.shape) for piece, tensor in zip(pieces, like, strict=True)]


def map_elementwise(function: Callable[[Tensor], Tensor], tensors: Sequence[Tensor]) -> list[Tensor]:
    """Results of an elementwise function that has no `torch._foreach_` form, one per tensor.

    On an accelerator the function is called once per group, with all of its entries in one vector. On the CPU, where
    a call is cheap, and where vectors of other lengths are rounded otherwise, it is called for each tensor.
    """
    if not any_on_accelerator(tensors):
        return [function(tensor) for tensor in tensors]
    results = list(tensors)
    for group in group_tensors(tensors):
        members = [tensors[k] for k in group]
        vector = function(flatten(members))
        for k, result in zip(group, unflatten(vector, members), strict=True):
            results[k] = result
    return results
