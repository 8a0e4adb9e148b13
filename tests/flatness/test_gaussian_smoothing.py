"""Gaussian smoothing against the smoothed loss in closed form."""

import math

import pytest
import torch
from torch import nn

from flatbayes.core import TrainingProgress
from flatbayes.flatness import GaussianSmoothing
from flatbayes.flatness.gaussian_smoothing import draw_step_noise

each_length = pytest.mark.parametrize("steps", [1000, pytest.param(4000, marks=pytest.mark.slow)])


class Weight(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([value], dtype=torch.float64))


def averages(loss_fn, value, std, steps):
    """Mean loss and gradient of the smooth closure over steps, each with its standard error."""
    model, progress, rows = Weight(value), TrainingProgress(), []

    def closure():
        model.zero_grad()
        loss = loss_fn(model.w).sum()
        loss.backward()
        return loss.detach()

    for _ in range(steps):
        loss = GaussianSmoothing(std=std)(closure, model, progress)()
        rows.append(torch.stack([loss, model.w.grad[0]]))
        progress.advance()
    table = torch.stack(rows)
    return table.mean(0), table.std(0) / math.sqrt(steps)


@each_length
def test_on_a_quadratic_the_gradient_is_unbiased_and_the_loss_higher_by_half_the_trace(steps):
    mean, error = averages(lambda w: 2.0 * w.square(), 0.7, 0.5, steps)
    assert abs(mean[0] - (2.0 * 0.49 + 2.0 * 0.25)) < 4 * error[0]
    assert abs(mean[1] - 4.0 * 0.7) < 4 * error[1]


@each_length
def test_on_a_cosine_the_gradient_is_that_of_the_smooth_loss(steps):
    mean, error = averages(torch.cos, 0.7, 0.8, steps)  # E cos(w + s xi) = exp(-s²/2) cos w
    shrunk = math.exp(-0.32)
    assert abs(mean[1] + shrunk * math.sin(0.7)) < 4 * error[1]
    assert abs(mean[1] + math.sin(0.7)) > 4 * error[1]


def test_noise_is_standard_normal_and_another_for_each_tensor():
    params = [torch.zeros(3000), torch.zeros(20, 100)]
    noise = torch.cat([e.flatten() for e in draw_step_noise(params, 1, TrainingProgress(step=7))])
    assert noise.mean().item() == pytest.approx(0, abs=0.075)
    assert noise.std().item() == pytest.approx(1, abs=0.05)
    assert not torch.equal(noise[:2000], noise[3000:])


def test_the_random_numbers_of_training_are_not_used():
    model = Weight(1.0)
    before = torch.get_rng_state()
    GaussianSmoothing()(lambda: model.w.sum().backward() or torch.zeros(()), model, TrainingProgress())()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("std", [-0.1, math.inf, math.nan])
def test_an_invalid_standard_deviation_is_refused(std):
    with pytest.raises(ValueError, match="std is a standard deviation"):
        GaussianSmoothing(std=std)
