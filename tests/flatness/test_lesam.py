"""LE-SAM: the radius that a budget for the rise of the loss gives, and its annealing."""

import math

import pytest
import torch
from torch import nn

from flatbayes.core import TrainingProgress
from flatbayes.flatness import LESAM
from flatbayes.flatness.lesam import cosine_decay, loss_equated_perturbation


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_the_loss_rises_by_the_budget_to_first_order_and_the_radius_is_bounded():
    grads = [vector(3.0), vector(0.0, 4.0)]
    e = torch.cat(loss_equated_perturbation(grads, loss_budget=1.0, rho_max=1.0).to_tensors())
    assert (e @ torch.cat(grads)).item() == pytest.approx(1.0)
    torch.testing.assert_close(e, vector(0.6, 0.0, 0.8) * 0.2)
    e = torch.cat(loss_equated_perturbation(grads, loss_budget=1.0, rho_max=0.1).to_tensors())
    torch.testing.assert_close(e, vector(0.6, 0.0, 0.8) * 0.1)


def test_a_zero_gradient_is_not_perturbed_and_an_overflow_is_not_finite():
    assert loss_equated_perturbation([vector(0.0, 0.0)], 1.0, 1.0).to_tensors()[0].tolist() == [0, 0]
    assert not loss_equated_perturbation([vector(0.0, math.inf)], 1.0, 1.0).is_finite


def test_the_budget_decreases_over_the_last_fraction():
    assert [cosine_decay(done, 0.4) for done in (0.0, 0.6)] == [1.0, pytest.approx(1.0)]
    assert cosine_decay(0.8, 0.4) == pytest.approx(0.5)
    assert cosine_decay(0.7, 0.4) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    assert cosine_decay(1.0, 0.4) == 0


@pytest.mark.parametrize(("step", "rise"), [(0, 0.3), (5, 0.3), (75, 0.15), (100, 0.0)])
def test_a_linear_loss_rises_by_the_annealed_budget(step, rise):
    class Line(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(vector(1.0, 1.0))

    model, losses = Line(), []

    def closure():
        model.zero_grad()
        loss = model.w @ vector(3.0, -4.0)
        loss.backward()
        losses.append(loss.item())
        return loss.detach()

    LESAM(loss_budget=0.3, rho_max=9.0, anneal=0.5)(closure, model, TrainingProgress(step=step, total_steps=100))()
    assert losses[1] - losses[0] == pytest.approx(rise, abs=1e-12)


def test_the_error_without_total_steps_gives_the_code_to_write():
    with pytest.raises(ValueError, match=r"TrainingProgress\(total_steps=...\)"):
        LESAM(anneal=0.1)(lambda: torch.zeros(()), nn.Linear(1, 1), TrainingProgress())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LESAM(loss_budget=-1.0), "loss_budget is a rise"),
        (lambda: LESAM(rho_max=math.inf), "rho_max is a radius"),
        (lambda: LESAM(anneal=1.5), "anneal is a fraction"),
    ],
)
def test_invalid_hyperparameters_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
