"""Where momentum-SAM asks, by hand."""

import math

import pytest
import torch
from torch import nn

from flatbayes.core import TrainingProgress
from flatbayes.flatness import MSAM
from flatbayes.flatness.msam import accumulate_gradients, momentum_perturbation


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


class Sloped(nn.Module):
    """The loss w·slope, with another slope at every step."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(vector(1.0, -2.0))
        self.gradient_at_perturbation = []

    def closure(self, slope):
        def closure():
            self.zero_grad()
            self.gradient_at_perturbation.append(self.w.detach().clone())
            loss = self.w @ slope
            loss.backward()
            return loss.detach()

        return closure


def test_the_sum_forgets_by_momentum():
    v = vector(1.0, 2.0)
    accumulate_gradients([v], [vector(10.0, 20.0)], 0.5)
    assert v.tolist() == [10.5, 21.0]


def test_the_offset_is_against_the_sum_and_joint_over_tensors():
    e = momentum_perturbation([vector(3.0), vector(0.0, 4.0)], 0.5).to_tensors()
    torch.testing.assert_close(torch.cat(e), vector(-0.3, 0.0, -0.4))
    assert momentum_perturbation([vector(0.0)], 0.5).to_tensors()[0].tolist() == [0]


def test_asks_ahead_of_the_weights_which_stay_themselves():
    model, flat, course = Sloped(), MSAM(rho=0.5, momentum=0.5), TrainingProgress()
    w = model.w.detach().clone()
    slopes = [vector(3.0, 4.0), vector(-2.0, 0.0), vector(0.0, 0.0)]
    sums = [vector(3.0, 4.0), vector(-0.5, 2.0)]
    for slope in slopes:
        loss = flat(model.closure(slope), model, course)()
        assert loss.item() == pytest.approx((model.gradient_at_perturbation[-1] @ slope).item())
        assert torch.equal(model.w.grad, slope)
        assert torch.equal(model.w, w)
        course.advance()
    expected = [w, *(w - 0.5 * v / v.norm() for v in sums)]
    torch.testing.assert_close(torch.stack(model.gradient_at_perturbation), torch.stack(expected))


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_an_overflow_is_not_remembered(bad):
    model, flat, course = Sloped(), MSAM(), TrainingProgress()
    flat(model.closure(vector(1.0, 2.0)), model, course)()
    flat(model.closure(vector(bad, 2.0)), model, course)()
    assert not model.w.grad.isfinite().all()  # for a loss scaler to see
    assert [kept.tolist() for kept in course.flatness_state.values()] == [[1, 2]]


def test_refuses_a_momentum_that_never_forgets():
    with pytest.raises(ValueError, match="momentum must be"):
        MSAM(momentum=1.0)
