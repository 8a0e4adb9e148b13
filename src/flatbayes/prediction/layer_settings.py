"""Settings of layers that predictions depend on and weights do not show, such as dropout rates, in an artefact."""

import math
from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict

from torch import nn

from flatbayes.core.adapters import describe_scaling
from flatbayes.core.names import shorten
from flatbayes.posteriors import Posterior

OPTION_NAMES = (
    "approximate",
    "dilation",
    "eps",
    "negative_slope",
    "num_groups",
    "num_heads",
    "padding",
    "padding_mode",
    "stride",
    "variance_epsilon",
)
"""Attributes of layers that change the outputs and no shape of a weight."""

MAX_LISTED_LAYERS = 5

Settings = Mapping[str, Mapping[str, Any]]
"""Values by name, by the name of the layer."""


class LayerSettings(TypedDict):
    """Settings of a network, plain data.

    Those of layers that draws leave random must be equal as a whole, since a layer more or less changes predictions.
    The options are compared for the layers and names that both networks have.
    """

    random: NotRequired[dict[str, dict[str, Any]]]
    options: NotRequired[dict[str, dict[str, Any]]]


def is_layer_settings(value: object) -> bool:
    """Whether an entry of metadata has the form of `LayerSettings`."""
    if not isinstance(value, dict):
        return False
    return all(
        isinstance(layers, dict) and all(isinstance(settings, dict) for settings in layers.values())
        for layers in value.values()
    )


def describe_layers(posterior: Posterior, model: nn.Module) -> LayerSettings:
    """The settings of a network, for the metadata of an artefact."""
    options = {name: _describe_options(module) for name, module in model.named_modules()}
    random = {name: dict(settings) for name, settings in posterior.describe_random_layers(model).items()}
    return {"random": random, "options": {name: settings for name, settings in options.items() if settings}}


def check_layers(expected: LayerSettings, posterior: Posterior, model: nn.Module, place: str) -> None:
    """Check that a network has the settings of the one that the posterior was fitted to.

    Entries that are missing, as in older artefacts, are not compared; `place` starts the message.

    Raises:
        ValueError: A setting differs.
    """
    found = describe_layers(posterior, model)
    first, second = expected.get("random", found["random"]), found["random"]
    pairs = {name: (first.get(name, {}), second.get(name, {})) for name in {**first, **second}}
    differences = {name: pair for name, pair in pairs.items() if not _are_equal(*pair)}
    kind = "the random layers of the draws"
    if not differences:
        kind = "settings that its weights do not show"
        for name in expected.get("options", {}).keys() & found["options"].keys():
            before, now = expected["options"][name], found["options"][name]
            common = [key for key in before if key in now and not _are_equal(before[key], now[key])]
            if common:
                differences[name] = ({key: before[key] for key in common}, {key: now[key] for key in common})
    if not differences:
        return
    listed = sorted(differences)[:MAX_LISTED_LAYERS]
    texts = "; ".join(f"{shorten(name or 'the model')}: {_format(*differences[name])}" for name in listed)
    others = f"; and {len(differences) - len(listed)} more" if len(differences) > len(listed) else ""
    raise ValueError(
        f"{place} another network than this {type(model).__name__}: they differ in {kind}, so predictions would "
        f"change. {texts}{others}. Build the network with the settings of the fit."
    )


def _describe_options(module: nn.Module) -> dict[str, Any]:
    attributes, options = vars(module), dict[str, Any]()
    if module._parameters or type(module).__module__.startswith("torch.nn."):
        options = {name: _to_plain(attributes[name]) for name in OPTION_NAMES if name in attributes}
    options["scaling of adapters"] = describe_scaling(module)
    return {name: value for name, value in options.items() if value is not None}


def _to_plain(value: Any) -> Any:
    """Numbers, texts and lists of them, as JSON has them; None for anything else."""
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple | list) and all(isinstance(item, int | float) for item in value):
        return list(value)
    return None


def _are_equal(first: Any, second: Any) -> bool:
    """Whether values are equal, floating-point numbers up to rounding."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return first.keys() == second.keys() and all(_are_equal(first[key], second[key]) for key in first)
    if isinstance(first, float) and isinstance(second, int | float):
        return math.isclose(first, second, rel_tol=1e-6)
    return bool(first == second)


def _format(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    texts = [", ".join(f"{key} {value}" for key, value in settings.items()) for settings in (before, now)]
    fitted, given = (shorten(text) or "none" for text in texts)
    return f"{fitted} in the fit and {given} here"
