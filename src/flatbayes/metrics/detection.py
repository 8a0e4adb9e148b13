"""Detection: does a score tell one kind of example from the other?

The positive examples are those that should score high: for out-of-distribution detection by an uncertainty, the
examples from outside. AUROC, AUPR and FPR at a TPR depend on the order of the scores only; the divergence of
entropy histograms (Maddox et al., NeurIPS 2019) depends on bins.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from flatbayes.metrics.checks import check_probs

ENTROPY_EDGES_LOGSPACE = (-8.0, 0.5, 30)
"""log10 of the first and the last edge of the histograms of entropy, and their number."""
BIN_PSEUDOCOUNT = 1e-7
"""Added to the count of every bin, so that no divergence is infinite."""


def auroc(scores: Float[Tensor, " examples"], positive: Bool[Tensor, " examples"]) -> float:
    """Area under the ROC curve: P(score of a positive > score of a negative), ties counted half.

    Computed as the Mann-Whitney statistic from average ranks. NaN where either kind is absent.

    Args:
        scores: Higher for what looks positive; infinite ones are allowed.
        positive: Which examples are.

    Raises:
        ValueError: Scores and examples do not match, or a score is NaN.
    """
    scores, positive = _check_scores(scores, positive)
    num_positive = int(positive.sum())
    num_negative = len(positive) - num_positive
    if not num_positive or not num_negative:
        return math.nan
    _, place, counts = torch.unique(scores, return_inverse=True, return_counts=True)
    # Those that tie share their average rank; twice that is a whole number, so nothing is rounded.
    twice_ranks = 2 * counts.cumsum(0) - counts + 1
    twice_wins = int(twice_ranks[place][positive].sum()) - num_positive * (num_positive + 1)
    return twice_wins / (2 * num_positive * num_negative)


def aupr(scores: Float[Tensor, " examples"], positive: Bool[Tensor, " examples"]) -> float:
    """Average precision: sum over thresholds of precision x increase of recall, without interpolation.

    A score that says nothing has the fraction of positives, not 0.5. The two kinds are not alike: for the
    other one as the positive, pass `-scores` and `~positive`. NaN where either kind is absent.

    Args:
        scores: Higher for what looks positive; examples that tie enter together.
        positive: Which examples are.

    Raises:
        ValueError: Scores and examples do not match, or a score is NaN.
    """
    scores, positive = _check_scores(scores, positive)
    if not positive.any() or positive.all():
        return math.nan
    true, false = _operating_points(scores, positive)
    precision = true / (true + false)
    increase = true.diff(prepend=true.new_zeros(1)) / true[-1]
    return float((precision * increase).sum())


def fpr_at_tpr(scores: Float[Tensor, " examples"], positive: Bool[Tensor, " examples"], tpr: float = 0.95) -> float:
    """Fraction of negatives that pass the highest threshold that at least `tpr` of the positives pass.

    Thresholds are scores that occur, without interpolation, and an example passes at or above one. NaN where
    either kind is absent.

    Args:
        scores: Higher for what looks positive.
        positive: Which examples are.
        tpr: Fraction of positives to detect, above 0 and at most 1.

    Raises:
        ValueError: Scores and examples do not match, a score is NaN, or there is no such fraction.
    """
    if not 0 < tpr <= 1:
        raise ValueError(f"tpr is a fraction of the positives, above 0 and at most 1, got {tpr}. Try 0.95.")
    scores, positive = _check_scores(scores, positive)
    if not positive.any() or positive.all():
        return math.nan
    true, false = _operating_points(scores, positive)
    enough = true / true[-1] >= tpr
    return float(false[enough][0] / false[-1])


def auroc_correct(probs: Float[Tensor, "examples classes"], labels: Int[Tensor, " examples"]) -> float:
    """AUROC of telling right predictions from wrong ones by the top probability.

    NaN where all predictions are right, or all wrong: there is nothing to tell apart.

    Raises:
        ValueError: Probabilities or labels are not what they should be.
    """
    probs, labels = check_probs(probs, labels)
    top = probs.argmax(-1)
    return auroc(probs.gather(1, top[:, None]).squeeze(1), top == labels)


def entropy_divergence(test_entropies: Float[Tensor, " test"], ood_entropies: Float[Tensor, " ood"]) -> float:
    """KL(p || q) + KL(q || p) of the histograms p and q of the entropies of two sets of examples, in nats.

    The protocol of Maddox et al. (NeurIPS 2019): 30 edges, evenly spaced in the logarithm from 1e-8 to
    10^0.5, and 1e-7 added to every count. Here the first bin reaches down to 0 and the last one up, where the
    original drops what lies outside. Large where the two sets hardly share a bin: what an empty bin costs is
    set by the 1e-7 and by the number of examples, so compare only values for as many examples.

    Args:
        test_entropies: Entropies of the predictions for classes that were trained on, in nats.
        ood_entropies: The same for classes that were not.

    Raises:
        ValueError: Entropies are missing, negative or not finite.
    """
    p, q = (
        _entropy_histogram(values, name) for values, name in ((test_entropies, "inside"), (ood_entropies, "outside"))
    )
    return float(((p - q) * (p.log() - q.log())).sum())


def _check_scores(scores: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
    if scores.ndim != 1 or scores.shape != positive.shape or positive.dtype != torch.bool:
        raise ValueError(
            f"Expected one score and one bool for each example, got scores of shape {tuple(scores.shape)} "
            f"and {positive.dtype} of shape {tuple(positive.shape)}. Pass two vectors, the second a mask."
        )
    scores, positive = scores.detach().cpu().double(), positive.cpu()
    if scores.isnan().any():
        raise ValueError(
            f"Scores must be numbers, got {int(scores.isnan().sum())} that are NaN. Leave these examples out."
        )
    return scores, positive


def _operating_points(scores: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
    """Positives and negatives at or above each distinct score, from the highest to the lowest."""
    _, place = torch.unique(scores, return_inverse=True)
    levels = int(place.max()) + 1
    true = torch.bincount(place[positive], minlength=levels).flip(0).cumsum(0)
    false = torch.bincount(place[~positive], minlength=levels).flip(0).cumsum(0)
    return true.double(), false.double()


def _entropy_histogram(entropies: Tensor, name: str) -> Tensor:
    values = entropies.detach().cpu().double().contiguous()
    if values.ndim != 1 or not len(values) or not values.isfinite().all() or (values < -BIN_PSEUDOCOUNT).any():
        raise ValueError(
            f"Expected the entropies of at least 1 {name} example, finite and not negative, got shape "
            f"{tuple(values.shape)} and {int((~values.isfinite()).sum())} that are not finite. Pass a vector."
        )
    low, high, number = ENTROPY_EDGES_LOGSPACE
    edges = torch.logspace(low, high, number, dtype=torch.float64)
    counts = torch.bincount(torch.bucketize(values, edges[1:-1], right=True), minlength=number - 1)
    filled = counts.double() + BIN_PSEUDOCOUNT
    return filled / filled.sum()
