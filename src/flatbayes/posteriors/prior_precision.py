"""Precision of the Gaussian prior: validation, and one precision per parameter by name pattern or initial scale."""

import math
from collections.abc import Mapping
from numbers import Real
from typing import Literal

import torch
from torch import Tensor, nn

from flatbayes.core.names import format_names
from flatbayes.core.parameter_selection import format_patterns, match_names, named_trainable
from flatbayes.core.tensor_lists import flatten, widen

PriorPrecision = float | dict[str, float] | Literal["initial"]
"""One precision for all parameters, precisions by name pattern, or "initial": from each tensor's initial values."""

MIN_INITIAL_STD = 1e-8
"""Root mean square of initial values up to which they count as zero."""


def check_prior_precision(prior_precision: float | None) -> None:
    """Validate a prior precision that is added to the gradient as a weight decay; 0 is an improper prior."""
    if prior_precision is not None and not 0 <= prior_precision < math.inf:
        raise ValueError(f"prior_precision must be finite and at least 0, got {prior_precision}.")


def check_prior_precision_spec(prior_precision: object) -> None:
    """Validate the prior precision of variational inference; 0 is refused, since the KL divergence is infinite.

    Raises:
        ValueError: A number is not positive and finite, the mapping is empty, or the type or word is another one.
    """
    if isinstance(prior_precision, dict):
        if not prior_precision:
            raise ValueError("prior_precision must map at least one name pattern to a precision, got {}.")
        for pattern, value in prior_precision.items():
            _check_positive(f"prior_precision of {pattern!r}", value)
    elif isinstance(prior_precision, Real):
        try:
            precision = float(prior_precision)
        except OverflowError:  # an integer above the largest float
            precision = math.inf
        _check_positive("prior_precision", precision)
    elif prior_precision != "initial":
        raise ValueError(f"prior_precision must be a number, a mapping or 'initial', got {prior_precision!r}.")


def scale_precision(prior_precision: PriorPrecision, factor: float) -> PriorPrecision:
    """Multiply a precision, or that of each name pattern.

    Raises:
        ValueError: The prior has the scale of the initial weights.
    """
    if isinstance(prior_precision, dict):
        return {pattern: precision * factor for pattern, precision in prior_precision.items()}
    if isinstance(prior_precision, str):
        raise ValueError(
            f"prior_factor={factor:g} multiplies a precision, and prior_precision={prior_precision!r} is the scale "
            "of the initial weights. Give a number, or a mapping of name patterns to numbers."
        )
    return prior_precision * factor


def resolve_prior_precisions(
    model: nn.Module, params: Mapping[str, nn.Parameter], prior_precision: PriorPrecision
) -> dict[str, float] | None:
    """Return the prior precision of each parameter by name; None where one number holds for all.

    In a mapping the first pattern that matches a name applies.

    Raises:
        ValueError: A parameter matches no pattern, or a pattern applies to no parameter.
    """
    if isinstance(prior_precision, dict):
        return _match_precision_patterns(params, prior_precision)
    if prior_precision == "initial":
        initial = named_trainable(model)
        return {name: initial_scale(name, param, initial) ** -2 for name, param in params.items()}
    return None


def initial_scale(name: str, param: Tensor, named_params: Mapping[str, Tensor]) -> float:
    """Return the root mean square of a parameter's values, or a default for its layer where they are all zero.

    The default is 1 / sqrt(fan-in) of the weight, where the fan-in is the number of weights per output. A bias has
    the fan-in of the weight of its layer (the name with `weight` for `bias`). Without such a matrix the default is 1.
    """
    mean_square = param.detach().cpu().double().square().mean().item()
    if mean_square > MIN_INITIAL_STD**2:
        return math.sqrt(mean_square)
    path, dot, leaf = name.rpartition(".")
    weight = param
    if param.dim() < 2:
        weight_name = leaf.replace("bias", "weight")
        parametrized_names = [f"parametrizations.{weight_name}.{original}" for original in ("original", "original1")]
        names = [f"{path}{dot}{name}" for name in (weight_name, *parametrized_names)]
        weight = next((named_params[name] for name in names if name in named_params), param)
    return 1.0 if weight.dim() < 2 else (weight.numel() / weight.shape[0]) ** -0.5


def expand_precisions(precisions: Mapping[str, float], params: Mapping[str, nn.Parameter]) -> Tensor:
    """Return one precision per weight in one vector, in the order of the parameters and at least float32."""
    values = [torch.full_like(p, precisions[name], dtype=widen(p.dtype)) for name, p in params.items()]
    return flatten(values)


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value}.")


def _match_precision_patterns(
    params: Mapping[str, nn.Parameter], precisions: Mapping[str, float]
) -> dict[str, float]:
    by_name: dict[str, float] = {}
    for pattern, precision in precisions.items():
        new_names = [name for name in match_names(list(params), pattern) if name not in by_name]
        if not new_names:
            raise ValueError(
                f"The pattern {pattern!r} of prior_precision applies to no parameter with a distribution: they are "
                f"{format_patterns(list(params))}, and the first pattern that matches applies."
            )
        by_name |= dict.fromkeys(new_names, precision)
    unmatched = {name: param for name, param in params.items() if name not in by_name}
    if unmatched:
        raise ValueError(
            f"prior_precision has no pattern for {format_names(unmatched)}. Add one, or '*' at the end for the rest."
        )
    return {name: by_name[name] for name in params}
