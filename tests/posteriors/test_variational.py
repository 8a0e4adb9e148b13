"""Formulas of mean-field variational inference, against closed forms and autograd."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from flatbayes.core.gaussians import invert_softplus
from flatbayes.posteriors.variational import (
    MIN_STD,
    add_kl_gradients,
    convert_to_elbo_gradients,
    gaussian_kl,
    raw_to_std,
)


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


def some(seed, count=6):
    return torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("std", [1e-7, 1e-3, 0.01, 1.0, 30.0, 1e4])
def test_raw_and_std_are_inverse(std):
    assert raw_to_std(vector(invert_softplus(std))).item() == pytest.approx(std, rel=1e-9)


def test_softplus_neither_overflows_nor_vanishes():
    assert raw_to_std(vector(-5)).item() == pytest.approx(0.006715348489118068, abs=1e-17)
    assert raw_to_std(torch.tensor([-200.0, 200.0])).tolist() == pytest.approx([MIN_STD, 200.0])


def test_divergence_is_that_of_q_from_the_prior():
    """O14: the reverse would be 218.5."""
    mean, std = vector(0.1), vector(0.006715348489118068)
    assert gaussian_kl(mean, std, vector(0), 100.0).item() == pytest.approx(2.703029255512378, abs=1e-12)


def test_divergence_is_summed_over_weights():
    mean, std, centre = some(0), some(1).exp(), some(2)
    expected = kl_divergence(Normal(mean, std), Normal(centre, 4.0**-0.5)).sum()
    torch.testing.assert_close(gaussian_kl(mean, std, centre, 4.0), expected)
    at_prior = gaussian_kl(centre, torch.full_like(std, 0.5), centre, 4.0)
    assert at_prior.item() == pytest.approx(0, abs=1e-14)


def test_precisions_may_differ_between_weights():
    mean, std, centre, precision = some(0), some(1).exp(), some(2), some(3).exp()
    expected = kl_divergence(Normal(mean, std), Normal(centre, precision**-0.5)).sum()
    torch.testing.assert_close(gaussian_kl(mean, std, centre, precision), expected)


@pytest.mark.parametrize("precision", [2.5, some(3).exp(), torch.tensor(2.5, dtype=torch.float64)])
def test_derivatives_of_the_divergence_are_those_of_autograd_and_added(precision):
    mean, std, centre = some(0).requires_grad_(), some(1).exp().requires_grad_(), some(2)
    expanded = precision if isinstance(precision, float) else precision.expand(6)
    expected = torch.autograd.grad(0.3 * gaussian_kl(mean, std, centre, expanded), (mean, std))
    gradients = some(4), some(5)
    of_prior = precision if isinstance(precision, float) else [precision]
    add_kl_gradients([gradients[0]], [gradients[1]], [mean.detach() - centre], [std.detach()], of_prior, 0.3)
    for one, before, exact in zip(gradients, (some(4), some(5)), expected, strict=True):
        torch.testing.assert_close(one, before + exact, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("centred", [False, True])
def test_gradients_are_those_of_autograd_through_the_samples(centred):
    mean, raw, noise = some(0).requires_grad_(), some(1).requires_grad_(), some(3)
    centre = some(2) if centred else torch.zeros(6, dtype=torch.float64)

    def loss(weights):
        return weights.sin().sum() * weights.square().sum()

    std = raw_to_std(raw)
    objective = loss(mean + std * noise) + 0.03 * gaussian_kl(mean, std, centre, 2.5)
    expected = torch.autograd.grad(objective, (mean, raw))
    weights = (mean + std * noise).detach().requires_grad_()
    grad = torch.autograd.grad(loss(weights), weights)[0]
    gradients = grad.clone(), grad * noise
    arguments = mean.detach(), raw.detach(), std.detach(), centre if centred else None
    convert_to_elbo_gradients(*gradients, *arguments, 2.5, 0.03)
    for one, exact in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, exact, rtol=1e-12, atol=1e-13)


def test_the_prior_increases_a_vanished_std():
    raw = torch.full((1,), -60.0)  # float32: the softplus underflows to nothing
    zero, grad = torch.zeros(1), torch.zeros(1)
    convert_to_elbo_gradients(torch.zeros(1), grad, zero, raw, raw_to_std(raw), None, 1.0, 1.0)
    assert -math.inf < grad.item() < 0
