"""Calibration: is a prediction made with confidence 0.8 right in 8 of 10 cases? (Guo et al., ICML 2017)."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flatbayes.metrics.checks import checked_probs

Closed = Literal["right", "left"]


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

    def to_dict(self) -> dict[str, Any]:
        """Lists by name, ready for JSON."""
        return {
            "edges": list(self.edges),
            "counts": list(self.counts),
            "confidence": list(self.confidence),
            "accuracy": list(self.accuracy),
        }


def reliability(
    probs: Float[Tensor, "examples classes"],
    labels: Int[Tensor, " examples"],
    num_bins: int = 20,
    closed: Closed = "right",
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
    if num_bins < 1:
        raise ValueError(f"Calibration needs at least 1 bin, got num_bins={num_bins}.")
    if closed not in ("right", "left"):
        raise ValueError(f"closed must be 'right' for bins (a, b] or 'left' for bins [a, b), got {closed!r}.")
    probs, labels = checked_probs(probs, labels)
    top = probs.argmax(-1)
    confidence = probs.gather(1, top[:, None]).squeeze(1)
    right = (top == labels).double()
    edges = torch.arange(num_bins + 1, dtype=torch.float64) / num_bins
    place = torch.bucketize(confidence, edges[1:-1], right=closed == "left")
    counts = torch.bincount(place, minlength=num_bins)

    def mean(values: Tensor) -> tuple[float, ...]:
        sums = torch.bincount(place, weights=values, minlength=num_bins)
        return tuple((sums / counts.clamp_min(1)).tolist())

    return ReliabilityBins(
        tuple(edges.tolist()), tuple(int(count) for count in counts), mean(confidence), mean(right)
    )


def ece(
    probs: Float[Tensor, "examples classes"],
    labels: Int[Tensor, " examples"],
    num_bins: int = 20,
    closed: Closed = "right",
) -> float:
    """Expected calibration error: sum_b n_b / n |accuracy_b - confidence_b|.

    It depends on the number of bins and is biased upwards below some thousand examples: compare only values
    of one definition and sample size.

    Args:
        probs: Class probabilities.
        labels: Index of the true class.
        num_bins: Number of bins of equal width.
        closed: The edge that belongs to a bin, as in `reliability`.

    Raises:
        ValueError: Probabilities or labels are not what they should be, or there is no such binning.
    """
    bins = reliability(probs, labels, num_bins, closed)
    gaps = zip(bins.counts, bins.accuracy, bins.confidence, strict=True)
    return sum(count * abs(acc - conf) for count, acc, conf in gaps) / len(labels)
