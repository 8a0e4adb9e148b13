"""The network of an artefact: which tensors are stored, and how it is built and gets them back."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flatbayes.core.buffers import load_buffers, norm_layers
from flatbayes.core.model_arguments import OUTPUT_ARGUMENTS, bind_arguments
from flatbayes.core.networks import copy_network, hash_tensors, match_dtypes, materialize_from_weights
from flatbayes.core.randomness import preserve_rng
from flatbayes.core.spec import instantiate
from flatbayes.core.traversal import named_parameters
from flatbayes.models.head import find_head_name, replace_head
from flatbayes.prediction.limits import AllocationLimit, check_max_integer

MAX_MODEL_SPEC_CHARS = 2**16
"""Longest description of a model that is instantiated: constructors may be slow for long lists."""

MAX_INTEGER = 2**62

ModelBuilder = Callable[[Mapping[str, Tensor]], nn.Module]
"""Builds a network, given the stored tensors of its training run, which limit its size."""

UNSTORABLE_DTYPES = (torch.complex128, torch.complex32)
"""Dtypes of dense tensors for which safetensors has no format."""


def collect_network_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, persistent or not; a tied tensor once, by its first name."""
    tensors = dict(model.state_dict())
    tied_names = find_tied_tensors(tensors)
    others = {name: buffer for name, buffer in model.named_buffers() if name not in tensors}
    tensors |= {name: buffer for name, buffer in others.items() if describe_obstacle(buffer) is None}
    return {name: tensor for name, tensor in tensors.items() if name not in tied_names}


def frozen_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that are not trained, by their first names."""
    return {name: param for name, param in named_parameters(model).items() if not param.requires_grad}


def list_stored_tensors(models: Sequence[nn.Module], *, with_frozen: bool) -> list[dict[str, Tensor]]:
    """For each network the tensors that are stored: frozen parameters that all share with the first only, or nowhere.

    Raises:
        ValueError: They are not stored, and networks have different ones.
    """
    stored, first = [], frozen_parameters(models[0])
    for model in models:
        tensors, frozen = collect_network_tensors(model), frozen_parameters(model)
        shared = {name for name, param in frozen.items() if first.get(name) is param}
        if not with_frozen and len(shared) < len(frozen):
            raise ValueError(
                "with_frozen=False refers to one set of frozen weights, and those of members differ: leave it out."
            )
        omitted = shared if not with_frozen or model is not models[0] else set()
        stored.append({name: tensor for name, tensor in tensors.items() if name not in omitted})
    return stored


def fill_in_frozen(
    weights: Mapping[str, Tensor],
    model: nn.Module,
    first_weights: Mapping[str, Tensor],
    names: Sequence[str],
    checksum: str | None,
) -> dict[str, Tensor]:
    """The stored tensors of a training run, and those that the artefact leaves out.

    `first_weights` has those that all runs share; with a checksum, the frozen parameters are those of the model.

    Raises:
        ValueError: The network has other frozen parameters than that of the artefact.
    """
    sources: Mapping[str, Tensor] = first_weights
    if checksum is not None:
        params = named_parameters(model)
        sources = {name: params[name].detach() for name in names if name in params}
        if hash_tensors(sorted(sources.items())) != checksum:
            raise ValueError(
                "The artefact was saved without the weights that were not trained, and those of the given network "
                "are others. Pass the network with the pretrained weights that the adapters were trained on."
            )
    return {name: sources[name] for name in names if name in sources} | dict(weights)


def refuse_torchscript(model: nn.Module) -> None:
    """Refuse a network of TorchScript, or with a part of it: the parameters of a copy are no parameters."""
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise ValueError(
            f"{type(model).__name__} is or has a module of TorchScript, whose copies cannot be trained. Give the "
            "torch.nn.Module that it was made from."
        )


def check_storable(model: nn.Module) -> None:
    """Refuse a network that cannot be saved or has parameters that are not numbers, before it is trained.

    Raises:
        ValueError: An entry of the state dict cannot be stored, a parameter is missing there, or one holds NaN.
    """
    entries, name = model.state_dict(), type(model).__name__
    for key, value in entries.items():
        obstacle = describe_obstacle(value)
        if obstacle is not None:
            raise ValueError(
                f"{key} of {name} is {obstacle}, which a saved posterior cannot hold. Convert it to a dense tensor "
                "of another dtype, or keep it in a plain attribute that the constructor sets."
            )
    missing = [key for key, _ in model.named_parameters() if key not in entries]
    if missing:
        raise ValueError(
            f"The state dict of {name} lacks its parameter {missing[0]}, so a saved posterior would lose it. Return "
            "all parameters from state_dict."
        )
    check_numbers({f"{key} of {name}": param for key, param in model.named_parameters()})


def check_numbers(tensors: Mapping[str, Tensor]) -> None:
    """Refuse values that are not numbers."""
    for name, tensor in tensors.items():
        if (tensor.is_floating_point() or tensor.is_complex()) and bool(tensor.isnan().any()):
            raise ValueError(f"{name} holds values that are not numbers (NaN), and so would every prediction.")


def select_required_numbers(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that must be numbers: parameters and running statistics; a user's buffer may have NaN as marker."""
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    statistics = {id(buffer) for layer in norm_layers(model) for buffer in layer.buffers(recurse=False)}
    names |= {name for name, buffer in model.named_buffers(remove_duplicate=False) if id(buffer) in statistics}
    return {name: tensor for name, tensor in tensors.items() if name in names}


def describe_obstacle(value: object) -> str | None:
    """Why a value cannot be stored, as the end of "it is ..."; None if it can."""
    if not isinstance(value, Tensor):
        return f"no tensor but a {type(value).__name__}"
    if value.is_quantized or value.is_nested or value.layout != torch.strided:
        return "a quantized, nested or sparse tensor"
    if value.is_meta:
        return "on the meta device, without values"
    return f"of dtype {value.dtype}" if value.dtype in UNSTORABLE_DTYPES else None


def prepare_network(model: nn.Module, tensors: Mapping[str, Tensor], buffer_names: Iterable[str]) -> None:
    """Give a built network the shapes and dtypes of the saved tensors, and the buffers outside its state dict.

    Some of the buffers may have been created or resized in training.
    """
    materialize_from_weights(model, tensors)
    match_dtypes(model, tensors)
    modules, norm_ids = dict(model.named_modules()), {id(layer) for layer in norm_layers(model)}
    owner_ids = {name: id(modules.get(name.rpartition(".")[0])) for name in buffer_names}
    load_buffers(
        model, {name: tensors[name] for name, k in owner_ids.items() if name in tensors and k not in norm_ids}
    )


def find_tied_tensors(state_dict: Mapping[str, Tensor]) -> dict[str, str]:
    """Names in a state dict whose tensor has occurred before, each with the first name of that tensor."""
    first_names: dict[tuple[int, torch.Size, tuple[int, ...], torch.dtype], str] = {}
    tied: dict[str, str] = {}
    for name, tensor in state_dict.items():
        if tensor.numel():
            key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
            first_name = first_names.setdefault(key, name)
            if first_name != name:
                tied[name] = first_name
    return tied


def freeze_parameters(model: nn.Module, names: object) -> None:
    """Freeze the named parameters and unfreeze the others; None, as in older schemas, changes nothing.

    Names of another architecture are refused when its weights are loaded.
    """
    all_names = {name for name, _ in model.named_parameters()}
    if not isinstance(names, list) or not all(isinstance(name, str) and name in all_names for name in names):
        return
    for name, param in model.named_parameters():
        if param.is_floating_point() or param.is_complex():
            param.requires_grad_(name not in names)


def resize_head(network: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The network, changed in place: its last layer is replaced if an artefact has another number of outputs."""
    for has_positions in (False, True) if isinstance(network, nn.Module) else ():
        name = find_head_name(network, has_positions=has_positions)
        own: Any = None if name is None else network.get_submodule(name).weight
        weight = None if name is None else tensors.get(f"model.{name}.weight" if name else "model.weight")
        if own is None or weight is None or weight.shape == own.shape or weight.shape[1:] != own.shape[1:]:
            continue
        with preserve_rng(None):
            network = replace_head(network, len(weight), has_positions=has_positions)
    return network


def make_model_builder(
    model: nn.Module | Callable[..., nn.Module] | None, info: Mapping[str, Any], num_outputs: int
) -> ModelBuilder:
    """The function that builds the network of an artefact.

    A class or function that is given gets the arguments that it gets in a fit.

    Raises:
        TypeError: It needs others.
        ValueError: There is no model, or the artefact describes none that can be built.
    """
    if model is not None:
        arguments: dict[str, Any] = {}
        if callable(model) and not isinstance(model, nn.Module):
            shape = info.get("input_shape")  # None for a loader, whose fit gives no arguments
            data_arguments = (
                {"input_shape": tuple(shape)} | dict.fromkeys(OUTPUT_ARGUMENTS, num_outputs) if shape else {}
            )
            arguments = bind_arguments(model, data_arguments, "the data of the fit")

        def build_given(tensors: Mapping[str, Tensor]) -> nn.Module:
            network = copy_network(model) if isinstance(model, nn.Module) else model(**arguments)
            return resize_head(network, tensors) if info.get("new_head") else network

        return build_given
    spec = info.get("model")
    if not isinstance(spec, dict) or not isinstance(spec.get("init_args", {}), dict):
        raise ValueError("The artefact does not say what its model is: pass `model`, the network or its class.")
    if not str(spec.get("class_path")).startswith("flatbayes.models."):
        path = spec.get("init_args", {}).get("path") or spec.get("class_path")  # `path` if the head was replaced
        raise ValueError(
            f"The model of this artefact is {str(path)[:200]}, which is not part of flatbayes, and nothing is "
            "imported because an artefact says so: pass `model`, the network or a function that builds it."
        )

    def build_model(tensors: Mapping[str, Tensor]) -> nn.Module:
        if len(str(spec)) > MAX_MODEL_SPEC_CHARS:
            raise ValueError(f"The description of the model is longer than {MAX_MODEL_SPEC_CHARS} characters.")
        check_max_integer(spec, MAX_INTEGER)
        try:
            with torch.random.fork_rng(devices=[]), AllocationLimit(tensors):
                network = instantiate(spec, package="flatbayes.models", base_class=nn.Module)
        except (TypeError, AttributeError, ArithmeticError, RuntimeError, LookupError) as error:
            raise ValueError(f"The artefact describes a model that cannot be built: {str(error)[:500]}") from error
        if not isinstance(network, nn.Module):
            raise ValueError("The artefact describes something else than a model.")
        return resize_head(network, tensors) if info.get("new_head") else network

    return build_model
