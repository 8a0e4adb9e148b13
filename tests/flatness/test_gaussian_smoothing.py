"""The smooth loss that noise leads to, where it is known."""

import math

import pytest
import torch
from torch import nn

from flatbayes.core import TrainingProgress
from flatbayes.flatness import GaussianSmoothing
from flatbayes.flatness.gaussian_smoothing import gaussian_perturbation


class Weight(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([value], dtype=torch.float64))


def averages(loss_fn, value, std, steps=4000):
    """Mean loss and gradient of the smooth closure over steps, each with its standard error."""
    model, course, found = Weight(value), TrainingProgress(), []

    def closure():
        model.zero_grad()
        loss = loss_fn(model.w).sum()
        loss.backward()
        return loss.detach()

    for _ in range(steps):
        loss = GaussianSmoothing(std=std)(closure, model, course)()
        found.append(torch.stack([loss, model.w.grad[0]]))
        course.advance()
    table = torch.stack(found)
    return table.mean(0), table.std(0) / math.sqrt(steps)


def test_on_a_quadratic_the_gradient_is_unbiased_and_the_loss_higher_by_half_the_trace():
    mean, error = averages(lambda w: 2.0 * w.square(), 0.7, std=0.5)
    assert abs(mean[0] - (2.0 * 0.49 + 2.0 * 0.25)) < 4 * error[0]
    assert abs(mean[1] - 4.0 * 0.7) < 4 * error[1]


def test_on_a_cosine_the_gradient_is_that_of_the_smooth_loss():
    mean, error = averages(torch.cos, 0.7, std=0.8)  # E cos(w + s xi) = exp(-s²/2) cos w
    shrunk = math.exp(-0.32)
    assert abs(mean[1] + shrunk * math.sin(0.7)) < 4 * error[1]
    assert abs(mean[1] + math.sin(0.7)) > 4 * error[1]


def test_noise_is_standard_and_a_function_of_seed_and_step():
    params = [torch.zeros(3000), torch.zeros(20, 100)]
    noise = torch.cat([e.flatten() for e in gaussian_perturbation(params, 2.0, seed=1, step=7)])
    assert noise.mean().item() == pytest.approx(0, abs=0.15)
    assert noise.std().item() == pytest.approx(2, abs=0.1)
    assert not torch.equal(noise[:2000], noise[3000:])
    for seed, step in ((1, 7), (2, 7), (1, 8)):
        other = torch.cat([e.flatten() for e in gaussian_perturbation(params, 2.0, seed, step)])
        assert torch.equal(other, noise) is ((seed, step) == (1, 7))
        if (seed, step) != (1, 7):
            assert abs(nn.functional.cosine_similarity(other, noise, dim=0)) < 0.1


def test_takes_nothing_from_the_random_stream_of_training():
    model = Weight(1.0)
    before = torch.get_rng_state()
    GaussianSmoothing()(lambda: torch.zeros(()), model, TrainingProgress())()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("std", [-0.1, math.inf, math.nan])
def test_refuses_a_deviation_that_is_none(std):
    with pytest.raises(ValueError, match="std is a standard deviation"):
        GaussianSmoothing(std=std)
