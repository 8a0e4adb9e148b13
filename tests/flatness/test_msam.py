"""Momentum-SAM against values computed by hand."""

import math

import pytest
import torch
from torch import nn

from flatbayes.core import TrainingProgress
from flatbayes.flatness import MSAM
from flatbayes.flatness.gradient_average import accumulate_gradients
from flatbayes.flatness.msam import momentum_perturbation


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


class Sloped(nn.Module):
    """The loss w·slope, with another slope at every step."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(vector(1.0, -2.0))
        self.seen = []

    def closure(self, slope):
        def closure():
            self.zero_grad()
            self.seen.append(self.w.detach().clone())
            loss = self.w @ slope
            loss.backward()
            return loss.detach()

        return closure


def test_the_sum_decays_by_the_momentum():
    v = vector(1.0, 2.0)
    accumulate_gradients([v], [vector(10.0, 20.0)], 0.5)
    assert v.tolist() == [10.5, 21.0]


def test_the_perturbation_is_against_the_sum_and_joint_over_tensors():
    e = momentum_perturbation([vector(3.0), vector(0.0, 4.0)], 0.5).to_tensors()
    torch.testing.assert_close(torch.cat(e), vector(-0.3, 0.0, -0.4))
    assert momentum_perturbation([vector(0.0)], 0.5).to_tensors()[0].tolist() == [0]


def test_the_gradient_is_taken_ahead_and_the_weights_are_restored():
    model, flat, progress = Sloped(), MSAM(rho=0.5, momentum=0.5), TrainingProgress()
    w = model.w.detach().clone()
    slopes = [vector(3.0, 4.0), vector(-2.0, 0.0), vector(0.0, 0.0)]
    sums = [vector(3.0, 4.0), vector(-0.5, 2.0)]
    for slope in slopes:
        loss = flat(model.closure(slope), model, progress)()
        assert loss.item() == pytest.approx((model.seen[-1] @ slope).item())
        assert torch.equal(model.w.grad, slope)
        assert torch.equal(model.w, w)
        progress.advance()
    expected = [w, *(w - 0.5 * v / v.norm() for v in sums)]
    torch.testing.assert_close(torch.stack(model.seen), torch.stack(expected))


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_an_overflow_does_not_enter_the_sum(bad):
    model, flat, progress = Sloped(), MSAM(), TrainingProgress()
    flat(model.closure(vector(1.0, 2.0)), model, progress)()
    flat(model.closure(vector(bad, 2.0)), model, progress)()
    assert not model.w.grad.isfinite().all()  # for a loss scaler to see
    assert [velocity.tolist() for velocity in progress.flatness_state.values()] == [[1, 2]]


def test_a_momentum_of_1_is_refused():
    with pytest.raises(ValueError, match="momentum must be"):
        MSAM(momentum=1.0)
