"""Regions of cross-conformal prediction, from posteriors that were each trained without a fold of the examples.

With n examples, s_i the score of example i under the posterior that was trained without its fold k(i), and
[l_i(x), u_i(x)] the region of the threshold s_i under that posterior, CV+ (Barber et al., Annals of Statistics 2021)
is

    [ the floor((1 - level)(n + 1))-th smallest l_i(x),  the ceil(level (n + 1))-th smallest u_i(x) ]

and for classes (Romano et al., NeurIPS 2020)

    { y : the number of i with s_i < s_k(i)(x, y) is below level (n + 1) }

One fold for each example is jackknife+.
"""

from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor

from flatbayes.calibration.quantiles import conformal_rank
from flatbayes.calibration.regions import PredictionIntervals, PredictionSets
from flatbayes.calibration.scores import ClassScore, ConformalScore
from flatbayes.likelihoods import CategoricalPredictive, Predictive

MAX_CROSS_VALUES = 2**24
"""Largest number of ends of intervals that are sorted at a time."""


def cross_coverage(num_examples: int, num_folds: int, level: float) -> float:
    """Lower bound of the coverage: 1 - 2a - min{2 (1 - 1/K) / (n/K + 1), (1 - K/n) / (K + 1)}, a = 1 - level.

    Jackknife+, with K = n, has 1 - 2a. In practice the coverage is close to the level.

    Examples:
        >>> round(cross_coverage(100, 100, 0.9), 3), round(cross_coverage(1000, 10, 0.95), 3)
        (0.8, 0.882)
    """
    n, k = num_examples, num_folds
    slack = min(2 * (1 - 1 / k) / (n / k + 1), (1 - k / n) / (k + 1))
    return 1 - 2 * (1 - level) - slack


def predict_cross_region(
    predictives: Sequence[Predictive], fold_scores: Sequence[Tensor], score: ConformalScore, level: float
) -> PredictionSets | PredictionIntervals:
    """Region of each new example.

    `fold_scores` are those of each fold's examples under its posterior, shape (examples,) or (examples, targets).

    Raises:
        TypeError: The score is not for predictions of this kind.
    """
    if isinstance(score, ClassScore):
        return _predict_sets(predictives, fold_scores, score, level)
    return _predict_intervals(predictives, fold_scores, score, level)


def _predict_sets(
    predictives: Sequence[Predictive], fold_scores: Sequence[Tensor], score: ClassScore, level: float
) -> PredictionSets:
    num_examples = sum(map(len, fold_scores))
    counts: Tensor | int = 0
    log_probs = []
    for predictive, scores in zip(predictives, fold_scores, strict=True):
        log_probs.append(score.get_log_probs(predictive).detach().cpu().double())
        ordered = scores.double().cpu().sort().values
        counts = counts + torch.searchsorted(ordered, score.score_classes(log_probs[-1]))  # scores below
    limit = Fraction(str(float(level))) * (num_examples + 1)
    members = torch.as_tensor(counts) < float(limit)
    mean = torch.stack(log_probs).logsumexp(0)
    device = predictives[0].mean.device
    return PredictionSets(members.to(device), mean.argmax(-1).to(device))


def _predict_intervals(
    predictives: Sequence[Predictive], fold_scores: Sequence[Tensor], score: ConformalScore, level: float
) -> PredictionIntervals:
    num_examples = sum(map(len, fold_scores))
    upper_rank = conformal_rank(num_examples, level)
    lower_rank = num_examples + 1 - upper_rank
    shape, device = predictives[0].mean.shape, predictives[0].mean.device
    bounds = [_get_line(predictive, score, level) for predictive in predictives]
    if lower_rank < 1 or upper_rank > num_examples:
        infinite = torch.full(shape, torch.inf, dtype=torch.float64, device=device)
        return PredictionIntervals(-infinite, infinite)
    blocks: list[tuple[Tensor, Tensor]] = []
    num_targets = shape[1:].numel()
    for rows in torch.arange(shape[0]).split(max(1, MAX_CROSS_VALUES // (num_examples * num_targets))):
        ends = []
        for end, rank in ((0, lower_rank), (1, upper_rank)):
            values = [
                line[end][0][rows] + line[end][1][rows] * scores.double().cpu().reshape(-1, 1, num_targets)
                for line, scores in zip(bounds, fold_scores, strict=True)
            ]
            ends.append(torch.cat(values).kthvalue(rank, dim=0).values.reshape(-1, *shape[1:]))
        blocks.append((ends[0], ends[1]))
    lower, upper = (torch.cat(values).to(device) for values in zip(*blocks, strict=True))
    return PredictionIntervals(lower, upper)


def _get_line(
    predictive: Predictive, score: ConformalScore, level: float
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Lower and upper ends as functions intercept + slope * threshold, which all scores of numbers have."""
    if isinstance(predictive, CategoricalPredictive):
        raise TypeError(f"{type(score).__name__} is a score of numbers, got predictions of classes.")
    num_targets = predictive.mean.shape[1:].numel()
    at_zero, at_one = (
        score.predict_region(predictive, torch.full((1, num_targets), value, dtype=torch.float64), level)
        for value in (0.0, 1.0)
    )
    assert isinstance(at_zero, PredictionIntervals)
    assert isinstance(at_one, PredictionIntervals)

    def subtract(start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
        start, end = (values.cpu().double().reshape(len(start), num_targets) for values in (start, end))
        return start, end - start

    return subtract(at_zero.lower, at_one.lower), subtract(at_zero.upper, at_one.upper)
