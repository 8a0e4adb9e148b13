"""Calibration of class probabilities: reliability diagrams and expected calibration errors (Guo et al., ICML 2017).

Errors are measured over bins of equal width (Guo et al.), over bins of equal mass (Nguyen and O'Connor, EMNLP 2015),
or for each class separately (Kull et al., NeurIPS 2019). Binning approximates the expectation over a continuum of
confidences.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from flatbayes.core.display import format_fields
from flatbayes.metrics.checks import iter_log_probs, iter_probs
from flatbayes.metrics.proportions import estimate_design_effect, wilson_interval

ClosedSide = Literal["right", "left"]
MIN_BIN_COUNT = 20
"""Smallest number of predictions in a bin of a diagram; an accuracy of fewer is mostly noise."""


@dataclass(frozen=True)
class ReliabilityBins:
    """Accuracy and mean confidence of predictions, binned by confidence: the probability of the predicted class.

    Attributes:
        edges: Edges of the bins, one more than the number of bins.
        counts: Number of predictions in each bin.
        confidence: Mean confidence in each bin, 0 if it is empty.
        accuracy: Fraction of right predictions in each bin, 0 if it is empty.
        design_effect: Number of dependent predictions that carry the information of one independent prediction
            (Kish, 1965): above 1 where those of an example, of several labels or positions, are right together.

    Examples:
        >>> bins = reliability_bins(fitted.predict(inputs).mean, labels, num_bins=10)
        >>> sum(bins.counts) == len(labels)
        True
        >>> min(bins.merge(min_count=20).counts) >= 20
        True
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]
    design_effect: float = 1.0

    __repr__ = format_fields

    def accuracy_intervals(self, level: float = 0.95) -> tuple[tuple[float, float], ...]:
        """Wilson score interval of the accuracy in each bin, of independent predictions; (0, 1) if it is empty.

        Args:
            level: Confidence level, between 0 and 1.

        Raises:
            ValueError: The level is out of range.
        """
        sizes = [math.ceil(count / self.design_effect) for count in self.counts]
        pairs = zip(self.accuracy, sizes, strict=True)
        return tuple(wilson_interval(round(accuracy * size), size, level) for accuracy, size in pairs)

    def merge(self, min_count: int = MIN_BIN_COUNT) -> "ReliabilityBins":
        """Join neighbouring bins until each has at least `min_count` predictions, or all predictions are in one bin.

        Accuracy and confidence of a joined bin are those of its predictions. Bins are filled from the highest
        confidence down, where most predictions are; what is left at the low end joins the bin above it.

        Args:
            min_count: Smallest number of predictions in a bin.
        """
        groups: list[list[int]] = [[]]
        for index in reversed(range(len(self.counts))):
            if groups[-1] and sum(self.counts[k] for k in groups[-1]) >= min_count:
                groups.append([])
            groups[-1].append(index)
        if len(groups) > 1 and sum(self.counts[k] for k in groups[-1]) < min_count:
            rest = groups.pop()
            groups[-1] += rest
        groups = [sorted(group) for group in reversed(groups)]
        counts = tuple(sum(self.counts[k] for k in group) for group in groups)

        def average(values: tuple[float, ...]) -> tuple[float, ...]:
            totals = [sum(values[k] * self.counts[k] for k in group) for group in groups]
            return tuple(total / count if count else 0.0 for total, count in zip(totals, counts, strict=True))

        edges = (self.edges[0], *(self.edges[group[-1] + 1] for group in groups))
        return ReliabilityBins(edges, counts, average(self.confidence), average(self.accuracy), self.design_effect)

    def calibration_error(self) -> float:
        """Expected calibration error: sum_b n_b / n |accuracy_b - confidence_b|."""
        gaps = zip(self.counts, self.accuracy, self.confidence, strict=True)
        return sum(count * abs(acc - conf) for count, acc, conf in gaps) / sum(self.counts)

    def to_dict(self) -> dict[str, Any]:
        """Lists and the design effect by field name, ready for JSON."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}


def reliability_bins(
    probs: Float[Tensor, "examples classes"],
    labels: Int[Tensor, " examples"],
    num_bins: int = 20,
    closed: ClosedSide = "right",
) -> ReliabilityBins:
    """Bin predictions by confidence, with bins of equal width.

    Confidences are compared with the edges m / num_bins in float64. The float32 number next to 0.95 is smaller than
    that edge and lies below it; the float64 number equals the edge.

    Args:
        probs: Class probabilities.
        labels: Index of the true class.
        num_bins: Number of bins between 0 and 1.
        closed: Edge that belongs to a bin: "right" for (a, b], with 0 in the first bin; "left" for [a, b), with 1 in
            the last bin.

    Raises:
        ValueError: The probabilities, labels or binning are invalid.

    Examples:
        >>> probs = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7]])
        >>> bins = reliability_bins(probs, torch.tensor([0, 1, 1, 1]), num_bins=4)
        >>> bins.counts, bins.accuracy
        ((0, 0, 2, 2), (0.0, 0.0, 0.5, 1.0))
    """
    _check_binning(num_bins, closed)
    return bin_confidences(*top_predictions(probs, labels), num_bins, closed)


def bin_confidences(
    confidence: Float[Tensor, " examples"],
    is_right: Float[Tensor, " examples"],
    num_bins: int = 20,
    closed: ClosedSide = "right",
    examples: Tensor | None = None,
) -> ReliabilityBins:
    """Bin predictions by confidence, from the values of `top_predictions`; arguments as in `reliability_bins`.

    `examples` has the number of the example of each prediction, if an example has several.
    """
    bins = torch.bucketize(confidence, _bin_edges(num_bins)[1:-1], right=closed == "left")
    counts = torch.bincount(bins, minlength=num_bins)
    sums = torch.bincount(bins, weights=confidence, minlength=num_bins)
    hits = torch.bincount(bins, weights=is_right, minlength=num_bins)
    return ReliabilityBins(
        tuple(_bin_edges(num_bins).tolist()),
        tuple(int(count) for count in counts),
        tuple((sums / counts.clamp_min(1)).tolist()),
        tuple((hits / counts.clamp_min(1)).tolist()),
        1.0 if examples is None else estimate_design_effect(is_right - confidence, examples),
    )


def ece(
    probs: Float[Tensor, "examples classes"],
    labels: Int[Tensor, " examples"],
    num_bins: int = 20,
    closed: ClosedSide = "right",
) -> float:
    """Expected calibration error: sum_b n_b / n |accuracy_b - confidence_b|.

    It depends on the number of bins and is biased upwards below some thousand examples, so compare only values with
    the same bins and sample size.

    Args:
        probs: Class probabilities.
        labels: Index of the true class.
        num_bins: Number of bins of equal width.
        closed: Edge that belongs to a bin, as in `reliability_bins`.

    Raises:
        ValueError: The probabilities, labels or binning are invalid.

    Examples:
        >>> probs = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7]])
        >>> round(ece(probs, torch.tensor([0, 1, 1, 1]), num_bins=10), 3)
        0.15
    """
    return reliability_bins(probs, labels, num_bins, closed).calibration_error()


def adaptive_ece(
    probs: Float[Tensor, "examples classes"], labels: Int[Tensor, " examples"], num_bins: int = 20
) -> float:
    """Expected calibration error over bins of equal mass: quantile bins of the sorted confidences.

    Examples with tied confidences share their mean accuracy, so the order of the examples does not matter. The sizes
    of bins differ by at most 1; with fewer examples than bins, each example is a bin.

    Args:
        probs: Class probabilities.
        labels: Index of the true class.
        num_bins: Number of bins.

    Raises:
        ValueError: The probabilities, labels or binning are invalid.

    Examples:
        >>> probs = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7]])
        >>> round(adaptive_ece(probs, torch.tensor([0, 1, 1, 1]), num_bins=2), 3)
        0.15
    """
    _check_binning(num_bins, "right")
    return equal_mass_error(*top_predictions(probs, labels), num_bins)


def equal_mass_error(
    confidence: Float[Tensor, " examples"], is_right: Float[Tensor, " examples"], num_bins: int = 20
) -> float:
    """The calibration error of `adaptive_ece`, from the values of `top_predictions`."""
    confidence, order = confidence.sort()
    _, group, counts = confidence.unique_consecutive(return_inverse=True, return_counts=True)
    averaged = (torch.bincount(group, weights=is_right[order]) / counts)[group]
    bins = torch.arange(len(confidence)) * num_bins // len(confidence)
    gaps = torch.bincount(bins, weights=averaged - confidence)
    return float(gaps.abs().sum()) / len(confidence)


def classwise_ece(
    probs: Float[Tensor, "examples classes"],
    labels: Int[Tensor, " examples"],
    num_bins: int = 20,
    closed: ClosedSide = "right",
) -> float:
    """Mean over classes of sum_b n_cb / n |frequency of the class in b - mean probability of the class in b|.

    It uses the probabilities of all classes, not only of the most probable one.

    Args:
        probs: Class probabilities.
        labels: Index of the true class.
        num_bins: Number of bins of equal width.
        closed: Edge that belongs to a bin, as in `reliability_bins`.

    Raises:
        ValueError: The probabilities, labels or binning are invalid.

    Examples:
        >>> probs = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7]])
        >>> round(classwise_ece(probs, torch.tensor([0, 1, 1, 1]), num_bins=2), 3)
        0.25
    """
    _check_binning(num_bins, closed)
    blocks = ((block, block_labels) for _, block, block_labels in iter_probs(probs, labels))
    return _classwise_error(blocks, probs.shape[-1] if probs.ndim else 0, num_bins, closed)


def classwise_ece_of_log_probs(
    log_probs: Float[Tensor, "examples classes"], labels: Int[Tensor, " examples"]
) -> float:
    """`classwise_ece` with its default bins, from log probabilities."""
    blocks = ((block, block_labels) for _, _, block, block_labels in iter_log_probs(log_probs, labels))
    return _classwise_error(blocks, log_probs.shape[-1], 20, "right")


def _classwise_error(
    blocks: Iterable[tuple[Tensor, Tensor]], num_classes: int, num_bins: int, closed: ClosedSide
) -> float:
    """`classwise_ece` of checked blocks of probabilities and labels.

    Few of many probabilities lie above the first bin, and only these are sorted into bins.
    """
    edges, num_examples = _bin_edges(num_bins), 0
    gaps = torch.zeros(num_bins, num_classes, dtype=torch.float64)  # frequency minus probability, times examples
    for probs, labels in blocks:
        num_examples += len(labels)
        is_above = probs >= edges[1] if closed == "left" else probs > edges[1]
        is_above &= num_bins > 1
        rows, classes = is_above.nonzero(as_tuple=True)
        values = torch.cat([probs[torch.arange(len(labels)), labels], probs[rows, classes]])
        bins = torch.bucketize(values, edges[1:-1], right=closed == "left")
        weights = torch.cat([torch.ones(len(labels), dtype=torch.float64), -values[len(labels) :]])
        gaps.index_put_((bins, torch.cat([labels, classes])), weights, accumulate=True)
        gaps[0] -= probs.masked_fill_(is_above, 0.0).sum(0)
    return float(gaps.abs().sum()) / (num_examples * num_classes)


def _check_binning(num_bins: int, closed: str) -> None:
    if num_bins < 1:
        raise ValueError(f"Calibration needs at least 1 bin, got num_bins={num_bins}.")
    if closed not in ("right", "left"):
        raise ValueError(f"closed must be 'right' for bins (a, b] or 'left' for bins [a, b), got {closed!r}.")


def top_predictions(
    probs: Float[Tensor, "examples classes"], labels: Int[Tensor, " examples"]
) -> tuple[Float[Tensor, " examples"], Float[Tensor, " examples"]]:
    """Check predictions, and return the confidence of each, and 1 if it is right, else 0, as float64 on the CPU.

    Raises:
        ValueError: The probabilities or labels are invalid.
    """
    confidence, is_right = torch.empty(2, probs.shape[0] if probs.ndim else 0, dtype=torch.float64)
    for rows, block, block_labels in iter_probs(probs, labels):
        confidence[rows], is_right[rows] = find_top_class(block, block_labels)
    return confidence, is_right


def find_top_class(probs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Probability of the most probable class, the first of tied ones, and whether it is the label."""
    top = torch.from_numpy(np.argmax(probs.numpy(), axis=1))  # several times as fast as torch.argmax
    return probs.gather(1, top[:, None]).squeeze(1), top == labels


def _bin_edges(num_bins: int) -> Tensor:
    return torch.arange(num_bins + 1, dtype=torch.float64) / num_bins
