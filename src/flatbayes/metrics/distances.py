"""Distances of predictions to those of a reference posterior (Wilson et al., NeurIPS 2021 competition).

Agreement and total variation compare class probabilities; the 1-Wasserstein distance compares predictive
distributions of a number, which are mixtures of normal distributions.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from flatbayes.core.devices import iter_row_blocks
from flatbayes.metrics.checks import check_same_probs

NUM_NODES = 1024
"""Points at which the distribution functions are compared."""
HALF_WIDTH_STDS = 6.0
"""The points reach this many standard deviations beyond the mean of every member, and are dense around each."""
MIN_NODES_PER_MEMBER = 13
"""Points around each member, of which as many as `NUM_NODES` are used in all."""
MIN_STD_FRACTION = 1e-9
"""Smallest standard deviation, as a part of the distance of the means; smaller ones count as this."""


def agreement(probs: Float[Tensor, "examples classes"], reference_probs: Float[Tensor, "examples classes"]) -> float:
    """Fraction of examples with the same most probable class.

    Args:
        probs: Class probabilities.
        reference_probs: Those of the reference.

    Raises:
        ValueError: The probabilities are invalid, or their shapes differ.

    Examples:
        >>> probs = torch.tensor([[0.9, 0.1], [0.4, 0.6]])
        >>> agreement(probs, torch.tensor([[0.6, 0.4], [0.7, 0.3]]))
        0.5
    """
    probs, reference_probs = check_same_probs(probs, reference_probs)
    return float((probs.argmax(-1) == reference_probs.argmax(-1)).double().mean())


def total_variation(
    probs: Float[Tensor, "examples classes"], reference_probs: Float[Tensor, "examples classes"]
) -> float:
    """Total variation distance sum_c |p_c - q_c| / 2, averaged over the examples; from 0 to 1.

    Args:
        probs: Class probabilities.
        reference_probs: Those of the reference.

    Raises:
        ValueError: The probabilities are invalid, or their shapes differ.

    Examples:
        >>> probs = torch.tensor([[0.9, 0.1], [0.4, 0.6]])
        >>> round(total_variation(probs, torch.tensor([[0.6, 0.4], [0.7, 0.3]])), 3)
        0.3
    """
    probs, reference_probs = check_same_probs(probs, reference_probs)
    return float((probs - reference_probs).abs().sum(-1).mean() / 2)


def wasserstein_distance(
    means: Float[Tensor, "draws examples ..."],
    stds: Float[Tensor, "draws examples ..."],
    reference_means: Float[Tensor, "reference_draws examples ..."],
    reference_stds: Float[Tensor, "reference_draws examples ..."],
) -> float:
    """1-Wasserstein distance of two mixtures of normal distributions, int |F(y) - G(y)| dy, averaged over targets.

    F and G are the distribution functions, and the integral is a sum over a grid. The distance has the unit of the
    targets. Samples of the two, as in the competition, would add the distance that two samples of the same
    distribution have.

    Args:
        means: Means of the members.
        stds: Standard deviations of the members.
        reference_means: Means of the members of the reference.
        reference_stds: Their standard deviations.

    Raises:
        ValueError: The examples differ in number or targets, or values are not finite.

    Examples:
        >>> ones = torch.ones(1, 1)
        >>> round(wasserstein_distance(0 * ones, ones, 2 * ones, ones), 3)  # of N(0, 1) and N(2, 1)
        2.0
    """
    if means.shape[1:] != reference_means.shape[1:]:
        raise ValueError(
            f"Predictions of the shape {tuple(means.shape[1:])} cannot be compared with a reference of the shape "
            f"{tuple(reference_means.shape[1:])}. Give predictions of the same examples in the same order."
        )
    mixtures = [
        (mean.detach().cpu().double().flatten(1), std.detach().cpu().double().flatten(1))
        for mean, std in ((means, stds), (reference_means, reference_stds))
    ]
    if not all(bool(tensor.isfinite().all()) for mixture in mixtures for tensor in mixture):
        raise ValueError("Predictions must be finite, got some that are not. Check whether the training diverged.")
    distances = torch.empty(mixtures[0][0].shape[1], dtype=torch.float64)
    num_members = sum(len(mean) for mean, _ in mixtures)
    for columns in iter_row_blocks(distances[:, None].expand(-1, NUM_NODES * num_members)):
        block = [(mean[:, columns], std[:, columns]) for mean, std in mixtures]
        distances[columns] = _integrate_distance(block)
    return float(distances.mean())


def _integrate_distance(mixtures: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Distances of two mixtures, each of means and standard deviations of the shape (members, targets)."""
    means, stds = (torch.cat(values) for values in zip(*mixtures, strict=True))
    smallest = (MIN_STD_FRACTION * (means.amax(0) - means.amin(0))).clamp_min(torch.finfo(means.dtype).tiny)
    count = max(MIN_NODES_PER_MEMBER, math.ceil(NUM_NODES / len(means)))
    offsets = torch.linspace(-HALF_WIDTH_STDS, HALF_WIDTH_STDS, count, dtype=torch.float64)[:, None, None]
    nodes = (means + offsets * stds.maximum(smallest)).flatten(0, 1).sort(0).values
    nodes = nodes[torch.linspace(0, len(nodes) - 1, NUM_NODES).round().long()]
    first, second = (
        torch.special.ndtr((nodes[:, None] - mean) / std.maximum(smallest)).mean(1) for mean, std in mixtures
    )
    distances: Tensor = torch.trapezoid((first - second).abs(), nodes, dim=0)
    return distances
