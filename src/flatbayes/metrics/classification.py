"""Classification metrics: accuracy and proper scoring rules (NLL, Brier score) of class probabilities."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flatbayes.metrics.calibration import bin_confidences, find_top_class, top_predictions
from flatbayes.metrics.checks import iter_log_probs, iter_probs
from flatbayes.metrics.detection import aupr, auroc


@dataclass(frozen=True, eq=False)
class ExampleScores:
    """Values of each example from which the metrics of a classification are computed: float64 vectors on the CPU.

    Attributes:
        confidence: Probability of the most probable class.
        top_log_prob: Its logarithm, which orders examples whose confidence rounds to 1.
        is_right: 1 if the most probable class is the label, else 0.
        label_log_prob: Log probability of the label.
        squared_error: sum_c (p_c - [y = c])^2.
    """

    confidence: Float[Tensor, " examples"]
    top_log_prob: Float[Tensor, " examples"]
    is_right: Float[Tensor, " examples"]
    label_log_prob: Float[Tensor, " examples"]
    squared_error: Float[Tensor, " examples"]

    def metrics(self) -> dict[str, float]:
        """All metrics of `CLASSIFICATION_METRICS`."""
        return {
            "accuracy": float(self.is_right.mean()),
            "nll": float(self.label_log_prob.abs().mean()),  # abs: -log p without a negative zero
            "ece": bin_confidences(self.confidence, self.is_right).calibration_error(),
            "brier": float(self.squared_error.mean()),
            "auroc_correct": auroc(self.confidence, self.is_right.bool()),
        }


def score_examples(log_probs: Float[Tensor, "examples classes"], labels: Int[Tensor, " examples"]) -> ExampleScores:
    """Check predictions and compute the scores of each example, in one pass.

    Raises:
        ValueError: The log probabilities or labels are invalid.
    """
    scores = ExampleScores(*torch.empty(5, log_probs.shape[0] if log_probs.ndim else 0, dtype=torch.float64))
    for rows, block, probs, block_labels in iter_log_probs(log_probs, labels):
        scores.top_log_prob[rows] = block.amax(-1)
        scores.label_log_prob[rows] = block.gather(1, block_labels[:, None]).squeeze(1)
        scores.confidence[rows], scores.is_right[rows] = find_top_class(probs, block_labels)
        scores.squared_error[rows] = squared_errors(probs, block_labels)
    return scores


def classification_metrics(
    log_probs: Float[Tensor, "examples classes"], labels: Int[Tensor, " examples"]
) -> dict[str, float]:
    """Compute all metrics of `CLASSIFICATION_METRICS`.

    Args:
        log_probs: Log of the averaged probabilities.
        labels: Index of the true class.

    Returns:
        Values by name; `nll` may be infinite, and `auroc_correct` is NaN where no prediction is wrong.

    Raises:
        ValueError: The log probabilities or labels are invalid.

    Examples:
        >>> log_probs = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7]]).log()
        >>> metrics = classification_metrics(log_probs, torch.tensor([0, 1, 1, 1]))
        >>> {name: round(metrics[name], 3) for name in ("accuracy", "nll", "brier")}
        {'accuracy': 0.75, 'nll': 0.4, 'brier': 0.25}
    """
    return score_examples(log_probs, labels).metrics()


def binary_metrics(log_probs: Tensor, labels: Tensor) -> dict[str, float]:
    """The metrics of `BINARY_METRICS` for two classes, NaN where a class has no examples; none for other numbers."""
    if log_probs.shape[-1] != 2:
        return {}
    ranking = log_probs[:, 1], labels == 1
    return {"auroc": auroc(*ranking), "aupr": aupr(*ranking)}


def accuracy(probs: Float[Tensor, "examples classes"], labels: Int[Tensor, " examples"]) -> float:
    """Fraction of examples whose most probable class is the label; the first one where several are tied.

    Args:
        probs: Class probabilities.
        labels: Index of the true class.

    Raises:
        ValueError: The probabilities or labels are invalid.

    Examples:
        >>> probs = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7]])
        >>> accuracy(probs, torch.tensor([0, 1, 1, 1]))
        0.75
    """
    return float(top_predictions(probs, labels)[1].mean())


def nll(log_probs: Float[Tensor, "examples classes"], labels: Int[Tensor, " examples"]) -> float:
    """Negative log likelihood in nats: -mean_i log p_i(y_i).

    It takes log probabilities, because very confident predictions underflow in `exp`. It is infinite if a label has
    probability 0.

    Args:
        log_probs: Log probabilities of the classes.
        labels: Index of the true class.

    Raises:
        ValueError: The log probabilities or labels are invalid.

    Examples:
        >>> log_probs = torch.tensor([[0.9, 0.1], [0.6, 0.4]]).log()
        >>> round(nll(log_probs, torch.tensor([0, 1])), 3)
        0.511
    """
    blocks = iter_log_probs(log_probs, labels)
    values = [block.gather(1, block_labels[:, None]) for _, block, _, block_labels in blocks]
    return float(torch.cat(values).abs().mean())  # abs: -log p without a negative zero


def brier_score(probs: Float[Tensor, "examples classes"], labels: Int[Tensor, " examples"]) -> float:
    """Brier score: mean_i sum_c (p_ic - [y_i = c])^2, from 0 to 2 (not divided by the number of classes).

    Args:
        probs: Class probabilities.
        labels: Index of the true class.

    Raises:
        ValueError: The probabilities or labels are invalid.

    Examples:
        >>> probs = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7]])
        >>> round(brier_score(probs, torch.tensor([0, 1, 1, 1])), 3)
        0.25
    """
    values = [squared_errors(block, block_labels) for _, block, block_labels in iter_probs(probs, labels)]
    return float(torch.cat(values).mean())


def squared_errors(probs: Tensor, labels: Tensor) -> Tensor:
    """sum_c (p_c - [y = c])^2 of each example; the probabilities are overwritten."""
    probs[torch.arange(len(labels)), labels] -= 1
    return probs.square_().sum(-1)


def mean_iou(predictions: Int[Tensor, " positions"], labels: Int[Tensor, " positions"], num_classes: int) -> float:
    """Intersection over union (Jaccard index), mean over the classes that are labelled or predicted somewhere.

    IoU of a class: positions with this label and prediction, divided by those with this label or prediction, counted
    over all examples together.

    Args:
        predictions: Predicted class of each labelled position.
        labels: Its true class.
        num_classes: Number of classes.

    Raises:
        ValueError: The shapes differ, or there are no positions.

    Examples:
        >>> mean_iou(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 1]), num_classes=3)
        0.5833333333333333
    """
    if predictions.shape != labels.shape or not labels.numel():
        raise ValueError(
            f"Expected one prediction for each label, got the shapes {tuple(predictions.shape)} and "
            f"{tuple(labels.shape)}."
        )
    return average_iou(count_classes(predictions, labels, num_classes))


def count_classes(predictions: Tensor, labels: Tensor, num_classes: int) -> Float[Tensor, "3 classes"]:
    """Number of positions with each class as label, as prediction, and as both; arguments as of `mean_iou`."""
    predictions, labels = predictions.reshape(-1).long(), labels.reshape(-1).long()
    groups = (labels, predictions, labels[labels == predictions])
    return torch.stack([torch.bincount(group, minlength=num_classes) for group in groups]).double()


def average_iou(counts: Float[Tensor, "3 classes"]) -> float:
    """The mean intersection over union for the result of `count_classes`."""
    labelled, predicted, right = counts
    union = labelled + predicted - right
    return float((right / union)[union > 0].mean())
