import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flatbayes.metrics import aurc, excess_aurc, risk_coverage_curve


def averaged_over_orders(confidence, losses):
    """Average of the risks over all orders that the confidences allow."""
    n = len(losses)
    curves = [
        [sum(losses[i] for i in order[: k + 1]) / (k + 1) for k in range(n)]
        for order in itertools.permutations(range(n))
        if all(confidence[a] >= confidence[b] for a, b in itertools.pairwise(order))
    ]
    return [sum(column) / len(curves) for column in zip(*curves, strict=True)]


@settings(deadline=None, max_examples=40)
@given(
    confidence=st.lists(st.sampled_from([0.1, 0.5, 0.9]), min_size=1, max_size=6),
    data=st.data(),
)
def test_equals_the_average_over_all_orders(confidence, data):
    values = st.sampled_from([0.0, 1.0, 0.25])
    losses = data.draw(st.lists(values, min_size=len(confidence), max_size=len(confidence)))
    coverage, risk = risk_coverage_curve(torch.tensor(confidence), torch.tensor(losses))
    assert risk.tolist() == pytest.approx(averaged_over_orders(confidence, losses), abs=1e-12)
    assert coverage.tolist() == [(k + 1) / len(losses) for k in range(len(losses))]
    assert aurc(torch.tensor(confidence), torch.tensor(losses)) == pytest.approx(float(risk.mean()))


def test_best_and_worst_order_by_hand():
    losses = torch.tensor([0.0, 0.0, 1.0])
    assert aurc(torch.tensor([0.9, 0.8, 0.1]), losses) == pytest.approx((0 + 0 + 1 / 3) / 3)
    assert excess_aurc(torch.tensor([0.9, 0.8, 0.1]), losses) == 0
    assert aurc(torch.tensor([0.1, 0.2, 0.9]), losses) == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
    assert excess_aurc(torch.tensor([0.1, 0.2, 0.9]), losses) == pytest.approx((1 + 1 / 2) / 3)


def test_constant_confidence_gives_the_mean_loss_at_every_coverage():
    _, risk = risk_coverage_curve(torch.full((50,), 0.7), torch.arange(50) % 5 == 0)
    torch.testing.assert_close(risk, torch.full((50,), 0.2, dtype=torch.float64))


def test_excess_is_zero_if_all_losses_are_equal():
    confidence = torch.rand(30)
    assert excess_aurc(confidence, torch.zeros(30)) == 0
    assert excess_aurc(confidence, torch.ones(30)) == 0


def test_excess_of_any_losses_is_against_their_own_order():
    losses = torch.rand(200, dtype=torch.float64)
    assert excess_aurc(-losses, losses) == 0
    assert excess_aurc(losses, losses) > 0.3


def test_infinite_confidence_and_one_example():
    assert aurc(torch.tensor([math.inf]), torch.tensor([0.5])) == 0.5
    assert aurc(torch.tensor([-math.inf, math.inf]), torch.tensor([1.0, 0.0])) == 0.25


@pytest.mark.parametrize(
    ("confidence", "losses", "message"),
    [
        (torch.zeros(0), torch.zeros(0), "at least 1 example"),
        (torch.zeros(2), torch.zeros(3), r"got shapes \(2,\) and \(3,\)"),
        (torch.zeros(2, 1), torch.zeros(2, 1), "Pass two vectors"),
        (torch.tensor([math.nan]), torch.zeros(1), "got 1 and 0 that are not"),
        (torch.zeros(1), torch.tensor([math.inf]), "got 0 and 1 that are not"),
    ],
)
def test_invalid_inputs_are_refused(confidence, losses, message):
    with pytest.raises(ValueError, match=message):
        risk_coverage_curve(confidence, losses)
