"""bSAM: a step against the published update, and the fixed point on a quadratic in closed form."""

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from flatbayes import MLP, Categorical, TrainingConfig, fit
from flatbayes.core import subset_batch
from flatbayes.flatness import SAM, Plain
from flatbayes.posteriors import BSAM, Ensemble
from flatbayes.training.compatibility import check_compatibility


class Weights(nn.Module):
    def __init__(self, *values):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(values, dtype=torch.float64))


def test_a_step_is_that_of_the_published_algorithm():
    """Two sub-batches of unequal size, by scalar operations."""
    posterior = BSAM(rho=0.3, temperature=0.5, damping=0.2, initial_scale=1.5, beta2=0.7, num_sub_batches=2)
    model, targets = Weights(0.4, -1.0), torch.tensor([[1.0, 2.0], [3.0, 0.0], [-1.0, 1.0], [0.5, 0.5], [2.0, 1.0]])
    targets = targets.double()
    state = posterior.init(model, partial(torch.optim.SGD, lr=0.1, weight_decay=0.05), 20)

    def closure():
        (rows,) = subset_batch(targets)
        distance = model.theta.detach() ** 2 - rows
        model.theta.grad = (2 * model.theta.detach() * distance).mean(0)
        return distance.square().sum(1).mean() / 2

    gradient = lambda w, rows: (2 * w * (w**2 - rows)).mean(0)  # noqa: E731
    torch.manual_seed(1)
    w, s, momentum = model.theta.detach().clone(), torch.full((2,), 1.5).double(), torch.zeros(2).double()
    for _ in range(3):
        perturbed, magnitude = torch.zeros(2).double(), torch.zeros(2).double()
        for rows in (targets[:2], targets[2:]):
            noise = torch.randn(2, dtype=torch.float64)
            g = gradient(w + noise / (40 * s).sqrt(), rows)
            perturbed += len(rows) / 5 * gradient(w + 0.3 * g / s, rows)
            magnitude += len(rows) / 5 * g.abs()
        momentum = 0.9 * momentum + 0.1 * (perturbed + 0.05 * w)
        w = w - 0.1 * momentum / s
        s = 0.7 * s + 0.3 * (s.sqrt() * magnitude + 0.2 + 0.05)
    torch.manual_seed(1)
    for _ in range(3):
        posterior.step(state, closure)
    torch.testing.assert_close(model.theta.detach(), w)
    torch.testing.assert_close(state.statistics["scale"], s)


@pytest.mark.parametrize(
    ("rho", "decay", "expected"),
    [(0.05, 0.1, (0.962263, 0.363692)), (0.0, 0.0, (1.0, 2 * math.sqrt(2 / (math.pi * 100)) + 0.1))],
)
def test_the_fixed_point_on_a_quadratic_has_its_closed_form(rho, decay, expected):
    """w = a' t0 / (a' + d), a' = a (1 + rho a / s); s is sqrt(s) times the folded normal mean of g, plus constants.

    With d = rho = 0 it is a sqrt(2 / (pi N)) + damping: s falls with N, so it is not the curvature 2.
    """
    a, centre = 2.0, 1.0
    model = Weights(*[0.9] * 4000)
    posterior = BSAM(rho=rho, initial_scale=0.3, beta2=0.98)
    state = posterior.init(model, partial(torch.optim.SGD, lr=0.01, weight_decay=decay), 100)

    def closure():
        model.theta.grad = a * (model.theta.detach() - centre)
        return a / 2 * (model.theta.detach() - centre).square().mean()

    torch.manual_seed(0)
    means, scales = [], []
    for _ in range(400):
        posterior.step(state, closure)
        means.append(model.theta.detach().mean())
        scales.append(state.statistics["scale"].mean())
    assert torch.stack(means[300:]).mean().item() == pytest.approx(expected[0], abs=2e-4)
    assert torch.stack(scales[300:]).mean().item() == pytest.approx(expected[1], rel=5e-3)


def test_buffers_advance_once_and_sub_batches_have_two_gradients_each():
    inputs = torch.randn(40, 5, generator=torch.Generator().manual_seed(1))
    loader = DataLoader(TensorDataset(inputs, (inputs[:, 0] > 0).long()), batch_size=20)
    network = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    config = TrainingConfig(epochs=3)
    fitted = fit(network, loader, BSAM(num_sub_batches=4), Plain(), config, likelihood=Categorical(2))
    assert fitted.states[0].model[1].num_batches_tracked == 6
    assert fitted.info["cost"]["gradients"] == 12  # two batches an epoch


def test_a_flatness_is_refused():
    check_compatibility(BSAM(), Plain(), TrainingConfig())
    for posterior in (BSAM(), Ensemble(BSAM(), size=2)):
        with pytest.raises(ValueError, match=r"does not go with SAM.*second gradient .* itself\. Use Plain, or IVON"):
            check_compatibility(posterior, SAM(), TrainingConfig())
    with pytest.raises(ValueError, match="loss scaler"):
        check_compatibility(BSAM(), Plain(), TrainingConfig().with_options(**{"precision.mode": "16-mixed"}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta2": 1.0}, "beta2 must be"),
        ({"rho": -0.1}, "rho must be finite"),
        ({"damping": math.inf}, "damping must be finite"),
        ({"initial_scale": 0.0}, "initial_scale must be positive"),
        ({"num_sub_batches": 0}, "num_sub_batches must be at least 1"),
        ({"temperature": 0.0}, "temperature"),
    ],
)
def test_invalid_hyperparameters_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        BSAM(**options)


def test_momentum_in_the_optimizer_is_refused():
    with pytest.raises(ValueError, match=r"momentum=0\.9.* the momentum of BSAM is beta1"):
        BSAM().init(MLP((3,), 2), partial(torch.optim.SGD, lr=0.1, momentum=0.9), 10)
