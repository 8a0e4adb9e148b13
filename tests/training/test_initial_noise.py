"""Noise of a regression at the start of training, and the default clipping of its gradients."""

from functools import partial

import pytest
import torch
from torch import nn

from flatbayes import MAP, Categorical, Gaussian, Plain, fit
from flatbayes.core.gaussians import invert_softplus
from flatbayes.data import Split
from flatbayes.prediction.outputs import GaussianSummary
from flatbayes.training import OptimizationConfig, TrainingConfig
from flatbayes.training.initial_noise import RIDGE_PENALTIES, compute_residual_stds, start_at_residuals

SHORT = TrainingConfig(epochs=1, batch_size=20, optimizer=partial(torch.optim.SGD, lr=1e-4))


@pytest.mark.parametrize("shape", [(30, 3), (12, 40)], ids=str)
def test_residuals_are_those_of_leaving_out_each_row(shape):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(shape, generator=generator, dtype=torch.float64)
    targets = inputs[:, :1] + torch.randn(shape[0], 2, generator=generator, dtype=torch.float64)
    inputs, targets = inputs - inputs.mean(0), targets - targets.mean(0)
    errors = []
    for penalty in RIDGE_PENALTIES:
        for row in range(len(inputs)):
            kept = torch.arange(len(inputs)) != row
            ones = torch.ones(len(inputs), 1, dtype=torch.float64)
            design = torch.cat([ones, inputs], 1)
            ridge = penalty * len(inputs) * torch.eye(design.shape[1], dtype=torch.float64)
            ridge[0, 0] = 0.0
            x = design[kept]
            weights = torch.linalg.solve(x.T @ x + ridge, x.T @ targets[kept])
            errors.append(targets[row] - design[row] @ weights)
    expected = torch.stack(errors).reshape(len(RIDGE_PENALTIES), *targets.shape).square().mean(1).sqrt().amin(0)
    torch.testing.assert_close(compute_residual_stds(inputs, targets), expected, rtol=1e-4, atol=0)


def make_line(noise, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(400, 2, generator=generator, dtype=dtype)
    targets = 3 * inputs[:, 0] + noise * torch.randn(400, generator=generator, dtype=dtype)
    return inputs, 1e6 + 100 * targets


@pytest.mark.parametrize("noise", [0.3, 3.0])
def test_training_starts_at_the_noise_of_a_linear_fit(noise):
    inputs, targets = make_line(noise)
    network = nn.Linear(2, 2)
    nn.init.zeros_(network.weight)
    nn.init.zeros_(network.bias)
    fitted = fit(network, (inputs, targets), MAP(), Plain(), TrainingConfig(epochs=0))
    predictive = fitted.predict(inputs[:3])
    assert float(predictive.std[0]) == pytest.approx(100 * noise, rel=0.1)
    summary = GaussianSummary(fitted.likelihood)([torch.zeros(3, 2)])
    torch.testing.assert_close(summary["std"].double(), predictive.std, rtol=1e-5, atol=0)
    before = TrainingConfig(epochs=0, optimization=OptimizationConfig(initial_noise=None))
    assert fit(network, (inputs, targets), MAP(), Plain(), before).likelihood == Gaussian.fit(targets)


def test_the_offset_is_exact_and_bounded():
    assert invert_softplus(0.69314718056) == pytest.approx(0.0, abs=1e-10)
    inputs, targets = make_line(0.0)
    likelihood = start_at_residuals(Gaussian.fit(targets), Split(inputs=inputs, targets=targets))
    assert likelihood.initial_std == (0.03,)
    images = Split(inputs=torch.zeros(5, 1, 2, 2), targets=torch.randn(5))
    assert start_at_residuals(Gaussian(), images) == Gaussian()
    for wrong in ((0.01,), (0.5, 0.5), (float("nan"),)):
        with pytest.raises(ValueError, match="initial_std"):
            Gaussian(initial_std=wrong)


def test_gradients_of_numbers_are_clipped_by_default():
    config = TrainingConfig()
    assert config.resolve_clip_norm(Gaussian()).optimization.clip_norm == 1.0
    assert config.resolve_clip_norm(Categorical(3)).optimization.clip_norm is None
    unclipped = TrainingConfig(optimization=OptimizationConfig(clip_norm=None))
    assert unclipped.resolve_clip_norm(Gaussian()) is unclipped
    inputs, targets = make_line(0.3)
    weights = {}
    for clip_norm in ("auto", 1.0, None):
        network = nn.Linear(2, 2)
        nn.init.ones_(network.weight)
        nn.init.zeros_(network.bias)
        options = SHORT.with_options(**{"optimization.clip_norm": clip_norm})
        weights[clip_norm] = fit(network, (inputs, targets), MAP(), Plain(), options).states[0].model.weight
    assert torch.equal(weights["auto"], weights[1.0])
    assert not torch.equal(weights["auto"], weights[None])
