"""How wide the Gaussian prior of each parameter is: one precision, one per group of names, or one from its start."""

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flatbayes.core.parameter_selection import format_names, match_names, named_trainable

PriorPrecision = float | dict[str, float] | Literal["initial"]
"""Precision of all parameters, or by patterns of their names, or that of the values they start with."""
MIN_INITIAL_STD = 1e-8
"""Of the standard deviations that a prior can have from the values that a parameter starts with."""


def check_prior_precision_spec(prior_precision: object) -> None:
    """Refuse what is no precision.

    Raises:
        ValueError: A number is not positive and finite, the mapping is empty, or it is another word.
    """
    if not isinstance(prior_precision, Real | dict) and prior_precision != "initial":
        raise ValueError(f"prior_precision must be a number, a mapping or 'initial', got {prior_precision!r}.")
    if isinstance(prior_precision, dict):
        if not prior_precision:
            raise ValueError("prior_precision must map at least one name pattern to a precision, got {}.")
        numbers: dict[str, Any] = {
            f"prior_precision of {pattern!r}": value for pattern, value in prior_precision.items()
        }
    else:
        numbers = {} if isinstance(prior_precision, str) else {"prior_precision": prior_precision}
    for name, value in numbers.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}.")


def resolve_prior_precisions(
    model: nn.Module, params: Mapping[str, nn.Parameter], prior_precision: PriorPrecision
) -> dict[str, float] | None:
    """The precision of each parameter by name; None where it is the same number for all.

    Args:
        model: The network.
        params: Those of its parameters that have a prior, by name.
        prior_precision: See `PriorPrecision`. In a mapping the first pattern that matches decides.

    Raises:
        ValueError: No pattern matches a parameter, or a pattern decides for none.
    """
    if isinstance(prior_precision, dict):
        return _match_precision_patterns(params, prior_precision)
    if prior_precision == "initial":
        start = named_trainable(model)
        return {name: initial_scale(name, param, start) ** -2 for name, param in params.items()}
    return None


def initial_scale(name: str, param: Tensor, named_params: Mapping[str, Tensor]) -> float:
    """Root mean square of a parameter's values, or where these are next to zero, what is usual for its layer.

    That is 1 / sqrt(fan-in) of the weight itself or, for a bias, of the weight that it is added to (its namesake with
    `weight` for `bias`), the fan-in being the number of weights per output; 1 where there is no such matrix.

    Args:
        name: Name of the parameter.
        param: Its values.
        named_params: Parameters by name, among which the weight of a bias is.
    """
    square = param.detach().cpu().double().square().mean().item()
    if square > MIN_INITIAL_STD**2:
        return math.sqrt(square)
    path, dot, own = name.rpartition(".")
    weight = param if param.dim() > 1 else named_params.get(f"{path}{dot}{own.replace('bias', 'weight')}", param)
    return 1.0 if weight.dim() < 2 else (weight.numel() / weight.shape[0]) ** -0.5


def expand_precisions(precisions: Mapping[str, float], params: Mapping[str, nn.Parameter]) -> Tensor:
    """One precision per weight, all parameters in one vector, in the order and dtype of the parameters."""
    return torch.cat([torch.full_like(param, precisions[name]).detach().view(-1) for name, param in params.items()])


def _match_precision_patterns(
    params: Mapping[str, nn.Parameter], precisions: Mapping[str, float]
) -> dict[str, float]:
    found: dict[str, float] = {}
    for pattern, precision in precisions.items():
        new = [name for name in match_names(list(params), pattern) if name not in found]
        if not new:
            raise ValueError(
                f"The pattern {pattern!r} of prior_precision decides for no parameter with a distribution: they are "
                f"{format_names(params)}, and the first pattern that matches decides."
            )
        found |= dict.fromkeys(new, precision)
    left = {name: param for name, param in params.items() if name not in found}
    if left:
        raise ValueError(
            f"prior_precision has no pattern for {format_names(left)}. Add one, or '*' at the end for all that is left."
        )
    return {name: found[name] for name in params}
