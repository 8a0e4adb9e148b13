"""Size of the deep ensemble that predicts as well: the deep-ensemble equivalent (Ashukha et al., ICLR 2020).

Likelihoods of different methods are compared at their optimal temperatures (`cross_fitted_nll`), and the result is
expressed as the number of independently trained networks that reach the same.
"""

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flatbayes.core.randomness import Stream, make_generator
from flatbayes.metrics.classification import nll
from flatbayes.metrics.temperature import apply_temperature, fit_temperature

NUM_SPLITS = 5
"""Random splits into halves that a cross-fitted NLL is averaged over."""
MAX_SUBSETS = 3
"""Largest number of subsets of each size that the NLL of an ensemble is averaged over."""


def cross_fitted_nll(
    log_probs: Float[Tensor, "examples classes"], labels: Int[Tensor, " examples"], num_splits: int = NUM_SPLITS
) -> float:
    """NLL of each half of the examples at the temperature that is fitted to the other half, averaged over splits.

    Methods are thereby compared at their optimal temperatures without validation data, and no label is used for its
    own prediction. The temperatures have the weak prior of `fit_temperature`.

    Args:
        log_probs: Log of the averaged probabilities.
        labels: Index of the true class.
        num_splits: Random splits into halves, the same for all predictions of as many examples.

    Returns:
        The NLL in nats; infinite if a label has probability 0, NaN for a single example.

    Raises:
        ValueError: The log probabilities or labels are invalid.

    Examples:
        >>> probs, labels = torch.tensor([[0.99, 0.01]]).repeat(200, 1), torch.arange(200) % 4 == 0
        >>> nll(probs.log(), labels.long()) > 1, cross_fitted_nll(probs.log(), labels.long()) < 0.6
        (True, True)
    """
    if nll(log_probs, labels) == math.inf:
        return math.inf
    if len(labels) < 2:
        return math.nan
    total = 0.0
    for split in range(num_splits):
        order = torch.randperm(len(labels), generator=make_generator(Stream.CALIBRATION_HALVES, split))
        halves = order.chunk(2)
        for fitted, evaluated in (halves, halves[::-1]):
            temperature = fit_temperature(log_probs[fitted], labels[fitted])
            scaled = apply_temperature(log_probs[evaluated], temperature)
            total += nll(scaled, labels[evaluated]) * len(evaluated)
    return total / (num_splits * len(labels))


def ensemble_nlls(
    member_probs: Float[Tensor, "members examples classes"],
    labels: Int[Tensor, " examples"],
    num_splits: int = NUM_SPLITS,
) -> tuple[float, ...]:
    """Cross-fitted NLL of ensembles of 1, 2, ... members.

    Args:
        member_probs: Class probabilities of each member.
        labels: Index of the true class.
        num_splits: As for `cross_fitted_nll`.

    Returns:
        A value for each size, averaged over up to three subsets of successive members.

    Examples:
        >>> member_probs = torch.tensor([[[0.9, 0.1]], [[0.5, 0.5]]]).repeat(1, 8, 1)
        >>> len(ensemble_nlls(member_probs, torch.arange(8) % 2))
        2
    """
    count = len(member_probs)
    values = []
    for size in range(1, count + 1):
        starts = range(1 if size == count else min(count, MAX_SUBSETS))
        subsets = [[(start + k) % count for k in range(size)] for start in starts]
        log_probs = [member_probs[subset].double().mean(0).clamp_min(1e-38).log() for subset in subsets]
        values.append(sum(cross_fitted_nll(mean, labels, num_splits) for mean in log_probs) / len(subsets))
    return tuple(values)


def ensemble_equivalent(value: float, nlls: Sequence[float]) -> float:
    """Size of the smallest ensemble with this NLL, interpolated linearly between sizes.

    Args:
        value: Cross-fitted NLL of a method.
        nlls: Those of ensembles of 1, 2, ... members; where one is above that of a smaller ensemble, it counts as
            equal to it.

    Returns:
        From 1, also for a worse method than one member, to the largest size, also for a better one; NaN where a value
        is not finite.

    Examples:
        >>> ensemble_equivalent(0.25, [0.5, 0.3, 0.2])
        2.5
        >>> ensemble_equivalent(0.6, [0.5, 0.3, 0.2]), ensemble_equivalent(0.1, [0.5, 0.3, 0.2])
        (1.0, 3.0)
    """
    if not nlls or not all(map(math.isfinite, (value, *nlls))):
        return math.nan
    curve = list(accumulate(nlls, min))
    for size, (worse, better) in enumerate(pairwise(curve), 1):
        if value >= better:
            return size + (max(0.0, worse - value) / (worse - better) if worse > better else 0.0)
    return float(len(curve))
