"""Hyperparameters that the closed forms refuse."""

import math


def check_radius(rho: float) -> None:
    """Refuse a radius that is none.

    Raises:
        ValueError: It is negative or not finite.
    """
    if not 0 <= rho < math.inf:
        raise ValueError(f"rho is the radius of a ball: it must be finite and at least 0, got {rho}.")


def check_positive(**values: float) -> None:
    """Refuse what must be positive and is not.

    Raises:
        ValueError: A value is zero, negative or not finite; it is named.
    """
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}.")
