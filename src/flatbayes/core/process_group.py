"""Process group of data-parallel training: rank, size, and collective operations on Python objects and tensors."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from flatbayes.core.buffers import norm_layers
from flatbayes.core.devices import widest_float_dtype

T = TypeVar("T")


class RemoteProcessError(RuntimeError):
    """Another process failed; that process raises the error itself."""


@dataclass(frozen=True)
class ProcessGroupInfo:
    """Rank and size of the process group. Every process must call each of the collective methods.

    Tensors in picklable values arrive in main memory: pickled on a device, they would open it in every process.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_main_process(self) -> bool:
        """Whether this process prints and writes files."""
        return self.rank == 0

    def all_gather(self, value: T) -> list[T]:
        """The picklable values of all processes, in order of rank, in all of them."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, move_tensors_to_cpu(value))
        return values

    def broadcast(self, value: T) -> T:
        """The picklable value of the main process, in all of them."""
        if self.size == 1:
            return value
        values = [move_tensors_to_cpu(value) if self.is_main_process else None]
        dist.broadcast_object_list(values)
        return values[0]  # type: ignore[return-value]

    def run_on_main(self, function: Callable[[], T]) -> T | None:
        """Run a function in the main process, such as creating a folder, before any other process continues.

        Returns:
            Its result in the main process, None in the others.

        Raises:
            RemoteProcessError: It failed, in the other processes; the main process raises the error itself.
        """
        result, error = None, None
        if self.is_main_process:
            try:
                result = function()
            except Exception as caught:
                error = caught
        message = self.broadcast(None if error is None else str(error))
        if error is not None:
            raise error
        if message is not None:
            raise RemoteProcessError(message)
        return result

    def read_on_main(self, read: Callable[[], T | None]) -> T | None:
        """The picklable result of a function that runs in the main process, in all of them.

        Raises:
            RemoteProcessError: It failed, in the other processes; the main process raises the error itself.
        """
        return self.broadcast(self.run_on_main(read))

    def broadcast_tensors(self, tensors: Sequence[Tensor]) -> None:
        """Copy the values of the main process to the tensors of all processes, in place."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), 0)

    def synchronize_buffers(self, module: nn.Module, updated_buffers: Collection[str] | None = None) -> None:
        """Average the running statistics of normalization layers; copy other buffers from the main process.

        A running statistic is linear in the batch statistics, so averaging at the end of an epoch equals averaging at
        every step. The result is the mean over the shares of each batch; for variances it leaves out the variance of
        the means of the shares. The statistics of frozen layers, which are not in `updated_buffers`, are copied,
        which does not round.
        """
        if self.size == 1:
            return
        statistics = {
            id(buffer)
            for norm in norm_layers(module, updated_buffers)
            for buffer in norm.buffers(recurse=False)
            if buffer.is_floating_point()
        }
        for buffer in module.buffers():
            if id(buffer) in statistics:
                dist.all_reduce(buffer.div_(self.size))
            else:
                dist.broadcast(buffer, 0)

    def average_over_examples(self, value: float, count: int, device: torch.device) -> float:
        """The mean over the examples of all processes; `value` is that of this process, ignored without examples."""
        if self.size == 1:
            return value
        sums = torch.tensor(
            [value * count if count else 0.0, float(count)], dtype=widest_float_dtype(device), device=device
        )
        dist.all_reduce(sums)
        total, num_examples = sums.tolist()
        return float(total / num_examples)


def move_tensors_to_cpu(value: T) -> T:
    """The value with the tensors of its lists, tuples and dictionaries in main memory."""
    return tree_map(lambda leaf: leaf.cpu() if isinstance(leaf, Tensor) else leaf, value)  # type: ignore[no-any-return]


def get_process_group_info() -> ProcessGroupInfo:
    """Rank and size of this program's process group; a group of one if it has none.

    Examples:
        >>> world = get_process_group_info()
        >>> world.rank, world.size
        (0, 1)
    """
    if dist.is_available() and dist.is_initialized():
        return ProcessGroupInfo(dist.get_rank(), dist.get_world_size())
    return ProcessGroupInfo()


def contiguous_slice(length: int, world: ProcessGroupInfo) -> slice:
    """The consecutive indices below `length` that belong to this process; sizes differ by at most one."""
    return slice(length * world.rank // world.size, length * (world.rank + 1) // world.size)
