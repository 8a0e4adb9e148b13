"""Adaptive conformal inference: regions for a stream whose distribution may change (Gibbs & Candes, NeurIPS 2021).

Step t takes the conformal quantile of earlier scores at the level 1 - a_t, and the error rate a_t follows the errors:

    a_(t+1) = a_t + rate (a - e_t),    e_t = 1 if the target of step t is outside of its region, else 0

with a = 1 - level. A region at a_t <= 0 contains everything, at a_t >= 1 nothing, so that a_t stays in
[-rate, 1 + rate], and the errors of T steps satisfy, whatever the data,

    | mean of e_t - a |  <=  (max(a, 1 - a) + rate) / (rate T)
"""

import math
from collections import deque
from typing import Any, Self

import torch
from torch import Tensor

from flatbayes.calibration.quantiles import conformal_quantile, conformal_rank
from flatbayes.calibration.regions import PredictionIntervals, PredictionSets
from flatbayes.calibration.scores import ConformalScore, choose_score, get_score_data, make_score
from flatbayes.calibration.targets import check_targets
from flatbayes.core.names import format_count
from flatbayes.likelihoods import Predictive


class AdaptiveConformal:
    """Regions for a stream of predictions, with the wanted coverage in the long run whatever the data.

    For each example, or batch of them, call `predict`, and `update` once the targets are known.

    Args:
        level: Wanted coverage, strictly between 0 and 1.
        rate: Step of the error rate for each error. A small one moves slowly after a change of the data; a large one
            makes sizes change from example to example.
        score: The nonconformity score; None takes `LAC` for classes, `NormalizedResidual` for a Gaussian,
            and `QuantileResidual` for any other distribution.
        window: Number of latest scores that thresholds are computed from; None for all.

    Attributes:
        error_rate: a_t, the error rate at which the next regions are computed.
        num_examples: Number of targets so far.
        num_errors: Number of them that were outside of their region.

    Examples:
        >>> stream = AdaptiveConformal(level=0.8, rate=0.05)
        >>> covered = stream.update(fitted.predict(data.val.inputs), data.val.targets)
        >>> for image, label in zip(inputs, labels):
        ...     predictive = fitted.predict(image[None])
        ...     region = stream.predict(predictive)
        ...     covered = stream.update(predictive, label[None])
        >>> bool(abs(stream.num_errors / stream.num_examples - 0.2) <= stream.error_bound())
        True
    """

    def __init__(
        self,
        *,
        level: float = 0.9,
        rate: float = 0.01,
        score: ConformalScore | None = None,
        window: int | None = None,
    ) -> None:
        conformal_rank(1, level)  # checks the level
        if not 0 < rate < math.inf:
            raise ValueError(f"rate must be positive, got {rate}. Try 0.01.")
        if window is not None and window < 1:
            raise ValueError(f"window must be at least 1 score, or None, got {window}.")
        self.level, self.rate, self.score, self.window = level, rate, score, window
        self.error_rate, self.num_examples, self.num_errors, self.largest_batch = 1 - level, 0, 0, 1
        self._scores: deque[float] = deque(maxlen=window)

    def __repr__(self) -> str:
        observed = self.num_errors / self.num_examples if self.num_examples else math.nan
        return (
            f"<AdaptiveConformal at level {self.level:g}: error rate {self.error_rate:.4g}, "
            f"{format_count(self.num_examples, 'example')}, {observed:.4g} of them outside>"
        )

    @property
    def threshold(self) -> float:
        """Largest score inside the next regions: infinite, where they contain everything, or minus infinite."""
        level = 1 - self.error_rate  # rounds to 1 for a tiny error rate
        if not 0 < level < 1:
            return math.inf if level >= 1 else -math.inf
        return float(conformal_quantile(torch.tensor(list(self._scores), dtype=torch.float64), level))

    def predict(self, predictive: Predictive) -> PredictionSets | PredictionIntervals:
        """The regions of predictions, at the present threshold. The stream is not changed.

        Args:
            predictive: Predictions for one example or several.

        Raises:
            TypeError: The score is not for predictions of this kind.
        """
        threshold = torch.tensor([[self.threshold]], dtype=torch.float64)
        return self._get_score(predictive).predict_region(predictive, threshold, self.level)

    def update(self, predictive: Predictive, targets: Tensor) -> Tensor:
        """Learn targets, and return which of them were inside their region.

        Args:
            predictive: The predictions that `predict` got. All of a call share one threshold.
            targets: Class indices or numbers.

        Raises:
            TypeError: The score is not for predictions of this kind.
            ValueError: The targets do not match the predictions, or there are several for an example.
        """
        targets = check_targets(predictive, targets)
        if targets.ndim > 1:
            raise ValueError(
                f"A stream has one target for each example, got {targets.shape[1]}. Make a stream for each target."
            )
        covered = self.predict(predictive).contains(targets).cpu()
        scores = self._get_score(predictive).compute_scores(predictive, targets, self.level)
        self.error_rate = follow_errors(self.error_rate, (~covered).tolist(), 1 - self.level, self.rate)
        self._scores.extend(scores.tolist())
        self.num_examples += len(covered)
        self.num_errors += int((~covered).sum())
        self.largest_batch = max(self.largest_batch, len(covered))
        return covered

    def error_bound(self) -> float:
        """Bound of the difference between the fraction of errors so far and 1 - level, whatever the data.

        With up to b examples in a call, b times the rate takes the place of the rate in the numerator.
        """
        if not self.num_examples:
            return math.inf
        start = max(self.level, 1 - self.level)
        return (start + self.rate * self.largest_batch) / (self.rate * self.num_examples)

    def guarantee(self) -> str:
        """What is guaranteed, and the assumptions."""
        return (
            f"Guarantee: over a stream of T examples, the fraction of targets outside of their region differs from "
            f"{100 * (1 - self.level):g} % by at most "
            f"{max(self.level, 1 - self.level) + self.rate * self.largest_batch:g} / "
            f"({self.rate:g} T), whatever the data: no exchangeability is assumed. Assumptions: `update` gets every "
            "target after its prediction, in order. The guarantee is an average over time, not one for each example; "
            "regions of some steps may contain everything or nothing."
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, from which `from_dict` makes a stream that goes on in the same way."""
        return {
            "level": self.level,
            "rate": self.rate,
            "window": self.window,
            "score": None if self.score is None else get_score_data(self.score),
            "error_rate": self.error_rate,
            "num_examples": self.num_examples,
            "num_errors": self.num_errors,
            "largest_batch": self.largest_batch,
            "scores": list(self._scores),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """The stream that `to_dict` described.

        Args:
            data: Result of `to_dict`.

        Raises:
            ValueError: The score is unknown, or a value is out of range.
        """
        score = None if data["score"] is None else make_score(data["score"])
        stream = cls(level=data["level"], rate=data["rate"], score=score, window=data["window"])
        for name in ("error_rate", "num_examples", "num_errors", "largest_batch"):
            setattr(stream, name, data[name])
        stream._scores.extend(data["scores"])
        return stream

    def _get_score(self, predictive: Predictive) -> ConformalScore:
        if self.score is None:
            return choose_score(predictive)
        return self.score


def follow_errors(error_rate: float, errors: list[bool], target: float, rate: float) -> float:
    """a_(t+1) = a_t + rate (target - e_t), for each error e_t, from the error rate a_t on."""
    for is_error in errors:
        error_rate += rate * (target - is_error)
    return error_rate
