"""Random perturbations and Gaussian noise as functions of seed, run seed, member and step."""

import math

import pytest
import torch
from torch import nn

from flatbayes.core import TrainingProgress
from flatbayes.core.context import vectorized
from flatbayes.flatness import GaussianSmoothing, RandomPerturbation
from flatbayes.flatness.gaussian_smoothing import draw_step_noise
from flatbayes.flatness.random_perturbation import random_perturbation

KEY = {"seed": 1, "run_seed": 2, "member": 3, "step": 4}
FLATNESSES = [
    lambda seed: RandomPerturbation(rho=0.3, seed=seed),
    lambda seed: GaussianSmoothing(std=0.01, seed=seed),
]


def perturb_once(make, seed, run_seed, member, step, scale=1.0):
    """The perturbation of the last pass of a step, in one vector."""
    model, seen = nn.Linear(60, 30, dtype=torch.float64), []

    def closure():
        seen.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        model.zero_grad()
        loss = scale * model(torch.ones(1, 60, dtype=torch.float64)).square().sum()
        loss.backward()
        return loss.detach()

    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    make(seed=seed)(closure, model, TrainingProgress(step=step, seed=run_seed, members=(member,)))()
    return seen[-1] - before


@pytest.mark.parametrize("make", FLATNESSES, ids=["RandomPerturbation", "GaussianSmoothing"])
def test_the_perturbation_is_a_function_of_both_seeds_the_member_and_the_step(make):
    reference = perturb_once(make, **KEY)
    torch.testing.assert_close(perturb_once(make, **KEY, scale=2.0), reference)  # another gradient, other weights
    for name in KEY:
        other = perturb_once(make, **{**KEY, name: KEY[name] + 1})
        assert abs(nn.functional.cosine_similarity(other, reference, dim=0)) < 5 / math.sqrt(len(reference))


def test_the_random_perturbation_has_the_radius_over_all_tensors():
    assert perturb_once(FLATNESSES[0], **KEY).norm().item() == pytest.approx(0.3)


def test_vectorized_networks_get_the_noise_of_each_trained_alone():
    stacked = [torch.zeros(3, 4, 2), torch.zeros(3, 5), torch.zeros(3)]
    with vectorized(3):
        together = draw_step_noise(stacked, 7, TrainingProgress(step=2, seed=1, members=(4, 0, 9)))
    for k, member in enumerate((4, 0, 9)):
        progress = TrainingProgress(step=2, seed=1, members=(member,))
        alone = draw_step_noise([t[k] for t in stacked], 7, progress)
        assert all(torch.equal(t[k], expected) for t, expected in zip(together, alone, strict=True))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_ends_the_ascent_of_its_network_only(bad):
    noise = [torch.randn(2, 5)]
    grads = [torch.tensor([[1.0] * 5, [bad] * 5])]
    with vectorized(2):
        perturbation = random_perturbation(grads, noise, 0.1)
        (tensor,) = perturbation.to_tensors()
    assert tensor[0].norm().item() == pytest.approx(0.1)
    assert tensor[1].isnan().all()
    assert not random_perturbation([grads[0][1]], [noise[0][1]], 0.1).is_finite
