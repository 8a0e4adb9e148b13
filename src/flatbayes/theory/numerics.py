"""Argument checks and bisection, shared by the closed forms and bounds of this package.

`flatbayes.flatness` has a `check_radius` of its own: this package is an oracle and shares no code with what it tests.
"""

import math
from collections.abc import Callable


def check_radius(rho: float) -> None:
    """Check the radius of a ball."""
    if not 0 <= rho < math.inf:
        raise ValueError(f"rho is the radius of a ball: it must be finite and at least 0, got {rho}.")


def check_positive(**values: float) -> None:
    """Check that named values are positive and finite."""
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}.")


def check_probability(name: str, value: float) -> None:
    """Check that a value lies in [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie between 0 and 1, got {value}.")


def check_delta(name: str, value: float) -> None:
    """Check that the failure probability of a bound lies strictly between 0 and 1."""
    if not 0 < value < 1:
        raise ValueError(f"{name} is a probability of failure: it must lie strictly between 0 and 1, got {value}.")


def find_increasing_root(
    function: Callable[[float], float], low: float, high: float, *, target: float = 0.0
) -> float:
    """Bisection to the last bit: where an increasing function exceeds `target`.

    Returns:
        The upper end of the last interval, so that an upper bound stays one after rounding.
    """
    while low < (middle := low + (high - low) / 2) < high:
        if function(middle) <= target:
            low = middle
        else:
            high = middle
    return high
