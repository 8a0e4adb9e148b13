"""Settings of layers that predictions depend on and weights do not show, such as dropout rates, in an artefact."""

import math
from collections.abc import Mapping
from types import BuiltinFunctionType, FunctionType
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

TORCH_OPTION_NAMES = (
    "align_corners",
    "alpha",
    "batch_first",
    "beta",
    "ceil_mode",
    "count_include_pad",
    "dim",
    "max_val",
    "min_val",
    "mode",
    "nonlinearity",
    "norm_first",
    "threshold",
)
"""Those of layers of torch, whose names may have another meaning elsewhere."""

CONFIG_NAMES = (
    "activation",
    "activation_function",
    "attn_logit_softcapping",
    "classifier_activation",
    "classifier_pooling",
    "dense_act_fn",
    "feat_extract_activation",
    "final_logit_softcapping",
    "hidden_act",
    "hidden_activation",
    "local_attention",
    "num_attention_heads",
    "pooler_act",
    "position_embedding_type",
    "query_pre_attn_scalar",
    "scale_attn_by_inverse_layer_idx",
    "scale_attn_weights",
    "sliding_window",
)
"""Settings in the configuration of a network of transformers that change the outputs and no weight or buffer."""

ACTIVATIONS_MODULE = "torch.nn.modules.activation"

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
    options, seen = dict[str, dict[str, Any]](), set[int]()
    for name, module in model.named_modules():
        config = vars(module).get("config")  # that of transformers is shared by the modules of a network
        own = {} if id(config) in seen else _describe_config(config)
        options[name] = {**_describe_options(module), **own}
        seen.add(id(config))
    random = {name: dict(settings) for name, settings in posterior.describe_random_layers(model).items()}
    return {"random": random, "options": {name: settings for name, settings in options.items() if settings}}


def check_layers(expected: LayerSettings, posterior: Posterior, model: nn.Module, place: str) -> None:
    """Check that a network has the settings of the one that the posterior was fitted to.

    Entries that are missing, as in older artefacts, are not compared; `place` starts the message.
    """
    settings = describe_layers(posterior, model)
    first, second = expected.get("random", settings["random"]), settings["random"]
    pairs = {name: (first.get(name, {}), second.get(name, {})) for name in {**first, **second}}
    differences = {name: pair for name, pair in pairs.items() if not _are_equal(*pair)}
    kind = "the random layers of the draws"
    if not differences:
        kind = "settings that its weights do not show"
        for name in expected.get("options", {}).keys() & settings["options"].keys():
            before, now = expected["options"][name], settings["options"][name]
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
    attributes, place = vars(module), type(module).__module__
    is_torch = place.startswith("torch.nn.")
    names = (*OPTION_NAMES, *TORCH_OPTION_NAMES) if is_torch else OPTION_NAMES if module._parameters else ()
    options = {name: _to_plain(attributes[name]) for name in names if name in attributes}
    if place == ACTIVATIONS_MODULE and not module._parameters:
        options["activation"] = type(module).__name__
    elif is_torch and isinstance(attributes.get("activation"), FunctionType | BuiltinFunctionType):
        options["activation"] = attributes["activation"].__name__
    options["scaling of adapters"] = describe_scaling(module)
    return {name: value for name, value in options.items() if value is not None}


def _describe_config(config: Any) -> dict[str, Any]:
    """Settings of a configuration of transformers; none of anything else."""
    if not isinstance(getattr(config, "model_type", None), str):
        return {}
    settings = {name: _to_plain(getattr(config, name, None)) for name in CONFIG_NAMES}
    return {name: value for name, value in settings.items() if value is not None}


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
