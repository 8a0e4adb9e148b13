"""Buffers and training flags: restored after a pass, and re-estimation of normalisation statistics."""

import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy

from flatbayes.core.input_trees import ModelInputs
from flatbayes.core.tensor_lists import clone_tensors, copy_values
from flatbayes.core.traversal import list_modules
from flatbayes.core.weights import swap_values

Marks = list[tuple[Tensor, int, int]]
"""Tensors, each with the number of its changes in place and the address of its memory."""


@contextmanager
def preserve_buffers(model: nn.Module, others: Sequence[Tensor] = ()) -> Iterator[None]:
    """Restore all buffers and training flags, and the other tensors, at the end, bit for bit."""
    modules = list_modules(model)
    flags = [module.training for module in modules]
    places = [
        (module, name, buffer)
        for module in modules
        if module._buffers
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    saved = clone_tensors([buffer for *_, buffer in places]) if places else []
    saved_others = clone_tensors(others) if others else []
    try:
        yield
    finally:
        _restore_training_flags(modules, flags)
        if others:
            with torch.no_grad():
                copy_values(others, saved_others)
        if places:
            _restore_buffers(places, saved)


def mark_frozen(params: Iterable[nn.Parameter]) -> Marks:
    """Marks of the parameters without gradients, by which `find_changed` finds those that a forward pass changes."""
    frozen = [param for param in params if not (param.requires_grad or is_lazy(param) or param.is_inference())]
    return [(param, param._version, param.data_ptr()) for param in frozen]


def find_changed(marks: Marks) -> list[Tensor]:
    """The parameters whose values may have changed since they were marked, such as those of a momentum encoder."""
    return [
        tensor for tensor, version, address in marks if (tensor._version, tensor.data_ptr()) != (version, address)
    ]


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in eval mode; afterwards each module has the mode it had."""
    modules = list_modules(model)
    flags = [module.training for module in modules]
    try:
        if any(flags):
            model.eval()
        yield
    finally:
        _restore_training_flags(modules, flags)


def set_training_mode(model: nn.Module) -> None:
    """Set training mode, except in frozen normalisation layers, whose running statistics stay as they are."""
    model.train()
    for layer in find_frozen_norms(model):
        layer.training = False  # not of modules within, such as the dropout of a fused layer


def find_frozen_norms(model: nn.Module) -> list[_NormBase]:
    """List the normalisation layers with running statistics of which no parameter requires gradients.

    A layer without parameters is frozen if the module that it belongs to, the smallest one with parameters, is.
    """
    if not any(isinstance(module, _NormBase) for module in list_modules(model)):
        return []
    modules = dict(model.named_modules())

    def is_frozen(name: str) -> bool:
        params = list(modules[name].parameters())
        if not params and name:
            return is_frozen(name.rpartition(".")[0])
        return not any(param.requires_grad for param in params)

    return [
        module
        for name, module in modules.items()
        if isinstance(module, _NormBase) and module.running_mean is not None and is_frozen(name)
    ]


def clone_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all buffers by name."""
    return {name: buffer.detach().clone() for name, buffer in model.named_buffers()}


def list_buffers(model: nn.Module) -> dict[str, Tensor | None]:
    """All buffers by name, persistent or not, without copies; None for one without a value."""
    return {
        f"{prefix}.{name}".removeprefix("."): buffer
        for prefix, module in model.named_modules()
        for name, buffer in module._buffers.items()
    }


@torch.no_grad()
def load_buffers(
    model: nn.Module, buffers: Mapping[str, Tensor | None], persistent: Collection[str] | None = None
) -> None:
    """Put values of `list_buffers` into a model, in place where the shape and dtype are the same.

    A forward pass may have created, resized or removed buffers before or since. Of those that are created here,
    `persistent` are part of the state dict; None is for all.
    """
    modules = dict(model.named_modules())
    device = next((param.device for param in model.parameters()), torch.device("cpu"))
    for name, saved in buffers.items():
        prefix, _, attribute = name.rpartition(".")
        owner = modules.get(prefix)
        if owner is None:
            continue
        current = owner._buffers.get(attribute)
        if saved is not None and current is not None and (current.shape, current.dtype) == (saved.shape, saved.dtype):
            current.copy_(saved)
            continue
        value = None if saved is None else saved.detach().clone().to(device if current is None else current.device)
        if attribute in owner._buffers:
            owner._buffers[attribute] = value
        elif not hasattr(owner, attribute):
            owner.register_buffer(attribute, value, persistent=persistent is None or name in persistent)


def find_updated_buffers(model: nn.Module, previous: Mapping[str, Tensor]) -> frozenset[str]:
    """Names of the buffers whose values differ from those of an earlier `clone_buffers`."""
    updated: set[str] = set()
    flags_by_device: dict[torch.device, dict[str, Tensor]] = {}
    for name, buffer in model.named_buffers():
        other = previous.get(name)
        if other is None or buffer.shape != other.shape or buffer.dtype != other.dtype:
            updated.add(name)
        else:
            flags_by_device.setdefault(buffer.device, {})[name] = _are_equal(buffer, other)
    for flags in flags_by_device.values():  # one read for all buffers of a device
        are_equal = torch.stack(list(flags.values())).tolist()
        updated.update(name for name, is_equal in zip(flags, are_equal, strict=True) if not is_equal)
    return frozenset(updated)


def norm_layers(model: nn.Module, updated_buffers: Collection[str] | None = None) -> list[_NormBase]:
    """List the normalisation layers whose running statistics follow the data in training.

    `updated_buffers` are those that training updated, of which those of frozen layers are left out here; None is for
    all layers with running statistics and a momentum.
    """
    if not any(isinstance(module, _NormBase) for module in list_modules(model)):
        return []
    layers = {name: m for name, m in model.named_modules() if isinstance(m, _NormBase) and m.running_mean is not None}
    return [
        layer
        for name, layer in layers.items()
        if layer.momentum != 0
        and (
            updated_buffers is None
            or any(f"{name}.{key}".removeprefix(".") in updated_buffers for key in layer._buffers)
        )
    ]


def reestimate_norm_statistics(
    model: nn.Module, batches: Iterable[ModelInputs], updated_buffers: Collection[str] | None = None
) -> dict[str, Tensor]:
    """Running statistics of the current weights, each the plain average over the batches.

    Only normalisation layers run in training mode, so dropout is off. The model is unchanged afterwards.

    Returns:
        The re-estimated buffers by name, for `swap_buffers`; those of layers that the network does not call are left
        out.
    """
    norms = norm_layers(model, updated_buffers)
    names = {id(module): name for name, module in model.named_modules()}
    momenta, num_calls = [norm.momentum for norm in norms], dict.fromkeys(map(id, norms), 0)

    def average_next_call(norm: nn.Module, _: object) -> None:
        # A momentum of None averages too, but not in InstanceNorm, nor in every subclass of a user.
        if isinstance(norm, _NormBase):
            if num_calls[id(norm)] == 0:
                norm.reset_running_stats()
            num_calls[id(norm)] += 1
            norm.momentum = 1 / num_calls[id(norm)]

    handles = [norm.register_forward_pre_hook(average_next_call) for norm in norms]
    try:
        with preserve_buffers(model), torch.no_grad():
            model.eval()
            for norm in norms:
                norm.training = True  # not of modules within, such as the dropout of a fused layer
            # Compiled code does not call new hooks. Without dynamo, which is slow to import, there is none.
            is_compiled = "torch._dynamo" in sys.modules
            with torch.compiler.set_stance("force_eager") if is_compiled else nullcontext():
                for batch in batches:
                    model(batch)
            return {
                f"{names[id(norm)]}.{name}".removeprefix("."): buffer.clone()
                for norm in norms
                if num_calls[id(norm)]
                for name, buffer in norm.named_buffers(recurse=False)
            }
    finally:
        for handle, norm, momentum in zip(handles, norms, momenta, strict=True):
            handle.remove()
            norm.momentum = momentum


def swap_buffers(model: nn.Module, values: dict[str, Tensor]) -> AbstractContextManager[None]:
    """Inside, buffers of the model hold other values."""
    buffers = dict(model.named_buffers())
    return swap_values([buffers[name] for name in values], list(values.values()))


def _restore_training_flags(modules: Sequence[nn.Module], flags: Sequence[bool]) -> None:
    for module, flag in zip(modules, flags, strict=True):
        if module.training is not flag:  # setting an attribute of a module is slow
            module.training = flag


@torch.no_grad()
def _restore_buffers(places: Sequence[tuple[nn.Module, str, Tensor]], values: Sequence[Tensor]) -> None:
    for (*_, buffer), value in zip(places, values, strict=True):
        if buffer.shape != value.shape:  # it was resized in place, as by the observers of a quantization
            buffer.resize_(value.shape)
    copy_values([buffer for *_, buffer in places], values)
    for module, name, buffer in places:
        is_in_place = name in module._buffers and module._buffers[name] is buffer
        if not is_in_place:  # it was replaced by another tensor
            setattr(module, name, buffer)


def _are_equal(buffer: Tensor, previous: Tensor) -> Tensor:
    """Whether all values are equal, on the device; one that is not a number equals itself."""
    if buffer.is_floating_point() and buffer.element_size() == 1:  # few operations support these dtypes
        buffer, previous = buffer.view(torch.uint8), previous.view(torch.uint8)
    return ((buffer == previous) | ((buffer != buffer) & (previous != previous))).all()
