"""Decisions of least expected cost against closed forms, and what is refused."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from flatbayes import Bernoulli, Categorical, DenseCategorical, Gaussian
from flatbayes.decisions import compute_expected_costs, decide, mean_cost


def test_two_classes_have_the_threshold_of_the_ratio_of_costs():
    false_positive, false_negative = 3.0, 17.0
    costs = [[0.0, false_positive], [false_negative, 0.0]]
    threshold = false_positive / (false_positive + false_negative)
    positive = torch.cat([torch.linspace(0, 1, 1001), torch.tensor([threshold - 1e-9, threshold + 1e-9])]).double()
    probs = torch.stack([1 - positive, positive], -1)
    assert torch.equal(decide(probs, costs), (positive > threshold + 1e-12).long())


def test_expected_costs_are_those_of_a_sum_over_classes():
    generator = torch.Generator().manual_seed(0)
    probs = torch.rand(6, 4, generator=generator, dtype=torch.float64).softmax(-1)
    costs = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    expected = [[sum(float(p[c] * costs[c, d]) for c in range(4)) for d in range(3)] for p in probs]
    np.testing.assert_allclose(compute_expected_costs(probs, costs).numpy(), expected, rtol=1e-12)


def test_costs_with_names_of_classes_are_refused_since_their_order_is_not_known():
    costs = pd.DataFrame([[0, 1], [20, 0]], index=["yes", "no"], columns=["yes", "no"])
    for use in (lambda: decide(torch.tensor([[0.5, 0.5]]), costs), lambda: mean_cost([0], [0], costs)):
        with pytest.raises(ValueError, match=r"called \['yes', 'no'\].*costs\.loc\[class_names\]"):
            use()
    assert decide(torch.tensor([[0.9, 0.1]]), costs.loc[["no", "yes"], ["no", "yes"]].to_numpy()).item() == 0
    assert decide(torch.tensor([[0.9, 0.1]]), pd.DataFrame([[0, 1], [20, 0]])).item() == 1  # without names


def test_equal_costs_choose_the_most_probable_class():
    predictive = Categorical(5).predictive(torch.randn(3, 40, 5, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(decide(predictive, 1 - torch.eye(5)), predictive.top_class)


def test_a_person_is_asked_below_a_confidence():
    """Chow's rule: with cost r of asking and 1 of an error, ask where the confidence is below 1 - r."""
    probs = torch.randn(500, 3, generator=torch.Generator().manual_seed(2)).double().softmax(-1)
    costs = np.column_stack([1 - np.eye(3), np.full(3, 0.3)])
    decisions = decide(probs, costs)
    assert torch.equal(decisions == 3, probs.amax(-1) < 0.7)
    assert torch.equal(decisions[decisions < 3], probs.argmax(-1)[decisions < 3])


def test_no_rule_costs_less_under_the_distribution_of_the_predictions():
    generator = torch.Generator().manual_seed(3)
    probs = torch.randn(200, 3, generator=generator).double().softmax(-1)
    costs = torch.rand(3, 4, generator=generator, dtype=torch.float64)
    expected = compute_expected_costs(probs, costs)
    assert torch.equal(expected.gather(1, decide(probs, costs)[:, None])[:, 0], expected.amin(-1))


def test_mean_cost_counts_every_pair_of_class_and_decision():
    costs = [[0, 1, 2], [20, 0, 2]]
    assert mean_cost([0, 1, 2, 0, 1, 2], [0, 0, 0, 1, 1, 1], costs) == (0 + 1 + 2 + 20 + 0 + 2) / 6
    assert mean_cost(torch.tensor([0, 0]), torch.tensor([1, -100]), costs) == 20
    assert mean_cost(torch.tensor([0, 1]), torch.tensor([[0, 1], [0, 1]]), costs) == 10  # one-hot rows
    assert mean_cost(torch.tensor([0, 1]), torch.tensor([[1], [1]]), costs) == 10


def test_positions_have_decisions_too():
    predictive = DenseCategorical(2).predictive(torch.randn(2, 3, 2, 4, generator=torch.Generator().manual_seed(4)))
    decisions = decide(predictive, [[0, 1], [9, 0]])
    assert torch.equal(decisions, (predictive.mean[..., 1] > 0.1).long())
    targets = torch.tensor([[0, 1, -100, 1]]).expand(3, 4)
    known = targets != -100
    expected = mean_cost(decisions[known], targets[known], [[0, 1], [9, 0]])
    assert mean_cost(decisions, targets, [[0, 1], [9, 0]]) == expected


@pytest.mark.parametrize(
    ("costs", "message"),
    [
        ([[0, 1]], "2 rows, one for each class"),
        ([0, 1], "2 rows, one for each class"),
        (torch.zeros(2, 0), "one column for each decision"),
        ([[0, 1], [math.inf, 0]], "finite"),
        ([[0, 1], [math.nan, 0]], "finite"),
        ([[0, 1], [2]], "matrix of numbers"),
        ("costs", "matrix of numbers"),
    ],
)
def test_costs_that_are_none_are_refused(costs, message):
    with pytest.raises(ValueError, match=message):
        decide(torch.tensor([[0.5, 0.5]]), costs)


@pytest.mark.parametrize("probs", [[0.5, 0.5], [[2.0, -1.0]], [[0.9, 0.9]], [[math.nan, 1.0]]])
def test_probabilities_that_are_none_are_refused(probs):
    with pytest.raises(ValueError, match="sum 1"):
        decide(torch.tensor(probs), [[0, 1], [1, 0]])


@pytest.mark.parametrize("likelihood", [Gaussian(), Bernoulli(2)])
def test_predictions_without_classes_are_refused(likelihood):
    predictive = likelihood.predictive([torch.zeros(3, 2)])
    with pytest.raises(TypeError, match="Costs are those of classes"):
        decide(predictive, [[0, 1], [1, 0]])


@pytest.mark.parametrize(
    ("decisions", "targets", "message"),
    [
        ([0, 1], [0], "one decision and one class"),
        ([0.0, 1.0], [0, 1], "one decision and one class"),
        ([0, 2], [0, 1], "2 decisions, 0 to 1"),
        ([0, -1], [0, 1], "2 decisions, 0 to 1"),
        ([0, 1], [0, 2], "between 0 and 1"),
        ([0, 1], [-100, -100], "no labelled examples"),
    ],
)
def test_decisions_that_do_not_match_are_refused(decisions, targets, message):
    with pytest.raises(ValueError, match=message):
        mean_cost(torch.tensor(decisions), torch.tensor(targets), [[0, 1], [1, 0]])
