"""Metrics of several labels of an example, each of which is predicted as a class of its own (multi-label)."""

import math
from statistics import fmean

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flatbayes.core.devices import to_double
from flatbayes.core.names import format_count
from flatbayes.metrics.checks import require_tensors
from flatbayes.metrics.classification import ExampleScores, score_examples
from flatbayes.metrics.detection import aupr, auroc


def multi_label_metrics(
    log_probs: Float[Tensor, "examples labels 2"], targets: Int[Tensor, "examples labels"]
) -> dict[str, float]:
    """Compute all metrics of `MULTI_LABEL_METRICS`.

    Accuracy, ECE and Brier score are those of all known labels of all examples, as predictions of two classes.

    Args:
        log_probs: Log of the averaged probabilities that a label is 0, and that it is 1.
        targets: 0 or 1; any other value where a label is not known.

    Returns:
        Values by name; those of the ranking are NaN where no label has both values.

    Raises:
        ValueError: The log probabilities are invalid, the shapes do not match, or no label is known.

    Examples:
        >>> probs = torch.tensor([[0.9, 0.4], [0.6, 0.7], [0.2, 0.1]])
        >>> targets = torch.tensor([[1, 0], [0, 1], [0, -100]])  # the last label is not known
        >>> metrics = multi_label_metrics(torch.stack([1 - probs, probs], -1).log(), targets)
        >>> {name: round(metrics[name], 3) for name in ("accuracy", "exact_match", "nll", "macro_auroc")}
        {'accuracy': 0.8, 'exact_match': 0.667, 'nll': 0.704, 'macro_auroc': 1.0}
    """
    return measure_labels(log_probs, targets)[0]


def measure_labels(log_probs: Tensor, targets: Tensor) -> tuple[dict[str, float], ExampleScores]:
    """The metrics of `multi_label_metrics`, and the scores of every known label; arguments as there."""
    require_tensors(log_probs, targets)
    if log_probs.ndim != 3 or log_probs.shape[2] != 2:
        raise ValueError(
            f"Expected log probabilities of the shape (examples, labels, 2), got {tuple(log_probs.shape)}."
        )
    num_examples, num_labels = log_probs.shape[:2]
    if targets.shape != (num_examples, num_labels):
        raise ValueError(
            f"There are {format_count(num_examples, 'prediction')} of {format_count(num_labels, 'label')}, and "
            f"targets of the shape {tuple(targets.shape)}. Give one row of labels for each prediction, in the same "
            "order."
        )
    log_probs, targets = to_double(log_probs).cpu(), targets.cpu()
    is_known = (targets == 0) | (targets == 1)
    if not is_known.any():
        raise ValueError("No label is 0 or 1: there is nothing to compare predictions with.")
    scores = score_examples(log_probs[is_known], targets[is_known].long())
    wrong = torch.zeros(targets.shape, dtype=torch.float64)
    wrong[is_known] = 1 - scores.is_right
    has_label, columns = is_known.any(1), range(targets.shape[1])
    rankings = [(log_probs[rows, k, 1], targets[rows, k] == 1) for k, rows in zip(columns, is_known.T, strict=True)]
    rankings = [(ranks, positive) for ranks, positive in rankings if positive.any() and not positive.all()]
    metrics = scores.metrics()
    return {
        "accuracy": metrics["accuracy"],
        "exact_match": float((wrong.sum(1) == 0)[has_label].double().mean()),
        "nll": float(sum_label_losses(log_probs, targets)[has_label].mean()),
        "ece": metrics["ece"],
        "brier": metrics["brier"],
        "macro_auroc": fmean(auroc(*ranking) for ranking in rankings) if rankings else math.nan,
        "macro_aupr": fmean(aupr(*ranking) for ranking in rankings) if rankings else math.nan,
    }, scores


def sum_label_losses(
    log_probs: Float[Tensor, "examples labels 2"], targets: Int[Tensor, "examples labels"]
) -> Float[Tensor, " examples"]:
    """Negative log probability of the known labels of each example, summed over them; 0 if none is known.

    Args:
        log_probs: Log of the averaged probabilities that a label is 0, and that it is 1.
        targets: 0 or 1; any other value where a label is not known.
    """
    log_probs, targets = to_double(log_probs).cpu(), targets.cpu()
    label_log_probs = torch.where(targets == 1, log_probs[..., 1], log_probs[..., 0])
    return torch.where((targets == 0) | (targets == 1), label_log_probs.neg().abs(), 0.0).sum(1)
