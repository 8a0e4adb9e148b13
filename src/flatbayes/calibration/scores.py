"""Nonconformity scores of split conformal prediction: the larger, the less a target agrees with the prediction.

Classes, with probabilities p sorted from the largest, r(y) the rank of class y and u uniform on [0, 1):

    LAC   1 - p(y)                                                    Sadinle et al., JASA 2019
    APS   sum of p(c) over ranks below r(y), + u p(y)                 Romano et al., NeurIPS 2020
    RAPS  APS + penalty max(0, r(y) - k_reg)                          Angelopoulos et al., ICLR 2021

Numbers, with mean m, standard deviation s, and quantiles q of the mixture at (1 - level) / 2 and (1 + level) / 2:

    NormalizedResidual  |y - m| / s                                   Lei et al., JASA 2018
    QuantileResidual    max(q_low - y, y - q_high)                    CQR of Romano et al., NeurIPS 2019

A prediction region is the set of all targets whose score is at most a threshold.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from flatbayes.calibration.quantiles import hash_to_uniforms
from flatbayes.calibration.regions import PredictionIntervals, PredictionSets
from flatbayes.likelihoods import (
    BernoulliPredictive,
    CategoricalPredictive,
    DistributionPredictive,
    NumberPredictive,
    Predictive,
)

ROUNDING_STEPS = 4
"""Bound of the rounding error between a score and the end of its interval, in units of the last place."""
RANK_STEP = 1e-12
"""Difference of adaptive scores of classes whose sums of probabilities are equal, for each rank."""

NO_LABEL_REGIONS = "Conformal prediction has no regions for several labels of an example"
CALIBRATE_LABELS = "flatbayes.calibrate(fitted, validation) calibrates the probability of each label."


class ConformalScore(ABC):
    """Nonconformity score of targets, and the region of the targets whose score is at most a threshold.

    Examples:
        >>> isinstance(LAC(), ConformalScore), isinstance(NormalizedResidual(), ConformalScore)
        (True, True)
    """

    @abstractmethod
    def compute_scores(self, predictive: Predictive, targets: Tensor, level: float) -> Tensor:
        """Score of each target, float64 on the CPU, shape (examples,) or (examples, targets).

        Args:
            predictive: The predictions.
            targets: Class indices or numbers, one row for each prediction.
            level: Wanted coverage.

        Raises:
            TypeError: The score is not for predictions of this kind.
        """

    @abstractmethod
    def predict_region(
        self, predictive: Predictive, thresholds: Tensor, level: float
    ) -> PredictionSets | PredictionIntervals:
        """All targets whose score is at most the threshold.

        Args:
            predictive: The predictions.
            thresholds: Shape (examples or 1, classes or 1), for numbers (examples or 1, targets).
            level: Wanted coverage.

        Raises:
            TypeError: The score is not for predictions of this kind.
        """


class ClassScore(ConformalScore):
    """Score of classes, computed for all classes at a time."""

    @abstractmethod
    def score_classes(self, log_probs: Float[Tensor, "examples classes"]) -> Float[Tensor, "examples classes"]:
        """Score of every class, from log probabilities in float64 on the CPU."""

    def compute_scores(self, predictive: Predictive, targets: Int[Tensor, " examples"], level: float) -> Tensor:
        """Scores of the true classes."""
        scores = self.score_classes(self.get_log_probs(predictive).detach().cpu().double())
        return scores.gather(1, targets.cpu().long()[:, None]).squeeze(1)

    def predict_region(self, predictive: Predictive, thresholds: Tensor, level: float) -> PredictionSets:
        """Sets of the classes whose score is at most the threshold."""
        log_probs = self.get_log_probs(predictive)
        members: Bool[Tensor, "examples classes"] = (
            self.score_classes(log_probs.detach().cpu().double()) <= thresholds.cpu()
        )
        return PredictionSets(members.to(log_probs.device), log_probs.argmax(-1))

    def get_log_probs(self, predictive: Predictive) -> Tensor:
        """Log probabilities of the classes.

        Raises:
            TypeError: The predictions are not of classes.
        """
        _refuse_labels(predictive)
        if not isinstance(predictive, CategoricalPredictive):
            raise TypeError(
                f"{type(self).__name__} is a score of classes, got a {type(predictive).__name__}. Use "
                "NormalizedResidual or QuantileResidual for numbers."
            )
        return predictive.log_probs


def _refuse_labels(predictive: Predictive) -> None:
    if isinstance(predictive, BernoulliPredictive):
        raise TypeError(f"{NO_LABEL_REGIONS}, got a {type(predictive).__name__}. {CALIBRATE_LABELS}")


class NumberScore(ConformalScore):
    """Score of numbers."""

    def _get_numbers(self, predictive: Predictive) -> NumberPredictive:
        _refuse_labels(predictive)
        if not isinstance(predictive, NumberPredictive):
            raise TypeError(
                f"{type(self).__name__} is a score of numbers, got a {type(predictive).__name__}. Use LAC, APS or "
                "RAPS for classes."
            )
        return predictive


@dataclass(frozen=True)
class LAC(ClassScore):
    """Least ambiguous sets: all classes whose probability is above a threshold.

    The smallest sets on average for given probabilities; hard examples are covered less often than easy ones.

    Examples:
        >>> LAC().score_classes(torch.tensor([[0.7, 0.2, 0.1]]).log())
        tensor([[0.3000, 0.8000, 0.9000]])
    """

    def score_classes(self, log_probs: Float[Tensor, "examples classes"]) -> Float[Tensor, "examples classes"]:
        """1 - p(y)."""
        return 1 - log_probs.exp()


@dataclass(frozen=True)
class APS(ClassScore):
    """Adaptive prediction sets: the most probable classes, until their probabilities reach a sum.

    Attributes:
        randomized: Whether the probability of a class itself counts in part, so that the coverage is that of the
            level; without it sets are larger. The random number is a function of the prediction and the seed.
        seed: Seed of the random numbers.

    Examples:
        >>> APS(randomized=False).score_classes(torch.tensor([[0.7, 0.2, 0.1]]).log())
        tensor([[0.7000, 0.9000, 1.0000]], dtype=torch.float64)
    """

    randomized: bool = True
    seed: int = 0

    def score_classes(self, log_probs: Float[Tensor, "examples classes"]) -> Float[Tensor, "examples classes"]:
        """Sum of the probabilities of more probable classes, + u p(y)."""
        return adaptive_scores(log_probs.exp(), self._draw_uniforms(log_probs), penalty=0.0, k_reg=0)

    def _draw_uniforms(self, log_probs: Tensor) -> Tensor:
        return hash_to_uniforms(log_probs, self.seed) if self.randomized else torch.ones(len(log_probs))


@dataclass(frozen=True)
class RAPS(APS):
    """Regularised adaptive prediction sets: adaptive sets with a penalty on improbable classes.

    Attributes:
        penalty: Added to the score for every rank above `k_reg`; must not be chosen on the calibration examples.
        k_reg: Number of classes without a penalty.

    Examples:
        >>> score = RAPS(penalty=0.1, randomized=False)
        >>> score.score_classes(torch.tensor([[0.7, 0.2, 0.1]]).log())
        tensor([[0.7000, 1.0000, 1.2000]], dtype=torch.float64)
    """

    penalty: float = 0.01
    k_reg: int = 1

    def __post_init__(self) -> None:
        if not self.penalty >= 0 or self.k_reg < 0:
            raise ValueError(f"penalty and k_reg must be at least 0, got {self.penalty} and {self.k_reg}.")

    def score_classes(self, log_probs: Float[Tensor, "examples classes"]) -> Float[Tensor, "examples classes"]:
        """Sum of the probabilities of more probable classes, + u p(y), + the penalty."""
        return adaptive_scores(log_probs.exp(), self._draw_uniforms(log_probs), self.penalty, self.k_reg)


@dataclass(frozen=True)
class NormalizedResidual(NumberScore):
    """Residual in units of the predicted standard deviation: intervals mean ± threshold · std.

    Examples:
        >>> predictive = Gaussian().predictive([torch.zeros(2, 2)])
        >>> intervals = NormalizedResidual().predict_region(predictive, torch.tensor([[2.0]]), 0.9)
        >>> torch.allclose(intervals.upper, predictive.mean + 2 * predictive.std)
        True
    """

    def compute_scores(self, predictive: Predictive, targets: Tensor, level: float) -> Tensor:
        """|y - mean| / std."""
        predictive = self._get_numbers(predictive)
        if not bool(predictive.std.isfinite().all()):
            raise ValueError(
                "NormalizedResidual divides by the predicted standard deviation, which is not finite for "
                f"{predictive!r}. Use QuantileResidual()."
            )
        return normalized_residuals(predictive.mean, predictive.std, targets.to(predictive.mean)).cpu().double()

    def predict_region(self, predictive: Predictive, thresholds: Tensor, level: float) -> PredictionIntervals:
        """Mean ± threshold · std."""
        predictive = self._get_numbers(predictive)
        thresholds = match_targets(thresholds, predictive.mean)
        half = torch.where(thresholds.isinf(), thresholds, thresholds * predictive.std)  # infinity times 0 is NaN
        return move_ends(predictive, predictive.mean, predictive.mean, half)


@dataclass(frozen=True)
class QuantileResidual(NumberScore):
    """Distance outside the interval of the posterior: its ends are moved by the threshold, outwards or inwards.

    Examples:
        >>> predictive = Gaussian().predictive([torch.zeros(2, 2)])
        >>> lower, upper = predictive.interval(0.9)
        >>> intervals = QuantileResidual().predict_region(predictive, torch.tensor([[0.5]]), 0.9)
        >>> torch.allclose(intervals.upper, upper + 0.5)
        True
    """

    def compute_scores(self, predictive: Predictive, targets: Tensor, level: float) -> Tensor:
        """max(q_low - y, y - q_high)."""
        predictive = self._get_numbers(predictive)
        lower, upper = predictive.interval(level)
        return interval_residuals(lower, upper, targets.to(predictive.mean)).cpu().double()

    def predict_region(self, predictive: Predictive, thresholds: Tensor, level: float) -> PredictionIntervals:
        """From q_low - threshold to q_high + threshold; empty where these cross."""
        predictive = self._get_numbers(predictive)
        lower, upper = predictive.interval(level)
        return move_ends(predictive, lower, upper, match_targets(thresholds, lower))


SCORES: tuple[type[ConformalScore], ...] = (LAC, APS, RAPS, NormalizedResidual, QuantileResidual)
"""Scores that `make_score` knows."""


def choose_score(predictive: Predictive) -> ConformalScore:
    """`LAC` for classes, `NormalizedResidual` for a Gaussian, `QuantileResidual` for any other distribution.

    The last one needs no finite variance, and its intervals are as skew as the distribution.
    """
    if isinstance(predictive, CategoricalPredictive):
        return LAC()
    return QuantileResidual() if isinstance(predictive, DistributionPredictive) else NormalizedResidual()


def get_score_data(score: ConformalScore) -> dict[str, Any]:
    """Name and options of a score, as plain data.

    Raises:
        TypeError: The score is user-defined.
    """
    if type(score) not in SCORES:
        raise TypeError(f"A {type(score).__name__} is no score of flatbayes and cannot be written as data.")
    return {"score": type(score).__name__, "score_options": dict(vars(score))}


def make_score(data: Mapping[str, Any]) -> ConformalScore:
    """The score that `get_score_data` described; other entries are ignored.

    Raises:
        ValueError: The score is unknown.
    """
    kinds = {kind.__name__: kind for kind in SCORES}
    if data["score"] not in kinds:
        raise ValueError(f"Unknown score {data['score']!r}. Known: {', '.join(kinds)}.")
    return kinds[data["score"]](**data["score_options"])


def adaptive_scores(
    probs: Float[Tensor, "examples classes"], uniforms: Float[Tensor, " examples"], penalty: float, k_reg: int
) -> Float[Tensor, "examples classes"]:
    """Sum of p(c) over ranks below r(y), + u p(y), + penalty max(0, r(y) - k_reg); equal p rank by class index.

    `RANK_STEP` is added for each rank: otherwise the score of a right class of probability 1 is that of all classes
    of probability 0, and with it as the threshold every set has all classes.
    """
    ordered, classes = probs.double().sort(dim=1, descending=True, stable=True)
    ranks = torch.arange(1, probs.shape[1] + 1, dtype=torch.float64)
    scores = ordered.cumsum(1) - (1 - uniforms.double()[:, None]) * ordered
    scores += penalty * (ranks - k_reg).clamp_min(0) + RANK_STEP * ranks
    return torch.empty_like(scores).scatter_(1, classes, scores)


def normalized_residuals(mean: Tensor, std: Tensor, targets: Tensor) -> Tensor:
    """|y - m| / s, with 0 / 0 = 0."""
    residuals = (targets - mean).abs()
    return torch.where(residuals == 0, residuals, residuals / std)


def interval_residuals(lower: Tensor, upper: Tensor, targets: Tensor) -> Tensor:
    """max(q_low - y, y - q_high): negative inside the interval."""
    return torch.maximum(lower - targets, targets - upper)


def move_ends(predictive: NumberPredictive, lower: Tensor, upper: Tensor, distance: Tensor) -> PredictionIntervals:
    """From lower - distance to upper + distance, and the rounding error of a score farther on both sides.

    Without it a target whose score is the threshold, and every one that ties with it, may be outside by rounding.
    Values that no target has, such as fractions of counts, are left out at both ends.
    """
    size = torch.maximum(lower.abs(), upper.abs()) + distance.abs()
    slack = (ROUNDING_STEPS * torch.finfo(size.dtype).eps * size).masked_fill(size.isinf(), 0.0)
    return PredictionIntervals(*predictive.restrict(lower - distance - slack, upper + distance + slack))


def match_targets(thresholds: Float[Tensor, "rows targets"], values: Tensor) -> Tensor:
    """Thresholds on the device of predictions, without the axis of targets where these have none."""
    thresholds = thresholds.to(values)
    return thresholds.squeeze(1) if values.ndim == 1 else thresholds
