"""Networks with variational layers: conversion of a deterministic network, noise injection, and access to means."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from flatbayes.core.networks import copy_network
from flatbayes.posteriors.variational_layers import (
    VARIATIONAL_TYPES,
    LayerNoise,
    NoiseEstimator,
    SoftplusScale,
    VariationalLayer,
)

_UNSUPPORTED_TYPES = (
    nn.Linear,  # here and for convolutions: subclasses, which may compute anything
    _ConvNd,
    nn.Bilinear,
    nn.RNNBase,
    nn.RNNCellBase,
    nn.MultiheadAttention,
    nn.Embedding,
    nn.EmbeddingBag,
)
_SUPPORTED_NAMES = ", ".join(layer_type.__name__ for layer_type in VARIATIONAL_TYPES)


def make_variational_network(
    model: nn.Module, params: Collection[nn.Parameter] | None = None, *, method: str = "LRT"
) -> nn.Module:
    """Return a copy in which every trainable linear and convolutional layer is replaced by its variational type.

    Frozen parameters are shared with the model. Layers that share a parameter share it in the copy, as a mean with
    one standard deviation. Their noise in training is independent. With `params`, those layers are replaced that have
    one of these.

    Raises:
        ValueError: A layer has such weights and no variational type, or no layer has one.
    """
    selected_ids = {id(p) for p in (model.parameters() if params is None else params) if p.requires_grad}
    trainable_layers = {
        name: layer for name, layer in model.named_modules() if any(id(p) in selected_ids for p in layer.parameters())
    }
    for name, layer in trainable_layers.items():
        _check_layer(name or "the model", layer, method)
    names = [name for name, layer in trainable_layers.items() if _is_supported(layer)]
    if not names:
        raise ValueError(
            f"{method} adds noise to layers of type {_SUPPORTED_NAMES}, and {type(model).__name__} has no trainable "
            "ones. Use SGVB, which supports any model."
        )
    _check_shared_parameters(
        model, {id(p) for name in names for p in model.get_submodule(name).parameters() if p.requires_grad}
    )
    network = copy_network(
        model,
        {id(param): param for param in model.parameters() if not param.requires_grad},
        advice=f"{method} trains a copy of the network with layers of its own. Remove the attribute, or use SGVB, "
        "which trains the network itself.",
    )
    for name in names:
        layer = network.get_submodule(name)
        # Replacing the class keeps options, hooks and shared parameters.
        layer.__class__ = VARIATIONAL_TYPES.get(type(layer), type(layer))
    for variational in find_variational_layers(network):
        variational.noise = variational.saved_means = None
    return network


def bayesian_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trainable parameters of variational layers by name; a shared one once, under its first name."""
    layer_ids = {id(p) for layer in find_variational_layers(network) for p in layer.parameters()}
    return {name: p for name, p in network.named_parameters() if id(p) in layer_ids and p.requires_grad}


def select_layer_parameters(model: nn.Module, params: Collection[nn.Parameter]) -> list[nn.Parameter]:
    """Return those of the parameters that belong to a layer with a variational type."""
    layer_ids = {id(p) for layer in model.modules() if _is_supported(layer) for p in layer.parameters()}
    return [param for param in params if id(param) in layer_ids]


def find_variational_layers(network: nn.Module) -> list[VariationalLayer]:
    """Return all variational layers."""
    return [layer for layer in network.modules() if isinstance(layer, VariationalLayer)]


@contextmanager
def inject_noise(
    network: nn.Module, estimator: NoiseEstimator, scales: Mapping[nn.Parameter, SoftplusScale]
) -> Iterator[None]:
    """Add noise to variational layers in training mode inside the context, with gradients in the raw scales.

    Parameters without a scale are deterministic.
    """
    layers = find_variational_layers(network)
    try:
        for layer in layers:
            weight, bias = (layer._parameters.get(name) for name in ("weight", "bias"))
            layer.noise = LayerNoise(estimator, *(None if p is None else scales.get(p) for p in (weight, bias)))
        yield
    finally:
        for layer in layers:
            layer.noise = None


@contextmanager
def hold_means(network: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Yield means by name, which layers store inside the context, so that a nested draw uses the same means."""
    layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, VariationalLayer)}
    outermost = [layer for layer in layers.values() if layer.saved_means is None]
    try:
        for layer in outermost:
            layer.saved_means = {name: param.detach().clone() for name, param in layer.named_parameters()}
        yield {
            f"{prefix}.{name}".removeprefix("."): mean
            for prefix, layer in layers.items()
            for name, mean in (layer.saved_means or {}).items()
        }
    finally:
        for layer in outermost:
            layer.discard_saved_means()


def _is_supported(layer: nn.Module) -> bool:
    return type(layer) in VARIATIONAL_TYPES or isinstance(layer, VariationalLayer)


def _check_layer(name: str, layer: nn.Module, method: str) -> None:
    type_name = type(layer).__name__
    own_params = dict(layer.named_parameters(recurse=False))
    if any(is_lazy(param) for param in own_params.values()):
        raise ValueError(f"{name} ({type_name}) has no weights yet. Run the model on a batch first to create them.")
    if isinstance(layer, _UNSUPPORTED_TYPES) and not _is_supported(layer):
        raise ValueError(
            f"{name} ({type_name}) has trainable weights, and {method} supports layers of type {_SUPPORTED_NAMES} "
            "only. Use SGVB, which supports any layer, or set requires_grad to False on those weights."
        )
    if _is_supported(layer) and own_params.keys() - {"weight", "bias"}:
        raise ValueError(
            f"{name} ({type_name}) is parametrized: its parameters are {', '.join(own_params)} instead of a weight "
            "and a bias. Use SGVB, which supports any layer, or remove the parametrization."
        )


def _check_shared_parameters(model: nn.Module, noisy_ids: set[int]) -> None:
    for name, layer in model.named_modules():
        for param_name, param in layer.named_parameters(recurse=False):
            if id(param) in noisy_ids and not _is_supported(layer):
                raise ValueError(
                    f"{param_name} of {name or 'the model'} ({type(layer).__name__}) is also a parameter of a layer "
                    f"of type {_SUPPORTED_NAMES}, so it would have noise in one place and none in the other. Use "
                    "SGVB, which samples it once for both."
                )
