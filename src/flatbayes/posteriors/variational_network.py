"""Networks whose linear and convolution layers take noise: made from any network, or refused with the reason."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from flatbayes.posteriors.variational_layers import (
    VARIATIONAL_TYPES,
    LayerNoise,
    NoiseEstimator,
    SoftplusScale,
    VariationalLayer,
)

_UNSUPPORTED_TYPES = (
    nn.Linear,  # this and convolutions: their subclasses, which may compute anything
    _ConvNd,
    nn.Bilinear,
    nn.RNNBase,
    nn.RNNCellBase,
    nn.MultiheadAttention,
    nn.Embedding,
    nn.EmbeddingBag,
)


def make_variational_network(model: nn.Module) -> nn.Module:
    """A copy in which every linear and convolution layer with something to learn is its variational twin.

    Layers that share a parameter share it in the copy, as a mean with one standard deviation; their noise in training
    is independent.

    Raises:
        ValueError: A layer has weights to be learnt that cannot be given noise, or no layer has any that can.
    """
    learning = {
        name: layer for name, layer in model.named_modules() if any(p.requires_grad for p in layer.parameters())
    }
    for name, layer in learning.items():
        _check_layer(name or "the model", layer)
    names = [name for name, layer in learning.items() if _is_supported(layer)]
    if not names:
        raise ValueError(
            f"LRT gives noise to layers of type {_format_supported_types()}, and {type(model).__name__} has none to train. Use SGVB, "
            "which takes any model."
        )
    _check_shared_parameters(
        model, {id(p) for name in names for p in model.get_submodule(name).parameters() if p.requires_grad}
    )
    network = copy.deepcopy(model)
    for name in names:
        layer = network.get_submodule(name)
        layer.__class__ = VARIATIONAL_TYPES.get(
            type(layer), type(layer)
        )  # keeps geometry, hooks and shared parameters
    for twin in find_variational_layers(network):
        twin.noise = twin.saved_means = None
    return network


def bayesian_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable parameters of variational layers, by name; a shared one counts once, under its first name."""
    chosen = {id(p) for layer in find_variational_layers(network) for p in layer.parameters()}
    return {name: p for name, p in network.named_parameters() if id(p) in chosen and p.requires_grad}


def find_variational_layers(network: nn.Module) -> list[VariationalLayer]:
    """All variational layers."""
    return [layer for layer in network.modules() if isinstance(layer, VariationalLayer)]


@contextmanager
def inject_noise(
    network: nn.Module, estimator: NoiseEstimator, scales: Mapping[nn.Parameter, SoftplusScale]
) -> Iterator[None]:
    """Inside, variational layers in training mode have noise, and pass gradients to what it depends on.

    Args:
        network: The network.
        estimator: How activations are sampled.
        scales: Standard deviations by parameter; other parameters are deterministic.
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
    """Means by name. Inside, layers remember them, so that a draw within a draw has the same."""
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
            layer.saved_means = None


def _is_supported(layer: nn.Module) -> bool:
    return type(layer) in VARIATIONAL_TYPES or isinstance(layer, VariationalLayer)


def _format_supported_types() -> str:
    return ", ".join(kind.__name__ for kind in VARIATIONAL_TYPES)


def _check_layer(name: str, layer: nn.Module) -> None:
    kind = type(layer).__name__
    own = dict(layer.named_parameters(recurse=False))
    if any(is_lazy(param) for param in own.values()):
        raise ValueError(f"{name} ({kind}) has no weights yet. Run the model on a batch first, so that it has.")
    if isinstance(layer, _UNSUPPORTED_TYPES) and not _is_supported(layer):
        raise ValueError(
            f"{name} ({kind}) has weights to be learnt, and LRT knows how noise passes through {_format_supported_types()} alone. Use "
            "SGVB, which takes any layer, or set requires_grad to False on those weights."
        )
    if _is_supported(layer) and own.keys() - {"weight", "bias"}:
        raise ValueError(
            f"{name} ({kind}) is parametrised: it learns {', '.join(own)} instead of a weight and a bias. Use SGVB, "
            "which takes any layer, or remove the parametrisation."
        )


def _check_shared_parameters(model: nn.Module, noisy_ids: set[int]) -> None:
    for name, layer in model.named_modules():
        for param_name, param in layer.named_parameters(recurse=False):
            if id(param) in noisy_ids and not _is_supported(layer):
                raise ValueError(
                    f"{param_name} of {name or 'the model'} ({type(layer).__name__}) is also a parameter of a layer "
                    f"of type {_format_supported_types()}, so it would have noise in one place and none in the other. Use SGVB, which "
                    "draws it for both."
                )
