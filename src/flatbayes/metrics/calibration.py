"""Calibration: is a prediction made with confidence 0.8 right in 8 of 10 cases? (Guo et al., ICML 2017).

Errors are measured over bins of equal width (Guo et al.), of equal mass (Nguyen and O'Connor, EMNLP 2015), or for
every class on its own (Kull et al., NeurIPS 2019). A bin stands for the average over a continuum of confidences,
which is what is approximated.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from flatbayes.metrics.checks import check_probs

ClosedSide = Literal["right", "left"]


@dataclass(frozen=True)
class ReliabilityBins:
    """Predictions sorted into bins by their confidence, the probability of the most probable class.

    Attributes:
        edges: Edges of the bins, one more than bins.
        counts: Predictions in each bin.
        confidence: Mean confidence in each bin, 0 where it is empty.
        accuracy: Fraction of right predictions in each bin, 0 where it is empty.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]

    def accuracy_intervals(self, level: float = 0.95) -> tuple[tuple[float, float], ...]:
        """Wilson's interval of the accuracy in each bin, (0, 1) where it is empty.

        Args:
            level: Probability with which an interval holds the truth, between 0 and 1.

        Raises:
            ValueError: There is no such level.
        """
        pairs = zip(self.accuracy, self.counts, strict=True)
        return tuple(wilson_interval(round(accuracy * count), count, level) for accuracy, count in pairs)

    def to_dict(self) -> dict[str, Any]:
        """Lists by name, ready for JSON."""
        return {
            "edges": list(self.edges),
            "counts": list(self.counts),
            "confidence": list(self.confidence),
            "accuracy": list(self.accuracy),
        }


def reliability_bins(
    probs: Float[Tensor, "examples classes"],
    labels: Int[Tensor, " examples"],
    num_bins: int = 20,
    closed: ClosedSide = "right",
) -> ReliabilityBins:
    """Sort predictions into bins of equal width.

    A confidence is compared with the edges m / num_bins in float64. In float32, 0.95 is a little less than
    that and lies below the edge; in float64 it lies on it.

    Args:
        probs: Class probabilities.
        labels: Index of the true class.
        num_bins: Number of bins between 0 and 1.
        closed: The edge that belongs to a bin: "right" for (a, b], with 0 in the first bin; "left" for
            [a, b), with 1 in the last.

    Raises:
        ValueError: Probabilities or labels are not what they should be, or there is no such binning.
    """
    _check_binning(num_bins, closed)
    confidence, right = _top_confidence(*check_probs(probs, labels))
    edges = _bin_edges(num_bins)
    counts, sums, hits = _sum_by_bin(confidence, right, num_bins, closed)
    return ReliabilityBins(
        tuple(edges.tolist()),
        tuple(int(count) for count in counts),
        tuple((sums / counts.clamp_min(1)).tolist()),
        tuple((hits / counts.clamp_min(1)).tolist()),
    )


def ece(
    probs: Float[Tensor, "examples classes"],
    labels: Int[Tensor, " examples"],
    num_bins: int = 20,
    closed: ClosedSide = "right",
) -> float:
    """Expected calibration error: sum_b n_b / n |accuracy_b - confidence_b|.

    It depends on the number of bins and is biased upwards below some thousand examples: compare only values
    of one definition and sample size.

    Args:
        probs: Class probabilities.
        labels: Index of the true class.
        num_bins: Number of bins of equal width.
        closed: The edge that belongs to a bin, as in `reliability_bins`.

    Raises:
        ValueError: Probabilities or labels are not what they should be, or there is no such binning.
    """
    bins = reliability_bins(probs, labels, num_bins, closed)
    gaps = zip(bins.counts, bins.accuracy, bins.confidence, strict=True)
    return sum(count * abs(acc - conf) for count, acc, conf in gaps) / len(labels)


def adaptive_ece(
    probs: Float[Tensor, "examples classes"], labels: Int[Tensor, " examples"], num_bins: int = 20
) -> float:
    """Expected calibration error over bins of equal mass: the sorted confidences cut into equal numbers.

    Where confidences tie, each of them counts as right as they are on average, so that the order of the
    examples does not matter. Bins are as equal as whole numbers can be; with fewer examples than bins, each
    example is a bin.

    Args:
        probs: Class probabilities.
        labels: Index of the true class.
        num_bins: Number of bins.

    Raises:
        ValueError: Probabilities or labels are not what they should be, or there is no such binning.
    """
    _check_binning(num_bins, "right")
    confidence, right = _top_confidence(*check_probs(probs, labels))
    confidence, order = confidence.sort()
    _, place, counts = confidence.unique_consecutive(return_inverse=True, return_counts=True)
    averaged = (torch.bincount(place, weights=right[order]) / counts)[place]
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

    Every probability is judged, not only that of the most probable class.

    Args:
        probs: Class probabilities.
        labels: Index of the true class.
        num_bins: Number of bins of equal width.
        closed: The edge that belongs to a bin, as in `reliability_bins`.

    Raises:
        ValueError: Probabilities or labels are not what they should be, or there is no such binning.
    """
    _check_binning(num_bins, closed)
    probs, labels = check_probs(probs, labels)
    truth = F.one_hot(labels, probs.shape[1]).double()
    total = 0.0
    for column, is_class in zip(probs.T, truth.T, strict=True):
        _, sums, hits = _sum_by_bin(column.contiguous(), is_class.contiguous(), num_bins, closed)
        total += float((hits - sums).abs().sum())
    return total / probs.numel()


def wilson_interval(hits: int, count: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion: all p with |hits / count - p| <= z sqrt(p (1 - p) / count).

    Args:
        hits: Successes.
        count: Trials; without any the interval is (0, 1).
        level: Probability with which the interval holds the truth, between 0 and 1.

    Raises:
        ValueError: There is no such level, or there are more successes than trials.
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


def _check_binning(num_bins: int, closed: str) -> None:
    if num_bins < 1:
        raise ValueError(f"Calibration needs at least 1 bin, got num_bins={num_bins}.")
    if closed not in ("right", "left"):
        raise ValueError(f"closed must be 'right' for bins (a, b] or 'left' for bins [a, b), got {closed!r}.")


def _top_confidence(probs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Confidence of each prediction, and 1 where it is right."""
    top = probs.argmax(-1)
    return probs.gather(1, top[:, None]).squeeze(1), (top == labels).double()


def _bin_edges(num_bins: int) -> Tensor:
    return torch.arange(num_bins + 1, dtype=torch.float64) / num_bins


def _sum_by_bin(values: Tensor, hits: Tensor, num_bins: int, closed: str) -> tuple[Tensor, Tensor, Tensor]:
    """Of each bin of equal width: examples, sum of the values, sum of the hits."""
    place = torch.bucketize(values, _bin_edges(num_bins)[1:-1], right=closed == "left")
    return (
        torch.bincount(place, minlength=num_bins),
        torch.bincount(place, weights=values, minlength=num_bins),
        torch.bincount(place, weights=hits, minlength=num_bins),
    )
