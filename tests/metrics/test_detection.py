"""Detection metrics against their definitions: pairs of examples, and thresholds counted one by one."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from flatbayes.metrics import aupr, auroc, auroc_correct, entropy_divergence, fpr_at_tpr


def test_by_hand_with_ties():
    scores = torch.tensor([1.0, 2.0, 2.0, 3.0])
    positive = torch.tensor([False, False, True, True])
    assert auroc(scores, positive) == (2 + 1.5) / 4  # 3 beats both; 2 beats one and ties with one


def test_extremes():
    scores, positive = torch.arange(6.0), torch.arange(6) >= 3
    assert auroc(scores, positive) == 1
    assert auroc(-scores, positive) == 0
    assert auroc(torch.zeros(6), positive) == 0.5


def count_at_thresholds(scores, positive):
    """True and false positives at every score that occurs, from the highest to the lowest."""
    thresholds = sorted(set(scores.tolist()), reverse=True)
    predicted = [scores >= threshold for threshold in thresholds]
    return [(int((p & positive).sum()), int((p & ~positive).sum())) for p in predicted]


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), num=st.integers(2, 60), levels=st.sampled_from([2, 5, None]))
def test_equal_their_definitions(seed, num, levels):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(num, generator=generator)
    if levels:
        scores = (scores * levels).round()
    positive = torch.rand(num, generator=generator) < 0.4
    positive[0], positive[1] = True, False
    differences = scores[positive][:, None] - scores[~positive][None]
    expected = float(((differences > 0).double() + (differences == 0).double() / 2).mean())
    assert auroc(scores, positive) == pytest.approx(expected, abs=1e-12)
    counts, num_positive = count_at_thresholds(scores, positive), int(positive.sum())
    expected, previous = 0.0, 0
    for true, false in counts:
        expected += true / (true + false) * (true - previous) / num_positive
        previous = true
    assert aupr(scores, positive) == pytest.approx(expected, abs=1e-12)
    for level in (0.5, 0.95, 1.0):
        expected = next(false for true, false in counts if true / num_positive >= level) / (num - num_positive)
        assert fpr_at_tpr(scores, positive, level) == pytest.approx(expected, abs=1e-12)
    assert auroc(scores, positive) == roc_auc_score(positive, scores)  # to the last bit
    assert aupr(scores, positive) == average_precision_score(positive, scores)


def test_infinite_scores_are_ordered():
    scores = torch.tensor([-math.inf, -1.0, 0.5, math.inf, math.inf])
    positive = torch.tensor([False, True, False, True, False])
    assert auroc(scores, positive) == auroc(torch.tensor([0.0, 1.0, 2.0, 3.0, 3.0]), positive)
    assert auroc(scores, positive) + auroc(scores, ~positive) == pytest.approx(1)


def test_is_exact_for_many_examples():
    num = 300_000
    positive = torch.arange(num) % 2 == 1
    assert auroc(torch.arange(num).double(), positive) == (num / 2 + 1) / num


def test_precision_of_a_constant_score_is_the_fraction_of_positives():
    positive = torch.arange(10) < 3
    assert aupr(torch.zeros(10), positive) == pytest.approx(0.3)
    assert aupr(torch.zeros(10), ~positive) == pytest.approx(0.7)


def test_false_positive_rate_by_hand():
    scores = torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0])
    positive = torch.tensor([True, False, True, False, False])
    assert fpr_at_tpr(scores, positive, 0.5) == 0
    assert fpr_at_tpr(scores, positive, 0.51) == pytest.approx(1 / 3)
    assert fpr_at_tpr(torch.zeros(5), positive) == 1  # ties pass together
    assert aupr(scores, positive) == pytest.approx((1 + 2 / 3) / 2)


@pytest.mark.parametrize("tpr", [0.0, -1.0, 1.01, math.nan])
def test_true_positive_rate_out_of_range_is_refused(tpr):
    with pytest.raises(ValueError, match="above 0 and at most 1, got"):
        fpr_at_tpr(torch.arange(2.0), torch.tensor([True, False]), tpr)


def test_scores_beyond_float32_keep_their_order():
    scores = torch.tensor([1.0, 1 + 1e-12, 1e300, 1e301], dtype=torch.float64)
    positive = torch.tensor([False, False, True, True])
    assert (auroc(scores, positive), aupr(scores, positive), fpr_at_tpr(scores, positive)) == (1, 1, 0)
    assert (auroc(-scores, positive), fpr_at_tpr(-scores, positive)) == (0, 1)


ALL = pytest.mark.parametrize("metric", [auroc, aupr, fpr_at_tpr])


@ALL
@pytest.mark.parametrize("positive", [torch.ones(3).bool(), torch.zeros(3).bool()])
def test_a_single_class_gives_nan(metric, positive):
    assert math.isnan(metric(torch.arange(3.0), positive))


@ALL
def test_no_examples_give_nan(metric):
    assert math.isnan(metric(torch.zeros(0), torch.zeros(0).bool()))


@ALL
def test_nan_is_refused(metric):
    with pytest.raises(ValueError, match="got 1 that are NaN"):
        metric(torch.tensor([math.nan, 1.0]), torch.tensor([True, False]))


@ALL
@pytest.mark.parametrize(
    ("scores", "positive"),
    [
        (torch.zeros(3), torch.tensor([True, False])),
        (torch.zeros(2), torch.tensor([1, 0])),
        (torch.zeros(2, 1), torch.tensor([[True], [False]])),
    ],
)
def test_shapes_that_do_not_match_are_refused(metric, scores, positive):
    with pytest.raises(ValueError, match=r"one score and one bool .* a mask\."):
        metric(scores, positive)


class TestCorrect:
    probs = torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3], [0.2, 0.8]])

    def test_confident_predictions_are_right(self):
        assert auroc_correct(self.probs, torch.tensor([0, 0, 1, 1])) == 1  # .9 and .8 right; .6 and .7 wrong
        assert auroc_correct(self.probs, torch.tensor([1, 1, 0, 0])) == 0
        assert auroc_correct(self.probs, torch.tensor([0, 1, 1, 0])) == 0.5

    def test_of_a_perfect_classifier_is_nan(self):
        assert math.isnan(auroc_correct(self.probs, self.probs.argmax(-1)))


class TestEntropyDivergence:
    def test_agrees_with_numpy_within_the_range_of_the_bins(self):
        generator = np.random.default_rng(0)
        test, ood = 10 ** generator.uniform(-7.5, 0.3, 500), 10 ** generator.uniform(-4, 0.4, 300)
        p, q = (np.histogram(values, np.logspace(-8, 0.5, 30))[0] + 1e-7 for values in (test, ood))
        p, q = p / p.sum(), q / q.sum()
        expected = np.sum(p * np.log(p / q)) + np.sum(q * np.log(q / p))
        divergence = entropy_divergence(torch.from_numpy(test), torch.from_numpy(ood))
        assert divergence == pytest.approx(expected, rel=1e-12)
        assert entropy_divergence(torch.from_numpy(ood), torch.from_numpy(test)) == pytest.approx(divergence)

    def test_equal_sets_have_no_divergence(self):
        values = torch.rand(50)
        assert entropy_divergence(values, values.flip(0)) == 0

    def test_values_beyond_the_edges_are_counted(self):
        # Zero and what is below the first edge share a bin; so do entropies above the last.
        assert entropy_divergence(torch.zeros(9), torch.full((9,), 1.5e-8)) == 0
        assert entropy_divergence(torch.full((5,), 3.1), torch.full((5,), 9.0)) == 0
        assert entropy_divergence(torch.zeros(9), torch.ones(9)) > 30  # the original drops all zeros

    def test_an_edge_belongs_to_the_bin_above(self):
        low, high = torch.logspace(-8, 0.5, 30, dtype=torch.float64)[[20, 21]]
        assert entropy_divergence(low.expand(5), (low + high).expand(5) / 2) == 0
        assert entropy_divergence(high.expand(5), (low + high).expand(5) / 2) > 10

    def test_disjoint_bins_by_hand(self):
        p = np.full(29, 1e-7)
        p[0] += 10
        p /= p.sum()
        expected = 2 * (p[0] - p[1]) * math.log(p[0] / p[1])
        assert entropy_divergence(torch.zeros(10), torch.ones(10)) == pytest.approx(expected, rel=1e-12)

    @pytest.mark.parametrize("bad", [[], [math.nan], [-0.1], [math.inf]])
    def test_invalid_entropies_are_refused(self, bad):
        with pytest.raises(ValueError, match="at least 1 out-of-distribution example"):
            entropy_divergence(torch.ones(2), torch.tensor(bad))
