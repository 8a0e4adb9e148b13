"""Wilson's interval of a proportion, and the design effect of predictions that depend on each other (Kish, 1965)."""

import math
from statistics import NormalDist

import torch
from jaxtyping import Float, Int
from torch import Tensor


def wilson_interval(hits: int, count: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a proportion: all p with |hits / count - p| <= z sqrt(p (1 - p) / count).

    Args:
        hits: Number of successes.
        count: Number of trials; for 0 the interval is (0, 1).
        level: Confidence level, between 0 and 1.

    Raises:
        ValueError: The level is out of range, or there are more successes than trials.

    Examples:
        >>> lower, upper = wilson_interval(hits=8, count=10)
        >>> round(lower, 3), round(upper, 3)
        (0.49, 0.943)
    """
    if not 0 < level < 1:
        raise ValueError(f"The level of an interval lies between 0 and 1, got {level}. Try 0.95.")
    if not 0 <= hits <= count:
        raise ValueError(f"Successes are between 0 and the number of trials, got {hits} of {count}.")
    if count == 0:
        return 0.0, 1.0
    square = NormalDist().inv_cdf(0.5 + level / 2) ** 2
    rate = hits / count
    centre = (rate + square / (2 * count)) / (1 + square / count)
    half = math.sqrt(square * (rate * (1 - rate) / count + square / (4 * count**2))) / (1 + square / count)
    return (0.0 if hits == 0 else centre - half), (1.0 if hits == count else centre + half)


def estimate_design_effect(values: Float[Tensor, " predictions"], examples: Int[Tensor, " predictions"]) -> float:
    """Variance of a mean of values of which those of an example may depend on each other, beside independent ones.

    The number of values divided by it is that of independent values with the same standard error. With sums S of the
    m examples, values x and their mean 0 it is m / (m - 1) sum S^2 / sum x^2, at least 1. A single example counts as
    one value.

    `examples` has the number of the example of each value, from 0.

    Examples:
        >>> values = torch.tensor([0.0, 0.0, 1.0, 1.0]).repeat(50)
        >>> round(estimate_design_effect(values, torch.arange(200) // 2), 2)  # equal ones in an example
        2.02
        >>> estimate_design_effect(values, torch.arange(200) // 4)  # every example has the same mean
        1.0
    """
    centred = values.double() - values.double().mean()
    counts = torch.bincount(examples)
    num_examples = int((counts > 0).sum())
    if num_examples < 2:
        return float(max(1, len(values)))
    total = float(centred.square().sum())
    sums = torch.bincount(examples, weights=centred)
    return max(1.0, num_examples / (num_examples - 1) * float(sums.square().sum()) / total) if total else 1.0
