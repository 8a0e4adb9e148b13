"""A pretend accelerator on a CPU build of torch: it checks shapes and devices, computes nothing, and counts.

Tensors on the CPU are real. Those on the device `pretend` are fake: `FakeTensorMode` knows their shape, dtype and
device, and refuses what the kernels of a device refuse. Everything that reaches the device is counted, with the line
of flatbayes that it comes from:

* launches: kernels and copies. A list operation, such as `_foreach_add_`, counts once where a device runs it as one
  kernel, and once per tensor where it does not (see `takes_one_kernel`);
* waits: the host reads a value of the device, or copies memory from it, or to it without `non_blocking`.

What the host reads is a positive number, True or 1, unless it is known (`known_values.py`). Not checked: numbers,
memory formats of kernels, cuDNN, NCCL, and a backward pass over two devices.

Torch has one device for private use, and registers it for the whole process: tests with this module run in a process
of their own (`make test-accelerator`).
"""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

import torch
import torch.optim.optimizer as torch_optimizer
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import flatbayes
from accelerator.known_values import NAME, is_on_device, make_values, propagate_values

NUM_DEVICES = 2
SOURCE = str(Path(flatbayes.__file__).parent)
VIEWS_AND_QUERIES = frozenset(
    """
    _reshape_alias _unsafe_view alias as_strided detach device diagonal empty empty_like empty_strided expand flatten
    is_pinned is_same_size lift_fresh movedim new_empty new_empty_strided permute prim_device select set_data slice
    split split_with_sizes squeeze t transpose unbind unflatten unsafe_split unsqueeze view view_as
    """.split()  # noqa: SIM905
)
"""Operations without a kernel."""
READS = frozenset({"_local_scalar_dense", "equal", "masked_select", "nonzero"})
"""Operations whose result, or its shape, depends on values; they are computed on the host here."""
ANSWERS = {("_check_independence", "_local_scalar_dense"): 0.0}
"""What a function of flatbayes reads that would refuse other numbers, by its name and the operation."""


class Backend(backend_registration._DummyBackendModule):
    """What `torch.cuda` is for CUDA devices, with generators whose state is a seed and a number of draws.

    Attributes:
        generator_states: State of the default generator of each device.
    """

    def __init__(self) -> None:
        self.generator_states = [torch.zeros(2, dtype=torch.int64) for _ in range(NUM_DEVICES)]

    def get_rng_state(self, device: torch.device | int = 0) -> Tensor:
        return self.generator_states[find_index(device)].clone().view(torch.uint8)

    def set_rng_state(self, state: Tensor, device: torch.device | int = 0) -> None:
        self.generator_states[find_index(device)] = state.clone().view(torch.int64)

    def manual_seed(self, seed: int) -> None:
        self.generator_states[0] = torch.tensor([seed, 0])

    def manual_seed_all(self, seed: int) -> None:
        self.generator_states = [torch.tensor([seed, 0]) for _ in range(NUM_DEVICES)]

    def count_draw(self, device: torch.device) -> None:
        """Advance the generator of a device."""
        self.generator_states[find_index(device)][1] += 1

    def device_count(self) -> int:
        return NUM_DEVICES

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]


def find_index(device: torch.device | int | str) -> int:
    """Index of a device; 0 if it has none."""
    return device if isinstance(device, int) else torch.device(device).index or 0


BACKEND = Backend()
backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=BACKEND)
DEVICE = torch.device(NAME, 0)


class PretendDeviceError(RuntimeError):
    """Something that a device would refuse."""


class _Shapes(FakeTensorMode):
    avoid_device_init = True  # constants are not moved to a device that does not exist


SHAPES = _Shapes(allow_non_fake_inputs=True)
"""Tensors of the device belong to this mode, also after a context has ended."""


class PretendDevice(TorchDispatchMode):
    """Inside, tensors may be on the device, and what reaches it is counted.

    Attributes:
        has_float64: Whether the device has float64.
        launches: Kernels and copies by line of flatbayes.
        waits: Reads and copies that the host waits for, by line of flatbayes and kind.
    """

    def __init__(self, *, has_float64: bool = True) -> None:
        super().__init__()
        self.has_float64 = has_float64
        self.launches: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation: on the host if no tensor of the device takes part, else for shapes only."""
        kwargs = dict(kwargs or {})
        target = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        check_generator(kwargs.get("generator"), target or next((tensor.device for tensor in tensors), None))
        if not any(map(is_on_device, tensors)) and (target is None or target.type != NAME):
            return func(*args, **kwargs)
        name = func._schema.name.split("::")[1]
        wait = find_wait(name, args, kwargs, target)
        if wait is not None:
            self.waits[f"{find_place()} ({wait})"] += 1
        if name in READS or (name in ("_to_copy", "copy_") and (target or args[0].device).type == "cpu"):
            return compute_on_host(func, name, args, kwargs)
        check_list_devices(name, tensors)
        if target is not None and target.index is None:
            kwargs["device"] = DEVICE
        if wait == "index by a mask":
            args = (args[0], [number_rows(index) for index in args[1]], *args[2:])
        with SHAPES:
            result = func(*args, **kwargs)
        propagate_values(func, args, kwargs, result)
        self._count(func, name, args, kwargs, [leaf for leaf in tree_leaves(result) if is_on_device(leaf)])
        return result

    def _count(self, func: Any, name: str, args: Any, kwargs: Any, results: list[Tensor]) -> None:
        if name not in VIEWS_AND_QUERIES:
            self.launches[find_place()] += 1 if takes_one_kernel(name, args) else len(args[0])
        if torch.Tag.nondeterministic_seeded in func.tags and kwargs.get("generator") is None and results:
            BACKEND.count_draw(results[0].device)
        if not self.has_float64 and any(tensor.dtype == torch.float64 for tensor in results):
            raise PretendDeviceError(f"The device has no float64: {name} at {find_place()} makes such a tensor.")


def find_wait(name: str, args: Any, kwargs: Any, target: torch.device | None) -> str | None:
    """What the host waits for in an operation; None if it does not wait."""
    if name in READS:
        return "read of a value" if name == "_local_scalar_dense" else name
    if name in ("index", "index_put", "index_put_"):  # one number is put without a wait
        has_mask = any(index is not None and index.dtype == torch.bool for index in args[1])
        return "index by a mask" if has_mask and (name == "index" or args[2].numel() > 1) else None
    if name == "_to_copy":
        source, goal = args[0].device.type, (target or args[0].device).type
    elif name in ("copy_", "_foreach_copy_"):
        pairs = [args[:2]] if name == "copy_" else list(zip(args[0], args[1], strict=True))
        crossing = [
            (right.device.type, left.device.type)
            for left, right in pairs
            if is_on_device(left) != is_on_device(right)
        ]
        source, goal = crossing[0] if crossing else ("", "")
    else:
        return None
    is_asynchronous = kwargs.get("non_blocking", False) or (name != "_to_copy" and len(args) > 2 and args[2])
    if source == goal or (is_asynchronous and goal == NAME):
        return None
    return "copy to the device" if goal == NAME else "copy to the host"


def number_rows(index: Tensor | None) -> Tensor | None:
    """The integers of a mask in an index, all of which is taken to be True."""
    if index is None or index.dtype != torch.bool:
        return index
    return torch.arange(index.numel()).to(torch.int64)


def compute_on_host(func: Any, name: str, args: Any, kwargs: Any) -> Any:
    """The result of an operation whose result depends on values of the device."""
    frame = find_frame()
    if frame is not None and (frame.f_code.co_name, name) in ANSWERS:
        return ANSWERS[frame.f_code.co_name, name]
    result = func(*(make_values(arg) if is_on_device(arg) else arg for arg in args), **kwargs)
    if name not in ("masked_select", "nonzero"):
        return result
    with SHAPES:
        return torch.ops.aten._to_copy(result, device=DEVICE)


def check_list_devices(name: str, tensors: list[Tensor]) -> None:
    """Refuse list operations over several devices, which `FakeTensorMode` lets pass.

    Raises:
        PretendDeviceError: It is one.
    """
    devices = {str(tensor.device) for tensor in tensors}
    if name.startswith(("_foreach", "_fused")) and "copy" not in name and len(devices) > 1:
        raise PretendDeviceError(f"{name} has tensors on several devices, {' and '.join(sorted(devices))}.")


def check_generator(generator: torch.Generator | None, device: torch.device | None) -> None:
    """Refuse a generator of another device.

    Args:
        generator: The generator; None for the default one.
        device: Device of the result; None for the CPU.

    Raises:
        PretendDeviceError: It is of another device.
    """
    if generator is not None:
        expected, actual = "cpu" if device is None else device.type, find_generator_device(generator).type
        if actual != expected:
            raise PretendDeviceError(f"Expected a '{expected}' device type for generator but found '{actual}'.")


def takes_one_kernel(name: str, args: Any) -> bool:
    """Whether an operation is one kernel: a list operation only for one dtype, and equal strides in each position."""
    if not name.startswith(("_foreach", "_fused")):
        return True
    lists = [arg for arg in args if isinstance(arg, list | tuple) and arg and isinstance(arg[0], Tensor)]
    has_one_dtype = len({tensor.dtype for tensors in lists for tensor in tensors}) == 1
    return has_one_dtype and all(len({tensor.stride() for tensor in row}) == 1 for row in zip(*lists, strict=False))


def find_frame() -> FrameType | None:
    """The innermost frame of flatbayes on the stack; None in the threads of the backward pass, and in tests."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not frame.f_code.co_filename.startswith(SOURCE):
        frame = frame.f_back
    return frame


def find_place() -> str:
    """File and line of `find_frame`."""
    frame = find_frame()
    return "backward" if frame is None else f"{frame.f_code.co_filename[len(SOURCE) + 1 :]}:{frame.f_lineno}"


class _Generator(torch.Generator):
    """A generator that is said to be on the device; its numbers are those of the CPU."""

    def __new__(cls, device: Any = "cpu") -> "_Generator":
        generator = super().__new__(cls, "cpu")
        if torch.device(device).type == NAME:
            _GENERATORS[generator._cdata] = generator
        return generator

    def __init__(self, device: Any = "cpu") -> None:
        pass

    @property
    def device(self) -> torch.device:
        return find_generator_device(self)


_GENERATORS: dict[int, torch.Generator] = {}
"""Generators of the device by their C++ address; they are kept, so that no other one gets it."""


def find_generator_device(generator: torch.Generator) -> torch.device:
    """The device that a generator was made for."""
    return DEVICE if generator._cdata in _GENERATORS else torch.device("cpu")


def _apply_to_module(module: nn.Module, fn: Any, recurse: bool = True) -> nn.Module:
    """`nn.Module._apply`, which cannot put a fake tensor in place of a real one; shared tensors stay shared."""
    converted: dict[int, Any] = {}
    for child in module.modules():
        for name, param in child._parameters.items():
            if param is not None:
                if id(param) not in converted:
                    with torch.no_grad():
                        converted[id(param)] = nn.Parameter(fn(param).detach(), param.requires_grad)
                child._parameters[name] = converted[id(param)]
        for name, buffer in child._buffers.items():
            if buffer is not None:
                if id(buffer) not in converted:
                    converted[id(buffer)] = fn(buffer)
                child._buffers[name] = converted[id(buffer)]
    return module


def _find_address(tensor: Tensor) -> int:
    """`Tensor.data_ptr`, which is the same for all fake tensors: one address per storage and offset."""
    if is_on_device(tensor):
        return tensor.untyped_storage().data_ptr() + tensor.storage_offset() * tensor.element_size()
    return torch._C.TensorBase.data_ptr(tensor)


def _find_storage_address(storage: torch.UntypedStorage) -> int:
    """`UntypedStorage.data_ptr`, with an address for the memory of fake tensors too."""
    return int(storage._cdata if storage.device.type == "meta" else torch._C.StorageBase.data_ptr(storage))


@contextmanager
def pretend_device(*, has_float64: bool = True) -> Iterator[PretendDevice]:
    """Inside, the device exists: tensors, modules and generators can be on it.

    Args:
        has_float64: Whether the device has float64.
    """
    list_types = [*torch_optimizer._foreach_supported_types, FakeTensor]
    with ExitStack() as stack:
        stack.enter_context(patch.object(torch, "Generator", _Generator))
        stack.enter_context(patch.object(nn.Module, "_apply", _apply_to_module))
        stack.enter_context(patch.object(Tensor, "data_ptr", _find_address))
        stack.enter_context(patch.object(torch.UntypedStorage, "data_ptr", _find_storage_address))
        stack.enter_context(patch.object(torch_optimizer, "_foreach_supported_types", list_types))
        torch._C._set_only_lift_cpu_tensors(True)  # else torch.tensor would initialise the device
        stack.callback(torch._C._set_only_lift_cpu_tensors, False)
        yield stack.enter_context(PretendDevice(has_float64=has_float64))
