"""Quantiles of split conformal prediction, and the distribution of the coverage that they guarantee.

With n calibration scores and a new one, all exchangeable, the rank of the new score among the n + 1 is uniform. So it
is at most the k-th smallest calibration score with probability k / (n + 1), or more if scores tie (Vovk et al.,
Algorithmic Learning in a Random World, 2005; Lei et al., JASA 2018). Given the calibration scores, the coverage of
new examples has the distribution Beta(k, n + 1 - k) (Vovk, ACML 2012), so that the number of covered examples among m
is beta-binomial.
"""

import math
from fractions import Fraction

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from flatbayes.core.names import format_count


def conformal_rank(num_examples: int, level: float) -> int:
    """Rank k = ceil((n + 1) level), exact in the decimal digits of the level; n + 1 where n scores are too few.

    Args:
        num_examples: Number n of calibration scores.
        level: Wanted coverage, strictly between 0 and 1.

    Raises:
        ValueError: The level is out of range.

    Examples:
        >>> conformal_rank(9, 0.9), conformal_rank(8, 0.9), conformal_rank(99, 0.9)
        (9, 9, 90)
    """
    if not 0 < level < 1:
        raise ValueError(f"The level of a conformal prediction lies strictly between 0 and 1, got {level}. Try 0.9.")
    return math.ceil((num_examples + 1) * Fraction(str(float(level))))  # 0.7 * 10 as a float would be above 7


def required_examples(level: float) -> int:
    """Smallest number of calibration scores with a finite quantile: the smallest n with (n + 1) level <= n."""
    fraction = Fraction(str(float(level)))
    return math.ceil(fraction / (1 - fraction))


def conformal_quantile(scores: Float[Tensor, "examples ..."], level: float) -> Float[Tensor, "..."]:
    """The k-th smallest score, k = ceil((n + 1) level); infinite where k > n.

    Args:
        scores: Scores of calibration examples; with a second axis, separately for each target.
        level: Wanted coverage, strictly between 0 and 1.

    Raises:
        ValueError: The level is out of range, or a score is NaN.

    Examples:
        >>> conformal_quantile(torch.tensor([3.0, 1.0, 2.0, 4.0]), 0.6)
        tensor(3., dtype=torch.float64)
        >>> conformal_quantile(torch.tensor([3.0, 1.0, 2.0, 4.0]), 0.9)  # 4 scores are too few
        tensor(inf, dtype=torch.float64)
    """
    scores = scores.detach().cpu().double()
    if num_nan := int(scores.isnan().sum()):
        raise ValueError(
            f"{format_count(num_nan, 'score')} of calibration examples {'is' if num_nan == 1 else 'are'} NaN. Check "
            "the predictions and targets."
        )
    rank = conformal_rank(len(scores), level)
    if rank > len(scores):
        return torch.full(scores.shape[1:], math.inf, dtype=torch.float64)
    return scores.kthvalue(rank, dim=0).values


def coverage_interval(num_calibration: int, level: float, probability: float) -> tuple[float, float]:
    """Central interval of the coverage of all new examples, given the calibration examples."""
    from scipy.stats import beta  # slow to import

    rank = conformal_rank(num_calibration, level)
    if rank > num_calibration:
        return 1.0, 1.0
    low, high = beta(rank, num_calibration + 1 - rank).interval(probability)
    return float(low), float(high)


def sample_coverage_interval(
    num_calibration: int, num_test: int, level: float, probability: float
) -> tuple[float, float]:
    """Central interval of the observed coverage of new examples, if the assumptions hold and no scores tie."""
    from scipy.stats import betabinom  # slow to import

    rank = conformal_rank(num_calibration, level)
    if rank > num_calibration or num_test == 0:
        return (1.0, 1.0) if num_test else (0.0, 1.0)
    low, high = betabinom(num_test, rank, num_calibration + 1 - rank).interval(probability)
    return float(low) / num_test, float(high) / num_test


def hash_to_uniforms(values: Float[Tensor, "examples classes"], seed: int) -> Float[Tensor, " examples"]:
    """A pseudo-random number in [0, 1) for each row that depends on its values and the seed only.

    A score that is randomised by it remains a fixed function of the example: its coverage holds for any batches and
    any number of calls, and an example always gets the same set. The numbers are those of a SplitMix64 hash (Steele
    et al., OOPSLA 2014) of the bits of the values.
    """
    bits = np.ascontiguousarray(values.detach().cpu().double().numpy()).view(np.uint64)
    keys = _mix(np.arange(bits.shape[1], dtype=np.uint64) + _mix(np.array([seed % 2**64], dtype=np.uint64)))
    hashes = _mix(_mix(bits ^ keys).sum(1, dtype=np.uint64))
    return torch.from_numpy((hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
