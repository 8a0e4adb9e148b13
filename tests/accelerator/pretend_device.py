"""A pretend accelerator on a CPU build of torch: it checks shapes and devices, computes nothing, and counts.

Tensors on the CPU are real. Those on the device `pretend` are fake: `FakeTensorMode` knows their shape, dtype and
device, and refuses what the kernels of a device refuse. Everything that reaches the device is counted, with the line
of flatbayes that it comes from:

* launches: kernels. A list operation, such as `_foreach_add_`, counts once where a device runs it as one kernel, and
  once per tensor where it does not (see `takes_fused_kernel`);
* waits: the host reads a value of the device, or copies memory to or from it;
* float64 tensors that are made on the device, which some devices do not have.

A value that is read is a positive number, True or 1. What it cannot check: numbers, memory formats of kernels, cuDNN,
NCCL, and a backward pass over two devices.

Torch has one device for private use, and registers it for the whole process: tests with this module run in a process
of their own (`make test-accelerator`).
"""

import math
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
from torch.utils._pytree import tree_leaves, tree_map

import flatbayes

NAME = "pretend"
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
WAITING = frozenset({"equal", "is_nonzero", "masked_select", "nonzero", "unique_dim", "_unique2"})
"""Operations whose result, or its shape, the host reads."""


ANSWERS = {("_check_independence", "_local_scalar_dense"): 0.0}
"""What functions of flatbayes read that would refuse the numbers of the device."""


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


def find_index(device: torch.device | int) -> int:
    """Index of a device; 0 if it has none."""
    return (device.index or 0) if isinstance(device, torch.device) else device


BACKEND = Backend()
backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=BACKEND)


class PretendDeviceError(RuntimeError):
    """Something that a device would refuse."""


class _Shapes(FakeTensorMode):
    avoid_device_init = True  # constants are not moved to a device that does not exist


class PretendDevice(TorchDispatchMode):
    """Inside, tensors may be on the device, and what reaches it is counted.

    Attributes:
        launches: Kernels by line of flatbayes.
        waits: Reads by the host by line of flatbayes, each with its operation.
        float64: Operations with a float64 result on the device, by line.
    """

    def __init__(self, *, allow_float64: bool = True) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.float64: Counter[str] = Counter()
        self.allow_float64 = allow_float64
        self.shapes = _Shapes(allow_non_fake_inputs=True)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[1]
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        devices = {tensor.device.type for tensor in tensors}
        target = kwargs.get("device")
        reaches_device = NAME in devices or (target is not None and torch.device(target).type == NAME)
        if not reaches_device:
            return func(*args, **kwargs)
        if name in WAITING:
            self._record_wait(name)
        if "copy" in name:
            self._check_copy(name, tensors, args, kwargs)
        if name in ("_local_scalar_dense", "equal", "nonzero", "masked_select") or (
            name in ("_to_copy", "copy_") and (target or args[0].device).type == "cpu"
        ):
            return self._read(func, name, args, kwargs)
        is_list = name.startswith("_foreach") or name.startswith("_fused")
        if is_list and "copy" not in name and len(devices) > 1:
            raise PretendDeviceError(f"Tensors of a list operation are on several devices: {name} on {devices}.")
        check_generator(kwargs.get("generator"), tensors, target)
        if target is not None and torch.device(target).index is None and torch.device(target).type == NAME:
            kwargs["device"] = torch.device(NAME, 0)
        with self.shapes:
            result = func(*args, **kwargs)
        propagate_values(func, name, args, kwargs, result)
        if torch.Tag.nondeterministic_seeded in func.tags and kwargs.get("generator") is None:
            BACKEND.count_draw(tree_leaves(result)[0].device)
        if name not in VIEWS_AND_QUERIES:
            is_fused = not is_list or takes_fused_kernel(args)
            self.launches[find_place()] += 1 if is_fused else len(args[0])
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.dtype == torch.float64 and tensor.device.type == NAME:
                self.float64[f"{find_place()} ({name})"] += 1
                if not self.allow_float64:
                    raise PretendDeviceError(f"The device has no float64: {name} at {find_place()}")
        return result

    def _read(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        """The result, on the host, of an operation that reads a tensor of the device."""
        args = tuple(make_values(arg) if is_on_device(arg) else arg for arg in args)
        if name == "_local_scalar_dense":
            self._record_wait("read of a value")
        frame = find_frame()
        if frame is not None and (frame.f_code.co_name, name) in ANSWERS:
            return ANSWERS[frame.f_code.co_name, name]
        result = func(*args, **kwargs)
        if name not in ("nonzero", "masked_select"):
            return result
        with self.shapes:
            return torch.ops.aten._to_copy(result, device=torch.device(NAME, 0))

    def _record_wait(self, action: str) -> None:
        self.waits[f"{find_place()} ({action})"] += 1

    def _check_copy(self, name: str, tensors: list[Tensor], args: Any, kwargs: Any) -> None:
        """Count a copy between the device and memory of the host that is not asynchronous."""
        if name == "_to_copy":
            to_device, target = args[0].device.type == "cpu", torch.device(kwargs.get("device") or args[0].device)
            if target.type == args[0].device.type:
                return
            is_asynchronous = kwargs.get("non_blocking", False)
        elif name == "copy_":
            to_device = args[0].device.type == NAME
            if args[0].device.type == args[1].device.type:
                return
            is_asynchronous = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
        elif name == "_foreach_copy_":
            pairs = list(zip(*args[:2], strict=True))
            if all(left.device.type == right.device.type for left, right in pairs):
                return
            to_device, is_asynchronous = args[0][0].device.type == NAME, False
        else:
            return
        if not (to_device and is_asynchronous):
            self._record_wait("copy to the device" if to_device else "copy to the host")


def is_on_device(value: Any) -> bool:
    """Whether this is a tensor on the device."""
    return isinstance(value, Tensor) and value.device.type == NAME


def make_values(tensor: Tensor) -> Tensor:
    """What the host reads of a tensor: its known values, else positive numbers that differ, or True."""
    values: Tensor | None = getattr(tensor, "known_values", None)
    if values is not None:
        return values.clone()
    if not tensor.dtype.is_floating_point:
        return torch.ones(tensor.shape, dtype=tensor.dtype)
    return torch.linspace(0.5, 1.5, tensor.numel()).reshape(tensor.shape).to(tensor.dtype)


def propagate_values(func: Any, name: str, args: Any, kwargs: Any, result: Any) -> None:
    """Keep the values of a result on the device where they are known: counters, constants, and checks for NaN.

    Values are known of constants of one element, of comparisons that are equal for all finite numbers, and of what is
    computed from known values alone.
    """
    if not isinstance(result, FakeTensor):
        return
    if name in ("eq", "ne") and (args[0] is args[1] or (isinstance(args[1], float) and math.isinf(args[1]))):
        is_true = (name == "eq") == (args[0] is args[1])
        result.known_values = torch.tensor(is_true).expand(result.shape)
        return
    sources = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    if (
        any(is_on_device(tensor) and not hasattr(tensor, "known_values") for tensor in sources)
        or (not sources and result.numel() > 1)
        or any(not is_on_device(tensor) and tensor.numel() > 1 for tensor in sources)
        or "rand" in name
    ):
        if hasattr(result, "known_values"):  # changed in place by unknown values
            del result.known_values
        return
    to_known = lambda leaf: leaf.known_values if is_on_device(leaf) else leaf  # noqa: E731
    args, kwargs = tree_map(to_known, (args, kwargs))
    if "device" in kwargs:
        kwargs = kwargs | {"device": "cpu"}
    values = func(*args, **kwargs)
    result.known_values = values.clone() if name == "_to_copy" else values


def takes_fused_kernel(args: Any) -> bool:
    """Whether a list operation is one kernel: lists of one dtype, and in each position tensors of one stride."""
    lists = [arg for arg in args if isinstance(arg, list | tuple) and arg and isinstance(arg[0], Tensor)]
    if len({tensor.dtype for tensors in lists for tensor in tensors}) > 1:
        return False
    return all(len({tensor.stride() for tensor in group}) == 1 for group in zip(*lists, strict=False))


def check_generator(generator: torch.Generator | None, tensors: list[Tensor], target: Any) -> None:
    """Refuse a generator of another device, as kernels do."""
    if generator is not None:
        expected = torch.device(target).type if target is not None else tensors[0].device.type
        found = find_generator_device(generator).type
        if found != expected:
            raise PretendDeviceError(f"Expected a '{expected}' device type for generator but found '{found}'")


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
        made = super().__new__(cls, "cpu")
        if torch.device(device).type == NAME:
            _GENERATORS[made._cdata] = made
        return made

    def __init__(self, device: Any = "cpu") -> None:
        pass

    @property
    def device(self) -> torch.device:
        return find_generator_device(self)


_GENERATORS: dict[int, torch.Generator] = {}
"""Generators of the device by their C++ address; they are kept, so that no other one gets it."""


def find_generator_device(generator: torch.Generator) -> torch.device:
    """The device that a generator was made for."""
    return torch.device(NAME, 0) if generator._cdata in _GENERATORS else torch.device("cpu")


def _apply_to_module(module: nn.Module, fn: Any, recurse: bool = True) -> nn.Module:
    """`nn.Module._apply`, which cannot put a fake tensor in the place of a real one; shared tensors stay shared."""
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


@contextmanager
def pretend_device(*, allow_float64: bool = True) -> Iterator[PretendDevice]:
    """Inside, the device exists: tensors, modules and generators can be on it.

    Args:
        allow_float64: Whether the device has float64.
    """
    fused_types = [*torch_optimizer._foreach_supported_types, FakeTensor]
    with ExitStack() as stack:
        stack.enter_context(patch.object(torch, "Generator", _Generator))
        torch._C._set_only_lift_cpu_tensors(True)  # else torch.tensor initialises the device
        stack.callback(torch._C._set_only_lift_cpu_tensors, False)
        stack.enter_context(patch.object(nn.Module, "_apply", _apply_to_module))
        stack.enter_context(patch.object(torch_optimizer, "_foreach_supported_types", fused_types))
        yield stack.enter_context(PretendDevice(allow_float64=allow_float64))
    _GENERATORS.clear()
