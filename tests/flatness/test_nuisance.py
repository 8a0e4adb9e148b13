"""Nuisance parameters, such as a noise scale: not perturbed, with the gradient at the unperturbed weights."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from flatbayes.core import TrainingProgress
from flatbayes.core.spec import short_name
from flatbayes.core.tensor_lists import clone_tensors
from flatbayes.flatness import (
    ASAM,
    GSAM,
    LESAM,
    SAM,
    WSAM,
    Delayed,
    FisherSAM,
    FriendlySAM,
    LookSAM,
    Periodic,
    PosteriorSAM,
    RandomPerturbation,
    StableSAM,
    VaSSO,
)
from support import Counted, batch, distribute_all_weights, network

NUISANCE = ["log_noise"]
KINDS = [
    SAM(rho=0.1),
    SAM(rho=0.1, ascent_steps=3),
    SAM(rho=0.1, params=["9.*"]),
    ASAM(rho=0.3),
    FisherSAM(rho=0.1),
    LESAM(loss_budget=0.1),
    LookSAM(rho=0.1, period=1),
    RandomPerturbation(rho=0.1),
    PosteriorSAM(rho=0.5),
    VaSSO(rho=0.1),
    FriendlySAM(rho=0.1),
    WSAM(rho=0.1, gamma=0.5),
    GSAM(rho=0.1, alpha=0.0),
]


class NoisyQuadratic(nn.Module):
    """Gaussian negative log likelihood of residuals w with a learnt noise scale: a |w|² / 2 exp(-2 s) + s."""

    def __init__(self, log_noise=0.3):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.6, -0.8], dtype=torch.float64))
        self.log_noise = nn.Parameter(torch.tensor(log_noise, dtype=torch.float64))
        self.seen = []

    def closure(self):
        self.zero_grad()
        self.seen.append((self.weight.detach().clone(), self.log_noise.item()))
        loss = 2.0 * self.weight.square().sum() / 2 * torch.exp(-2 * self.log_noise) + self.log_noise
        loss.backward()
        return loss.detach()


def with_nuisance(flat, names):
    return type(flat)(**{**vars(flat), "nuisance": names})


@pytest.mark.parametrize("flat", [f for f in KINDS if getattr(f, "params", "all") == "all"], ids=short_name)
def test_on_a_quadratic_with_noise_the_gradients_are_exact(flat):
    model, start = NoisyQuadratic(), NoisyQuadratic()
    with distribute_all_weights(model):
        loss = with_nuisance(flat, NUISANCE)(model.closure, model, TrainingProgress(total_steps=9))()
    assert loss.item() == pytest.approx(math.exp(-0.6) + 0.3)
    assert all(noise == 0.3 for _, noise in model.seen)
    perturbed = model.seen[-1][0]
    assert (perturbed - start.weight).norm() > 0.01
    torch.testing.assert_close(model.weight.grad, 2 * perturbed * math.exp(-0.6))
    assert model.log_noise.grad.item() == pytest.approx(1 - 2 * math.exp(-0.6))
    assert torch.equal(model.weight, start.weight)


def test_the_radius_of_sam_is_that_of_the_other_parameters():
    model = NoisyQuadratic()
    SAM(rho=0.2, nuisance=NUISANCE)(model.closure, model)()
    torch.testing.assert_close(model.seen[-1][0], torch.tensor([0.6, -0.8], dtype=torch.float64) * 1.2)


@pytest.mark.parametrize(("nuisance", "expected"), [(NUISANCE, 1.0), (None, 1.2)])
def test_the_learnt_noise_is_that_of_the_weights_and_not_of_the_worst_point(nuisance, expected):
    model = NoisyQuadratic()
    flat = SAM(rho=0.2, params=["weight"], nuisance=nuisance)
    for _ in range(300):  # of the scale alone: its best value is the root of a times the squared residuals
        flat(model.closure, model)()
        with torch.no_grad():
            model.log_noise -= 0.1 * model.log_noise.grad
    assert math.exp(model.log_noise.item()) == pytest.approx(math.sqrt(2) * expected, rel=1e-3)


@pytest.mark.parametrize("flat", KINDS, ids=short_name)
def test_the_gradients_of_a_network_are_those_of_two_passes(flat):
    names = ["6.*", "*.bias"]
    model, plain = network(torch.float64), network(torch.float64)
    closure = Counted(model, *batch(dtype=torch.float64), seen=[])
    torch.manual_seed(3)
    with distribute_all_weights(model):
        with_nuisance(flat, names)(closure, model, TrainingProgress(total_steps=9))()
    torch.manual_seed(3)
    Counted(plain, *batch(dtype=torch.float64))()
    first, last = closure.seen[0], closure.seen[-1]
    at_last = network(torch.float64)
    with torch.no_grad():
        for param, value in zip(at_last.parameters(), last, strict=True):
            param.copy_(value)
    torch.manual_seed(3)
    Counted(at_last, *batch(dtype=torch.float64))()
    params = zip(model.named_parameters(), plain.parameters(), at_last.parameters(), first, last, strict=True)
    for (name, param), at_start, at_end, begin, end in params:
        is_nuisance = name.startswith("6.") or name.endswith(".bias")
        assert not is_nuisance or torch.equal(begin, end)
        torch.testing.assert_close(param.grad, (at_start if is_nuisance else at_end).grad)


def test_looksam_adds_no_direction_to_nuisance_parameters():
    flat, model, plain = LookSAM(rho=0.1, period=5, nuisance=["*.bias"]), network(), network()
    progress = TrainingProgress(total_steps=9)
    flat(Counted(model, *batch()), model, progress)()
    progress.advance()
    torch.manual_seed(3)
    flat(Counted(model, *batch(1)), model, progress)()
    torch.manual_seed(3)
    with torch.no_grad():
        for buffer, value in zip(plain.buffers(), clone_tensors(list(plain.buffers())), strict=True):
            buffer.copy_(value)
    Counted(plain, *batch(1))()
    for (name, param), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(param.grad, other.grad) is name.endswith(".bias"), name


@pytest.mark.parametrize("flat", [WSAM(0.1), GSAM(0.1), StableSAM(0.1)], ids=short_name)
def test_gradients_made_of_two_leave_that_of_the_nuisance_parameters_as_it_is(flat):
    names = ["6.*", "*.bias"]
    model, plain = network(torch.float64).eval(), network(torch.float64).eval()
    replace(flat, nuisance=names)(Counted(model, *batch(dtype=torch.float64)), model, TrainingProgress())()
    Counted(plain, *batch(dtype=torch.float64))()
    equal = [torch.equal(a.grad, b.grad) for a, b in zip(model.parameters(), plain.parameters(), strict=True)]
    assert equal == [name.startswith("6.") or name.endswith("bias") for name, _ in model.named_parameters()]


@pytest.mark.parametrize("schedule", [Periodic(SAM(nuisance=NUISANCE), 1), Delayed(SAM(nuisance=NUISANCE), 0.0)])
def test_schedules_pass_it_on(schedule):
    model = NoisyQuadratic()
    schedule(model.closure, model, TrainingProgress(total_steps=9))()
    assert model.log_noise.grad.item() == pytest.approx(1 - 2 * math.exp(-0.6))


def test_what_cannot_be_is_refused():
    model = NoisyQuadratic()
    with pytest.raises(ValueError, match=r"pattern 'noise' of nuisance matches none.*\['weight', 'log_noise'\]"):
        SAM(nuisance=["noise"])(model.closure, model)()
    with pytest.raises(ValueError, match="needs the whole batch"):
        SAM(nuisance=NUISANCE, ascent_batch_fraction=0.5)
    with pytest.raises(ValueError, match="nuisance must be a list of name patterns"):
        SAM(nuisance=[])
