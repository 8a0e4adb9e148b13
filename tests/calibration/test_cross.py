"""Cross-conformal regions: by hand, against definitions written as loops, and the coverage of fits of folds."""

import math

import pytest
import torch

from flatbayes.calibration import APS, LAC, NormalizedResidual, QuantileResidual
from flatbayes.calibration.cross import cross_coverage, predict_cross_region
from flatbayes.likelihoods import CategoricalPredictive, GaussianPredictive


def make_numbers(count, seed):
    generator = torch.Generator().manual_seed(seed)
    means, noise = (torch.rand(2, count, generator=generator, dtype=torch.float64) for _ in range(2))
    return GaussianPredictive(means, noise + 0.5), torch.randn(count, generator=generator, dtype=torch.float64)


def make_classes(count, seed):
    generator = torch.Generator().manual_seed(seed)
    log_probs = torch.randn(count, 4, generator=generator, dtype=torch.float64).log_softmax(1)
    return CategoricalPredictive(log_probs, torch.zeros(count), torch.zeros(count, 4)), torch.arange(count) % 4


@pytest.mark.parametrize("score", [NormalizedResidual(), QuantileResidual()], ids=repr)
@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.97])  # with 0.95 the ends are those of the extremes
def test_intervals_are_order_statistics_of_the_ends_of_all_examples(score, level):
    folds = [make_numbers(count, seed) for seed, count in enumerate((5, 6, 8))]
    scores = [score.compute_scores(*fold, level) for fold in folds]
    new = [make_numbers(4, seed)[0] for seed in (10, 11, 12)]
    region = predict_cross_region(new, scores, score, level)
    lower, upper = [], []
    for predictive, fold_scores in zip(new, scores, strict=True):
        for value in fold_scores.tolist():
            ends = score.predict_region(predictive, torch.tensor([[value]], dtype=torch.float64), level)
            lower.append(ends.lower)
            upper.append(ends.upper)
    rank = math.ceil(round(level * 20, 9))  # of n + 1 = 20
    if rank > 19:
        assert region.lower.isinf().all()
        assert region.upper.isinf().all()
        return
    torch.testing.assert_close(region.lower, torch.stack(lower).sort(0).values[19 - rank], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(region.upper, torch.stack(upper).sort(0).values[rank - 1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("score", [LAC(), APS()], ids=repr)
def test_sets_have_the_classes_that_beat_enough_examples(score):
    folds = [make_classes(count, seed) for seed, count in enumerate((9, 12))]
    scores = [score.compute_scores(*fold, 0.8) for fold in folds]
    new = [make_classes(5, seed)[0] for seed in (20, 21)]
    sets = predict_cross_region(new, scores, score, 0.8)
    for row in range(5):
        for k in range(4):
            below = sum(
                value < float(score.score_classes(predictive.log_probs)[row, k])
                for predictive, fold_scores in zip(new, scores, strict=True)
                for value in fold_scores.tolist()
            )
            assert bool(sets.members[row, k]) == (below < 0.8 * 22)


def test_the_bound_of_the_coverage():
    assert cross_coverage(50, 50, 0.9) == pytest.approx(0.8)  # jackknife+
    assert cross_coverage(100, 5, 0.9) == pytest.approx(0.8 - min(2 * 0.8 / 21, 0.95 / 6))
    assert cross_coverage(10**6, 10, 0.9) == pytest.approx(0.8, abs=1e-4)


def test_several_targets_have_intervals_of_their_own():
    generator = torch.Generator().manual_seed(0)
    pair = torch.rand(2, 12, 2, generator=generator, dtype=torch.float64)
    predictive, targets = GaussianPredictive(pair, pair + 1), torch.randn(12, 2, generator=generator)
    score = NormalizedResidual()
    both = predict_cross_region([predictive], [score.compute_scores(predictive, targets, 0.8)], score, 0.8)
    for k in range(2):
        alone = GaussianPredictive(pair[..., k], pair[..., k] + 1)
        scores = score.compute_scores(alone, targets[:, k], 0.8)
        torch.testing.assert_close(both.lower[:, k], predict_cross_region([alone], [scores], score, 0.8).lower)
