import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from flatbayes.metrics import auroc, auroc_correct


def test_by_hand_with_ties():
    scores = torch.tensor([1.0, 2.0, 2.0, 3.0])
    positive = torch.tensor([False, False, True, True])
    assert auroc(scores, positive) == (2 + 1.5) / 4  # 3 beats both; 2 beats one and ties with one


def test_extremes():
    scores, positive = torch.arange(6.0), torch.arange(6) >= 3
    assert auroc(scores, positive) == 1
    assert auroc(-scores, positive) == 0
    assert auroc(torch.zeros(6), positive) == 0.5


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), num=st.integers(2, 200), levels=st.sampled_from([2, 5, None]))
def test_agrees_with_sklearn(seed, num, levels):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(num, generator=generator)
    if levels:
        scores = (scores * levels).round()
    positive = torch.rand(num, generator=generator) < 0.4
    positive[0], positive[1] = True, False
    expected = roc_auc_score(positive.numpy(), scores.numpy())
    assert auroc(scores, positive) == pytest.approx(expected, abs=1e-12)


def test_only_the_order_counts_and_infinities_have_one():
    scores = torch.tensor([-math.inf, -1.0, 0.5, math.inf, math.inf])
    positive = torch.tensor([False, True, False, True, False])
    assert auroc(scores, positive) == auroc(torch.tensor([0.0, 1.0, 2.0, 3.0, 3.0]), positive)
    assert auroc(scores, positive) + auroc(scores, ~positive) == pytest.approx(1)


def test_is_exact_for_many_examples():
    num = 300_000
    positive = torch.arange(num) % 2 == 1
    assert auroc(torch.arange(num).double(), positive) == (num / 2 + 1) / num


@pytest.mark.parametrize("positive", [torch.ones(3).bool(), torch.zeros(3).bool()])
def test_one_kind_alone_gives_nan(positive):
    assert math.isnan(auroc(torch.arange(3.0), positive))


def test_no_examples_give_nan():
    assert math.isnan(auroc(torch.zeros(0), torch.zeros(0).bool()))


def test_refuses_nan():
    with pytest.raises(ValueError, match="got 1 that are NaN"):
        auroc(torch.tensor([math.nan, 1.0]), torch.tensor([True, False]))


@pytest.mark.parametrize(
    ("scores", "positive"),
    [
        (torch.zeros(3), torch.tensor([True, False])),
        (torch.zeros(2), torch.tensor([1, 0])),
        (torch.zeros(2, 1), torch.tensor([[True], [False]])),
    ],
)
def test_refuses_what_does_not_match(scores, positive):
    with pytest.raises(ValueError, match=r"one score and one bool .* a mask\."):
        auroc(scores, positive)


class TestCorrect:
    probs = torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3], [0.2, 0.8]])

    def test_right_predictions_should_be_the_confident_ones(self):
        assert auroc_correct(self.probs, torch.tensor([0, 0, 1, 1])) == 1  # .9 and .8 right; .6 and .7 wrong
        assert auroc_correct(self.probs, torch.tensor([1, 1, 0, 0])) == 0
        assert auroc_correct(self.probs, torch.tensor([0, 1, 1, 0])) == 0.5

    def test_of_a_perfect_classifier_is_nan(self):
        assert math.isnan(auroc_correct(self.probs, self.probs.argmax(-1)))
