"""Calls of networks with other tensors, and without fused kernels that have no derivative."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from flatbayes.core.input_trees import ModelInputs
from flatbayes.core.weights import clear_parametrizations


def call_with_tensors(network: nn.Module, tensors: Mapping[str, Tensor], inputs: ModelInputs) -> Tensor:
    """Outputs of a network with other parameters and buffers, whose own stay unchanged.

    `torch.func.functional_call` sets a tensor once under each of its names, and so loses the parameters of a module
    that has two names. Here every tensor of every module is set once, and a tied tensor in all modules that have it.
    `tensors` are values by the first name of a parameter or buffer; the others keep theirs.
    """
    if isinstance(network, torch.jit.ScriptModule | nn.DataParallel):
        raise RuntimeError(
            f"The tensors of a {type(network).__name__} cannot be replaced. Pass the torch.nn.Module that it "
            "contains or was made from."
        )
    outputs: Tensor
    with preserve_recurrence(network), replace_tensors(find_places(network, tensors)):
        outputs = network(inputs)
    return outputs


Place = tuple[dict[str, Any], str, Tensor]
"""The parameters or the buffers of a module, a name among them, and another tensor."""


def find_places(network: nn.Module, tensors: Mapping[str, Tensor]) -> list[Place]:
    """Where tensors, by their first names, belong in a network; a tied tensor has several places."""
    values, places = dict[int, Tensor | None](), list[Place]()
    if type(network).named_parameters is not nn.Module.named_parameters:  # the class decides on the names
        values = {id(param): tensors.get(name) for name, param in network.named_parameters()}
    seen, stack = set[nn.Module](), [("", network)]
    while stack:
        prefix, module = stack.pop()
        if module in seen:
            continue
        seen.add(module)
        mappings: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for mapping in mappings:
            for name, tensor in mapping.items():
                if tensor is None:
                    continue
                value = values.setdefault(id(tensor), tensors.get(prefix + name))
                if value is not None:
                    places.append((mapping, name, value))
        children = reversed(module._modules.items())
        stack += [(f"{prefix}{name}.", child) for name, child in children if child is not None]
    return places


@contextmanager
def replace_tensors(places: Sequence[Place]) -> Iterator[None]:
    """Inside, a network has other tensors at the places of `find_places`."""
    own_tensors = [mapping[name] for mapping, name, _ in places]
    clear_parametrizations()
    try:
        for mapping, name, value in places:
            mapping[name] = value
        yield
    finally:
        for (mapping, name, _), tensor in zip(places, own_tensors, strict=True):
            mapping[name] = tensor
        clear_parametrizations()


@contextmanager
def preserve_recurrence(network: nn.Module) -> Iterator[None]:
    """Inside, recurrent layers are called with other tensors; afterwards they refer to none of these.

    A call leaves a list of its weights in a recurrent layer. Tensors of a function transform cannot be copied.
    """
    layers = [vars(module) for module in network.modules() if isinstance(module, nn.RNNBase)]
    own = [(layer["_flat_weights"], layer["_flat_weight_refs"]) for layer in layers]
    try:
        yield
    finally:
        for layer, (weights, references) in zip(layers, own, strict=True):
            layer["_flat_weights"], layer["_flat_weight_refs"] = weights, references


@contextmanager
def plain_attention() -> Iterator[None]:
    """Inside, attention uses no fused kernels or nested tensors, for which function transforms have no rules."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


@contextmanager
def differentiable_recurrence(network: nn.Module) -> Iterator[None]:
    """Inside, recurrent layers can be differentiated in eval mode, and twice, which those of cuDNN cannot."""
    with _disable_for_recurrence(torch.backends.cudnn, network):
        yield


@contextmanager
def plain_recurrence(network: nn.Module) -> Iterator[None]:
    """Inside, recurrent layers use no fused kernels, which have no forward-mode derivative."""
    with _disable_for_recurrence(torch.backends.mkldnn, network), differentiable_recurrence(network):
        yield


@contextmanager
def _disable_for_recurrence(backend: Any, network: nn.Module) -> Iterator[None]:
    enabled: bool = backend.enabled
    if not enabled or not any(isinstance(module, nn.RNNBase) for module in network.modules()):
        yield
        return
    backend.enabled = False
    try:
        yield
    finally:
        backend.enabled = enabled
