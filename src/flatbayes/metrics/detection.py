"""Detection metrics: how well a score separates positive from negative examples.

Positive examples should have high scores; for out-of-distribution detection by an uncertainty they are the
out-of-distribution examples. AUROC, AUPR and FPR at a TPR depend only on the order of the scores, and equal those of
scikit-learn to the last bit; its import, which takes up to a second, would be most of the time of a small evaluation.
The divergence of entropy histograms (Maddox et al., NeurIPS 2019) depends on its bins.
"""

import math

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from flatbayes.metrics.calibration import top_predictions
from flatbayes.metrics.checks import require_tensors

ENTROPY_EDGES_LOGSPACE = (-8.0, 0.5, 30)
"""log10 of the first and the last edge of the entropy histograms, and the number of edges."""
BIN_PSEUDOCOUNT = 1e-7
"""Added to the count of every bin, which keeps divergences finite."""


def auroc(scores: Float[Tensor, " examples"], positive: Bool[Tensor, " examples"]) -> float:
    """Area under the ROC curve: P(score of a positive > score of a negative), ties counted half.

    Args:
        scores: Higher for examples that look positive; infinite scores are allowed.
        positive: Mask of the positive examples.

    Returns:
        NaN if all examples are positive or all are negative.

    Raises:
        ValueError: The shapes do not match, or a score is NaN.

    Examples:
        >>> auroc(torch.tensor([0.9, 0.7, 0.3, 0.1]), torch.tensor([True, False, True, False]))
        0.75
    """
    false, true = _count_detections(scores, positive)
    if not true[-1] or not false[-1]:
        return math.nan
    # Only the corners of the curve, as in scikit-learn: the area is the same, and so is its rounding error.
    corners = np.ones(len(false), dtype=bool)
    corners[2:-1] = (np.diff(false, 2) | np.diff(true, 2))[1:] != 0
    false_rates, true_rates = false[corners] / false[-1], true[corners] / true[-1]
    return float((np.diff(false_rates) * (true_rates[1:] + true_rates[:-1]) / 2.0).sum())


def aupr(scores: Float[Tensor, " examples"], positive: Bool[Tensor, " examples"]) -> float:
    """Average precision: sum over thresholds of precision x increase of recall, without interpolation.

    An uninformative score has the fraction of positives as its value, not 0.5. The classes are not symmetric: for the
    other one as the positive class, pass `-scores` and `~positive`.

    Args:
        scores: Higher for examples that look positive; tied examples share a threshold.
        positive: Mask of the positive examples.

    Returns:
        NaN if all examples are positive or all are negative.

    Raises:
        ValueError: The shapes do not match, or a score is NaN.

    Examples:
        >>> round(
        ...     aupr(torch.tensor([0.9, 0.7, 0.3, 0.1]), torch.tensor([True, False, True, False])),
        ...     3,
        ... )
        0.833
    """
    false, true = _count_detections(scores, positive)
    if not true[-1] or not false[-1]:
        return math.nan
    precision, recall = true[1:] / (true[1:] + false[1:]), true / true[-1]
    return max(0.0, float((np.diff(recall) * precision)[::-1].sum()))


def fpr_at_tpr(scores: Float[Tensor, " examples"], positive: Bool[Tensor, " examples"], tpr: float = 0.95) -> float:
    """False positive rate at the highest threshold with a true positive rate of at least `tpr`.

    Thresholds are the scores that occur, without interpolation; an example at or above one is predicted positive.

    Args:
        scores: Higher for examples that look positive.
        positive: Mask of the positive examples.
        tpr: True positive rate, above 0 and at most 1.

    Returns:
        NaN if all examples are positive or all are negative.

    Raises:
        ValueError: The shapes do not match, a score is NaN, or `tpr` is out of range.

    Examples:
        >>> scores, positive = (
        ...     torch.tensor([0.9, 0.7, 0.3, 0.1]),
        ...     torch.tensor([True, False, True, False]),
        ... )
        >>> fpr_at_tpr(scores, positive, tpr=1.0)
        0.5
    """
    if not 0 < tpr <= 1:
        raise ValueError(f"tpr is a fraction of the positives, above 0 and at most 1, got {tpr}. Try 0.95.")
    false, true = _count_detections(scores, positive)
    if not true[-1] or not false[-1]:
        return math.nan
    return float((false / false[-1])[np.argmax(true / true[-1] >= tpr)])


def auroc_correct(probs: Float[Tensor, "examples classes"], labels: Int[Tensor, " examples"]) -> float:
    """AUROC of the separation of right from wrong predictions by the top probability.

    Args:
        probs: Class probabilities.
        labels: Index of the true class.

    Returns:
        NaN if all predictions are right, or all are wrong.

    Raises:
        ValueError: The probabilities or labels are invalid.

    Examples:
        >>> probs = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7]])
        >>> auroc_correct(probs, torch.tensor([0, 1, 1, 1]))
        1.0
    """
    confidence, is_right = top_predictions(probs, labels)
    return auroc(confidence, is_right.bool())


def entropy_divergence(test_entropies: Float[Tensor, " test"], ood_entropies: Float[Tensor, " ood"]) -> float:
    """Symmetric divergence KL(p || q) + KL(q || p) of the entropy histograms p and q of two data sets, in nats.

    The protocol of Maddox et al. (NeurIPS 2019): 30 edges, evenly spaced in the logarithm from 1e-8 to 10^0.5, and
    1e-7 added to every count. Here the first bin extends down to 0 and the last one up to infinity, where the
    original drops such values. The cost of an empty bin depends on the 1e-7 and on the number of examples, so compare
    only values for equal numbers of examples.

    Args:
        test_entropies: Entropies of the predictions for examples of known classes, in nats.
        ood_entropies: Entropies of the predictions for out-of-distribution examples, in nats.

    Raises:
        ValueError: Entropies are missing, negative or not finite.

    Examples:
        >>> test_entropies, ood_entropies = torch.full((100,), 0.1), torch.full((100,), 2.0)
        >>> round(entropy_divergence(test_entropies, ood_entropies), 1)
        41.4
        >>> entropy_divergence(test_entropies, test_entropies)
        0.0
    """
    p, q = _entropy_histogram(test_entropies, "test"), _entropy_histogram(ood_entropies, "out-of-distribution")
    return float(((p - q) * (p.log() - q.log())).sum())


def _count_detections(scores: Tensor, positive: Tensor) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """False and true positives at each threshold: above all scores, then every score, from the highest.

    Infinite scores are allowed, since only the order matters.
    """
    require_tensors(scores, positive)
    if scores.ndim != 1 or scores.shape != positive.shape or positive.dtype != torch.bool:
        raise ValueError(
            f"Expected one score and one bool for each example, got scores of shape {tuple(scores.shape)} "
            f"and {positive.dtype} of shape {tuple(positive.shape)}. Pass two vectors, the second a mask."
        )
    scores = scores.detach().cpu().double()
    if scores.isnan().any():
        raise ValueError(
            f"Scores must be numbers, got {int(scores.isnan().sum())} that are NaN. Leave these examples out."
        )
    values, ranks = torch.unique(scores, return_inverse=True)
    positive = positive.cpu()
    false, true = (
        torch.bincount(ranks[mask], minlength=len(values)).flip(0).cumsum(0).numpy() for mask in (~positive, positive)
    )
    return np.concatenate([[0], false]), np.concatenate([[0], true])


def _entropy_histogram(entropies: Tensor, name: str) -> Tensor:
    require_tensors(entropies)
    values = entropies.detach().cpu().double().contiguous()
    if values.ndim != 1 or not len(values) or not values.isfinite().all() or (values < -BIN_PSEUDOCOUNT).any():
        raise ValueError(
            f"Expected the entropies of at least 1 {name} example, finite and not negative, got shape "
            f"{tuple(values.shape)} and {int((~values.isfinite()).sum())} that are not finite. Pass a vector."
        )
    low, high, num_edges = ENTROPY_EDGES_LOGSPACE
    edges = torch.logspace(low, high, num_edges, dtype=torch.float64)
    counts = torch.bincount(torch.bucketize(values, edges[1:-1], right=True), minlength=num_edges - 1)
    smoothed = counts.double() + BIN_PSEUDOCOUNT
    return smoothed / smoothed.sum()
