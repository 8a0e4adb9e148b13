"""SGLD with lattice noise, and on a smoothed loss (fSGLD), against exact stationary moments."""

import math

import pytest
import torch
from torch import nn

from flatbayes.core import TrainingProgress
from flatbayes.core.context import vectorized
from flatbayes.flatness import SAM, GaussianSmoothing
from flatbayes.posteriors import SGLD
from flatbayes.posteriors.sgld import move_on_lattice
from flatbayes.training.presets import make_fsgld, smoothing_std

CHAINS, LR, NUM_DATA = 20_000, 0.05, 10


class Chains(nn.Module):
    """Independent chains of one weight."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(CHAINS, dtype=torch.float64))


def run_chains(posterior, force, *, steps, lr=LR, flatness=None):
    torch.manual_seed(0)
    model, progress = Chains(), TrainingProgress(seed=0)
    state = posterior.init(model, lambda p: torch.optim.SGD(p, lr=lr), NUM_DATA)

    def closure():
        model.zero_grad()
        model.weight.grad = force(model.weight.detach())
        return torch.zeros((), dtype=torch.float64)

    for _ in range(steps):
        posterior.step(state, closure if flatness is None else flatness(closure, model, progress))
        progress.advance()
    return model.weight.detach().square().mean().item(), state


@pytest.mark.parametrize(
    ("gradient_noise", "lattice", "gaussian"),
    [(0.0, 0.05, 0.0526316), (0.5, 0.0502, 0.0559211), (2.0, 0.075, 0.105263)],
)
def test_noise_of_the_gradient_does_not_widen_the_chain_unless_steps_are_clipped(gradient_noise, lattice, gaussian):
    def force(w):
        return 2 * w + gradient_noise * torch.randn_like(w)

    variance, state = run_chains(SGLD(noise="lattice"), force, steps=80)
    assert variance == pytest.approx(lattice, rel=0.05)
    assert run_chains(SGLD(), force, steps=80)[0] == pytest.approx(gaussian, rel=0.05)
    # q = lr g / d has the variance of the weights plus (lr noise / d)², with d = 0.1 and curvature 2.
    q_std = math.sqrt(lattice + (0.5 * gradient_noise) ** 2)
    share = SGLD(noise="lattice").describe_state(state)["clipped_share"]
    assert share == pytest.approx(math.erfc(1 / q_std / math.sqrt(2)), abs=0.01)


def test_with_sam_the_chain_samples_the_sharpness_aware_posterior():
    """Its density is exp(-n (|x| + rho)²) for the loss x²; at this learning rate the Gaussian step is 8 % off."""
    rho = 0.2
    grid = torch.linspace(-3, 3, 6001, dtype=torch.float64)
    density = (-NUM_DATA * (grid.abs() + rho).square()).exp()
    expected = float((density * grid.square()).sum() / density.sum())
    with vectorized(CHAINS):  # a ball for each chain
        variance, _ = run_chains(SGLD(noise="lattice"), lambda w: 2 * w, steps=200, lr=0.02, flatness=SAM(rho=rho))
    assert variance == pytest.approx(expected, rel=0.05)  # plain: 0.05
    assert expected < 0.03


def test_a_step_has_the_length_of_the_lattice_and_the_mean_of_the_drift():
    start = [torch.zeros(200_000, dtype=torch.float64), torch.ones(3, dtype=torch.float64)]
    params = [torch.full_like(start[0], 0.03), torch.tensor([1.2, 0.5, 1.0], dtype=torch.float64)]
    torch.manual_seed(0)
    num_clipped = move_on_lattice(params, start, 0.1)
    assert num_clipped.item() == 2
    assert set((params[0] / 0.1).round().tolist()) == {-1.0, 1.0}
    assert params[0].mean().item() == pytest.approx(0.03, abs=5 * 0.1 / math.sqrt(200_000))
    torch.testing.assert_close(params[1][:2], torch.tensor([1.1, 0.9], dtype=torch.float64))  # certain


def test_the_prior_is_in_the_odds():
    prior, decay = SGLD(noise="lattice", prior_precision=5.0), SGLD(noise="lattice")
    shifted = [run_chains(p, lambda w: 1.0 * w, steps=80)[0] for p in (prior, decay)]
    assert shifted == pytest.approx([0.1 / 1.5, 0.1], rel=0.05)


def test_other_noise_is_refused():
    posterior = SGLD()
    object.__setattr__(posterior, "noise", "uniform")  # beartype, in the tests only, would be first to refuse
    with pytest.raises(ValueError, match="noise must be gaussian or lattice, got 'uniform'"):
        posterior.__post_init__()


@pytest.mark.parametrize(
    ("force", "lr", "steps", "expected"),
    [(lambda w: 2 * w, 0.05, 80, 0.0573684), (lambda w: w**3, 0.04, 250, 0.157552)],
    ids=["quadratic", "quartic"],
)
def test_sgld_with_smoothing_samples_the_smoothed_posterior(force, lr, steps, expected):
    variance, _ = run_chains(SGLD(), force, lr=lr, steps=steps, flatness=GaussianSmoothing(std=0.3))
    assert variance == pytest.approx(expected, rel=0.04)  # without smoothing 0.0526 and 0.2138


def test_the_preset_couples_smoothing_and_temperature():
    posterior, flatness = make_fsgld(500, temperature=0.02, exponent=0.1)
    assert posterior.temperature == 0.02
    assert flatness.std == pytest.approx((500 / 0.02) ** (-1.1 / 4), rel=1e-12)
    assert smoothing_std(1, 1.0) == 1
    with pytest.raises(ValueError, match="temperature must be positive"):
        make_fsgld(500, temperature=0.0)
