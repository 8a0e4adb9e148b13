"""Networks whose linear and convolution layers take noise: made from any network, or refused with the reason."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from flatbayes.posteriors.variational_layers import VARIATIONAL, Estimator, Noise, Scale, Variational

_UNTREATED = (
    nn.Linear,  # this and convolutions: their subclasses, which may compute anything
    _ConvNd,
    nn.Bilinear,
    nn.RNNBase,
    nn.RNNCellBase,
    nn.MultiheadAttention,
    nn.Embedding,
    nn.EmbeddingBag,
)


def with_noisy_layers(model: nn.Module) -> nn.Module:
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
    names = [name for name, layer in learning.items() if _treated(layer)]
    if not names:
        raise ValueError(
            f"LRT gives noise to layers of type {_names()}, and {type(model).__name__} has none to train. Use SGVB, "
            "which takes any model."
        )
    _check_ties(model, {id(p) for name in names for p in model.get_submodule(name).parameters() if p.requires_grad})
    network = copy.deepcopy(model)
    for name in names:
        layer = network.get_submodule(name)
        layer.__class__ = VARIATIONAL.get(type(layer), type(layer))  # keeps geometry, hooks and shared parameters
    for twin in variational_layers(network):
        twin.noise = twin.centre = None
    return network


def bayesian_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable parameters of variational layers, by name; a shared one counts once, under its first name."""
    chosen = {id(p) for layer in variational_layers(network) for p in layer.parameters()}
    return {name: p for name, p in network.named_parameters() if id(p) in chosen and p.requires_grad}


def variational_layers(network: nn.Module) -> list[Variational]:
    """All variational layers."""
    return [layer for layer in network.modules() if isinstance(layer, Variational)]


@contextmanager
def noisy(network: nn.Module, estimator: Estimator, scales: Mapping[nn.Parameter, Scale]) -> Iterator[None]:
    """Inside, variational layers in training mode have noise, and pass gradients to what it depends on.

    Args:
        network: The network.
        estimator: How activations are sampled.
        scales: Standard deviations by parameter; other parameters are deterministic.
    """
    layers = variational_layers(network)
    try:
        for layer in layers:
            weight, bias = (layer._parameters.get(name) for name in ("weight", "bias"))
            layer.noise = Noise(estimator, *(None if p is None else scales.get(p) for p in (weight, bias)))
        yield
    finally:
        for layer in layers:
            layer.noise = None


@contextmanager
def centred(network: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Means by name. Inside, layers remember them, so that a draw within a draw has the same."""
    layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, Variational)}
    outermost = [layer for layer in layers.values() if layer.centre is None]
    try:
        for layer in outermost:
            layer.centre = {name: param.detach().clone() for name, param in layer.named_parameters()}
        yield {
            f"{prefix}.{name}".removeprefix("."): mean
            for prefix, layer in layers.items()
            for name, mean in (layer.centre or {}).items()
        }
    finally:
        for layer in outermost:
            layer.centre = None


def _treated(layer: nn.Module) -> bool:
    return type(layer) in VARIATIONAL or isinstance(layer, Variational)


def _names() -> str:
    return ", ".join(kind.__name__ for kind in VARIATIONAL)


def _check_layer(name: str, layer: nn.Module) -> None:
    kind = type(layer).__name__
    own = dict(layer.named_parameters(recurse=False))
    if any(is_lazy(param) for param in own.values()):
        raise ValueError(f"{name} ({kind}) has no weights yet. Run the model on a batch first, so that it has.")
    if isinstance(layer, _UNTREATED) and not _treated(layer):
        raise ValueError(
            f"{name} ({kind}) has weights to be learnt, and LRT knows how noise passes through {_names()} alone. Use "
            "SGVB, which takes any layer, or set requires_grad to False on those weights."
        )
    if _treated(layer) and own.keys() - {"weight", "bias"}:
        raise ValueError(
            f"{name} ({kind}) is parametrised: it learns {', '.join(own)} instead of a weight and a bias. Use SGVB, "
            "which takes any layer, or remove the parametrisation."
        )


def _check_ties(model: nn.Module, chosen: set[int]) -> None:
    for name, layer in model.named_modules():
        for param_name, param in layer.named_parameters(recurse=False):
            if id(param) in chosen and not _treated(layer):
                raise ValueError(
                    f"{param_name} of {name or 'the model'} ({type(layer).__name__}) is also a parameter of a layer "
                    f"of type {_names()}, so it would have noise in one place and none in the other. Use SGVB, which "
                    "draws it for both."
                )
