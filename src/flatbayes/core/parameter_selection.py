"""Which of the trainable parameters a method is about: chosen by kind of layer, or by patterns of their names."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Literal, get_args

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

ParameterGroup = Literal["weights", "no_biases", "biases", "norms", "last_layer", "all"]
"""See `selected`."""

ParameterSelection = ParameterGroup | list[str]
"""A kind of parameters, or patterns of names."""

MAX_LISTED_NAMES = 20
"""Names in an error message, at most."""

_NORM_TYPES = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def check_selection(selection: object, option: str) -> None:
    """Refuse what selects nothing in any model.

    Args:
        selection: What was asked for.
        option: What it is called there.

    Raises:
        ValueError: It is neither a kind nor a list of patterns.
    """
    if selection not in get_args(ParameterGroup) and (isinstance(selection, str) or not selection):
        raise ValueError(
            f"{option} must be {' or '.join(get_args(ParameterGroup))}, or a list of name patterns such as "
            f"['head.*', '*.bias'], got {selection!r}."
        )


def select_parameters(model: nn.Module, selection: ParameterSelection, option: str) -> dict[str, nn.Parameter]:
    """The trainable parameters chosen, by name, in the model's order; a tied tensor counts once, by its first name.

    Args:
        model: The network.
        selection: `weights`: all but those of normalisation layers (of torch.nn: batch, instance, layer, group and
            RMS norm). `biases`: those of `weights` with `bias` in their own name. `no_biases`: the others of
            `weights`. `norms`: those of normalisation layers. `last_layer`: those of the last module that has any, in
            the order of registration. `all`: every one. A list: those of which a name matches one of the patterns, in
            which `*` stands for anything, dots too, `?` for any character, and `[ab]` for one of these.
        option: What the selection is called where it was asked for.

    Raises:
        ValueError: There are none, or a pattern matches none; it says which names there are.
    """
    trainable = {name: param for name, param in model.named_parameters() if param.requires_grad}
    chosen = (
        _select_group_ids(model, selection)
        if isinstance(selection, str)
        else _select_pattern_ids(model, selection, option)
    )
    found = {name: param for name, param in trainable.items() if id(param) in chosen}
    if not found:
        raise ValueError(
            f"{option}={selection!r} selects none of the {len(trainable)} trainable parameters of "
            f"{type(model).__name__}: {format_names(trainable)}. Use {option}='all', or set requires_grad on "
            "those to be trained."
        )
    return found


@contextmanager
def only_requires_grad(model: nn.Module, params: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Inside, these are the only parameters that get gradients, so that those of the others cost nothing.

    Args:
        model: The network.
        params: Some of its trainable parameters.
    """
    chosen = {id(param) for param in params.values()}
    others = [param for param in model.parameters() if param.requires_grad and id(param) not in chosen]
    try:
        for param in others:
            param.requires_grad_(False)
        yield
    finally:
        for param in others:
            param.requires_grad_(True)


def match_names(names: Sequence[str], pattern: str) -> list[str]:
    """The names that a pattern matches, upper and lower case being different."""
    return [name for name in names if fnmatchcase(name, pattern)]


def format_names(names: Mapping[str, object]) -> str:
    """Names for an error message, the first ones of many."""
    shown, more = list(names)[:MAX_LISTED_NAMES], len(names) - MAX_LISTED_NAMES
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def named_trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable parameters under every name that they have."""
    named = model.named_parameters(remove_duplicate=False)
    return {name: param for name, param in named if param.requires_grad}


def _select_group_ids(model: nn.Module, group: str) -> set[int]:
    owned = [
        (module, name, param)
        for module in model.modules()
        for name, param in module._parameters.items()
        if param is not None and param.requires_grad
    ]
    if group == "last_layer":
        return {id(param) for module, _, param in owned if module is owned[-1][0]}
    if group == "all":
        return {id(param) for _, _, param in owned}
    if group == "norms":
        return {id(param) for module, _, param in owned if isinstance(module, _NORM_TYPES)}
    beside_norms = [(name, param) for module, name, param in owned if not isinstance(module, _NORM_TYPES)]
    wanted = {"weights": (False, True), "no_biases": (False,), "biases": (True,)}[group]
    return {id(param) for name, param in beside_norms if ("bias" in name) in wanted}


def _select_pattern_ids(model: nn.Module, patterns: Sequence[str], option: str) -> set[int]:
    params = named_trainable(model)
    names = list(params)
    for pattern in patterns:
        if not match_names(names, pattern):
            raise ValueError(
                f"The pattern {pattern!r} of {option} matches none of the trainable parameters of "
                f"{type(model).__name__}: {format_names(params)}."
            )
    return {id(params[name]) for pattern in patterns for name in match_names(names, pattern)}
