"""How code behaves on an accelerator: the only code that asks for the type of a device in a step or a prediction.

Three things differ. Reading a value on the host waits for the device, so a step reads none. The memory of weights
stays where it is, since recorded graphs hold its address. Some devices have no float64.

Tests run these code paths without an accelerator: inside `treat_cpu_as_accelerator()`, tensors on the CPU take them.

    is_accelerator(weights)             whether host code may not read a value of this tensor
    widest_float_dtype(weights)         float64, or float32 where there is none
    iter_row_blocks(probs)              rows that fit the cache of a CPU; all rows of an accelerator
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

DEVICES_WITHOUT_FLOAT64 = frozenset({"mps"})
"""Types of device whose tensors have at most float32: Apple's GPUs."""
BLOCK_ELEMENTS = 2**16
"""Number of values in a block of rows: 512 KiB in float64, which fits the cache of a core."""


@dataclass(frozen=True)
class _DeviceOverride:
    cpu_is_accelerator: bool = False
    has_float64: bool = True


_NO_OVERRIDE = _DeviceOverride()
_override = _NO_OVERRIDE


def is_accelerator(where: Tensor | torch.device) -> bool:
    """Whether a tensor or device is not the CPU: host code then neither reads values nor replaces memory."""
    is_cpu = where.is_cpu if isinstance(where, Tensor) else where.type == "cpu"
    return not is_cpu or _override.cpu_is_accelerator


def any_on_accelerator(tensors: Iterable[Tensor]) -> bool:
    """Whether `is_accelerator` holds for any of the tensors."""
    return _override.cpu_is_accelerator or not all(tensor.is_cpu for tensor in tensors)


def has_float64(where: Tensor | torch.device) -> bool:
    """Whether a device has float64."""
    device = where.device if isinstance(where, Tensor) else where
    return device.type not in DEVICES_WITHOUT_FLOAT64 and (_override.has_float64 or not is_accelerator(device))


def widest_float_dtype(where: Tensor | torch.device) -> torch.dtype:
    """The most exact real dtype of a device: float64, or float32 where there is none."""
    return torch.float64 if has_float64(where) else torch.float32


def to_double(tensor: Tensor) -> Tensor:
    """The tensor in float64, moved to the CPU if its device has no float64.

    For results that the host reads anyway; it waits for a device that has no float64.
    """
    return (tensor if has_float64(tensor) else tensor.cpu()).double()


def move_tensor(tensor: Tensor, device: torch.device | str, *, non_blocking: bool = False) -> Tensor:
    """The tensor on another device, as float32 if it is float64 and the device has none."""
    is_narrowed = tensor.dtype == torch.float64 and not has_float64(torch.device(device))
    return tensor.to(device, torch.float32 if is_narrowed else tensor.dtype, non_blocking=non_blocking)


def iter_row_blocks(values: Tensor) -> Iterator[slice]:
    """Slices of rows with at most `BLOCK_ELEMENTS` values, at least one row each; on an accelerator all rows at once.

    Several operations on such a block read the memory once, and their intermediate results stay in the cache. On an
    accelerator they would launch more kernels.
    """
    num_rows = len(values)
    size = num_rows if is_accelerator(values) else BLOCK_ELEMENTS * num_rows // max(1, values.numel())
    return (slice(start, min(start + max(1, size), num_rows)) for start in range(0, num_rows, max(1, size)))


@contextmanager
def treat_cpu_as_accelerator(*, has_float64: bool = True) -> Iterator[None]:
    """A test aid: inside, tensors on the CPU take the code paths of an accelerator.

    It holds for the whole process, other threads included.
    """
    global _override
    outer = _override
    _override = _DeviceOverride(cpu_is_accelerator=True, has_float64=has_float64)
    try:
        yield
    finally:
        _override = outer
