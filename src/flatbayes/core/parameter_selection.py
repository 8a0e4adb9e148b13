"""Selection of trainable parameters, by group of layers or by name patterns."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from fnmatch import fnmatchcase
from typing import Literal, get_args

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized
from torch.optim import Optimizer

from flatbayes.core.names import find_similar, format_count, format_names
from flatbayes.core.networks import check_materialized
from flatbayes.core.traversal import list_parameters, trainable_by_name

ParameterGroup = Literal["weights", "no_biases", "biases", "norms", "last_layer", "all"]
"""See `select_parameters`."""

ParameterSelection = ParameterGroup | list[str]
"""A group of parameters, or name patterns."""

MAX_LISTED_PATTERNS = 12
"""Largest number of names, or of patterns in their place, in a message on a selection of parameters."""

NORM_TYPES = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def check_selection(selection: object, option: str) -> None:
    """Check that a selection is a group or a list of patterns."""
    if selection not in get_args(ParameterGroup) and (isinstance(selection, str) or not selection):
        raise ValueError(
            f"{option} must be {' or '.join(get_args(ParameterGroup))}, or a list of name patterns such as "
            f"['head.*', '*.bias'], got {selection!r}."
        )


def select_parameters(model: nn.Module, selection: ParameterSelection, option: str) -> dict[str, nn.Parameter]:
    """Select trainable parameters, in the model's order; a tied tensor counts once, by its first name.

    Args:
        model: The network.
        selection: `weights`: all but those of normalisation layers (of torch.nn: batch, instance, layer, group and
            RMS norm). `biases`: those of `weights` with `bias` in their own name. `no_biases`: the others of
            `weights`. `norms`: those of normalisation layers. `last_layer`: those of the last module that has any, in
            the order of registration. `all`: every one. A list: those with a name that matches one of the patterns,
            in which `*` stands for anything, dots too, `?` for any character, and `[ab]` for one of these.
        option: Name of the option that has the selection, for the message.

    Returns:
        Parameters by name.

    Raises:
        ValueError: No parameter is selected, or a pattern matches none; the message lists the names. Or the network
            has lazy modules without weights.
    """
    check_materialized(model)
    trainable = trainable_by_name(model)
    selected_ids = (
        _select_group_ids(model, selection)
        if isinstance(selection, str)
        else _select_pattern_ids(model, selection, option)
    )
    selected = {name: param for name, param in trainable.items() if id(param) in selected_ids}
    if not selected:
        raise ValueError(
            f"{option}={selection!r} selects none of the {format_count(len(trainable), 'trainable parameter')} of "
            f"{type(model).__name__}: {format_patterns(list(trainable))}. Use {option}='all', or set requires_grad "
            "on those to be trained."
        )
    return selected


@contextmanager
def only_requires_grad(model: nn.Module, params: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Inside, gradients are computed of these parameters only, and those of the others cost nothing.

    Parameters of lazy modules that have no shape yet are left as they are.
    """
    kept_ids = {id(param) for param in params.values()}
    others = [p for p in list_parameters(model) if p.requires_grad and id(p) not in kept_ids and not is_lazy(p)]
    try:
        for param in others:
            param.requires_grad_(False)
        yield
    finally:
        for param in others:
            param.requires_grad_(True)


def only_optimized(model: nn.Module, optimizer: Optimizer) -> AbstractContextManager[None]:
    """Inside, gradients are computed of the parameters that an optimizer updates only."""
    optimized_ids = {id(param) for group in optimizer.param_groups for param in group["params"]}
    return only_requires_grad(model, {n: p for n, p in model.named_parameters() if id(p) in optimized_ids})


def split_parameters(
    model: nn.Module, selection: ParameterSelection
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The parameters that the option `params` selects, and the other trainable ones."""
    trainable = list(trainable_by_name(model).values())
    if selection == "all":
        return trainable, []
    selected = list(select_parameters(model, selection, "params").values())
    selected_ids = {id(param) for param in selected}
    return selected, [param for param in trainable if id(param) not in selected_ids]


def find_linear_owner(model: nn.Module, selection: ParameterSelection) -> nn.Linear | None:
    """The linear layer that has all parameters that the option `params` selects; None if there is none."""
    ids = {id(param) for param in select_parameters(model, selection, "params").values()}
    layers = (layer for layer in model.modules() if isinstance(layer, nn.Linear))
    return next((layer for layer in layers if ids <= {id(param) for param in layer.parameters(recurse=False)}), None)


def match_names(names: Sequence[str], pattern: str) -> list[str]:
    """The names that match a pattern, case-sensitive."""
    return [name for name in names if fnmatchcase(name, pattern)]


def explain_unmatched(pattern: str, names: Sequence[str], frozen_names: Sequence[str] = ()) -> str:
    """End of a message on a pattern that matches no name: what may be meant, and which names there are.

    >>> explain_unmatched("fc", ["body.0.weight", "body.0.bias", "fc.weight"])
    "Did you mean 'fc.*'? Trainable: ['body.0.weight', 'body.0.bias', 'fc.weight']."
    """
    if match_names(frozen_names, pattern):
        return "The parameters that it matches do not require gradients already: leave it out."
    bare = pattern.rstrip(".*")
    variants = (f"{bare}.*", f"*.{bare}", f"*.{bare}.*")
    matching = [variant for variant in variants if bare and match_names(names, variant)][:1]
    parts = [name.split(".") for name in names]
    modules = {".".join(path[:depth]): None for path in parts for depth in range(1, len(path))}
    similar = [f"{name}.*" for name in find_similar(bare, modules)] or find_similar(pattern, names)
    meant = " or ".join(map(repr, matching or similar))
    return f"{f'Did you mean {meant}? ' if meant else ''}Trainable: {format_patterns(names)}."


def format_patterns(names: Sequence[str]) -> str:
    """Names of parameters for a message; where they are many, patterns of modules that have all of them.

    >>> format_patterns([f"body.{k}.{name}" for k in range(9) for name in ("weight", "bias")] + ["head.weight"])
    "['body.0.*', 'body.1.*', 'body.2.*', 'body.3.*', 'body.4.*', 'body.5.*', 'body.6.*', 'body.7.*', 'body.8.*', \
'head.weight']"
    """
    parts = [name.split(".") for name in names]
    levels = [
        list(dict.fromkeys(".".join(path[:depth]) + (".*" if len(path) > depth else "") for path in parts))
        for depth in range(1, max(map(len, parts), default=1) + 1)
    ]
    short = [level for level in levels if len(level) <= MAX_LISTED_PATTERNS]
    return format_names(short[-1] if short else levels[0])


def named_trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable parameters under each of their names."""
    named = model.named_parameters(remove_duplicate=False)
    return {name: param for name, param in named if param.requires_grad}


def _select_group_ids(model: nn.Module, group: str) -> set[int]:
    owned = list(_iter_owned_parameters(model))
    last_owner = owned[-1][0] if owned else None

    def is_selected(module: nn.Module, name: str) -> bool:
        if group == "all":
            return True
        if group == "last_layer":
            return module is last_owner
        is_norm = isinstance(module, NORM_TYPES)
        if is_norm or group == "norms":
            return is_norm and group == "norms"
        return group == "weights" or ("bias" in name) is (group == "biases")

    return {id(param) for module, name, param in owned if is_selected(module, name)}


def _iter_owned_parameters(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """The layer, the name within it, and the tensor of each trainable parameter.

    The tensors of a parametrised weight, such as `parametrizations.weight.original0` of weight normalisation, belong
    to the layer that has the weight, and are named like it.
    """
    owners = {
        originals: (module, name)
        for module in model.modules()
        if is_parametrized(module)
        for name, originals in module.parametrizations.items()  # type: ignore[union-attr, operator]
    }
    for module in model.modules():
        for name, param in module._parameters.items():
            if param is not None and param.requires_grad:
                layer, own_name = owners.get(module, (module, name))
                yield layer, own_name, param


def _select_pattern_ids(model: nn.Module, patterns: Sequence[str], option: str) -> set[int]:
    params = named_trainable(model)
    names = list(params)
    for pattern in patterns:
        if not match_names(names, pattern):
            raise ValueError(
                f"The pattern {pattern!r} of {option} matches none of the trainable parameters of "
                f"{type(model).__name__}. {explain_unmatched(pattern, names)}"
            )
    return {id(params[name]) for pattern in patterns for name in match_names(names, pattern)}
