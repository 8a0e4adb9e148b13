"""Prior precision of gradient-based posteriors: equality with weight decay, and position outside the maximum."""

import pytest
import torch
from torch import nn

from flatbayes.flatness import SAM, Plain
from flatbayes.posteriors import MAP, SWAG, Ensemble, MCDropout

WITH_PRIOR = [MAP, SWAG, lambda **k: MCDropout(rate=0.5, **k)]


@pytest.mark.parametrize("make", WITH_PRIOR)
def test_a_weight_decay_beside_a_prior_is_refused(make):
    with pytest.raises(ValueError, match=r"prior is given twice.*a prior precision of 25"):
        make(prior_precision=25.0).init(network(), lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=5e-4), 50_000)


@pytest.mark.parametrize("make", WITH_PRIOR)
@pytest.mark.parametrize("precision", [-1.0, float("inf"), float("nan")])
def test_refuses_an_invalid_precision(make, precision):
    with pytest.raises(ValueError, match="prior_precision must be finite"):
        make(prior_precision=precision)


def test_prior_precision_over_data_is_weight_decay():
    n, precision = 40, 10.0
    weights = []
    for posterior, decay in ((MAP(prior_precision=precision), 0.0), (MAP(), precision / n)):
        model = network()
        state = posterior.init(model, lambda p, d=decay: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=d), n)
        for _ in range(5):
            posterior.step(state, SAM(rho=0.1)(closure(model), model))
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(weights[0], weights[1])


def test_the_prior_stays_outside_the_maximum():
    displacements = []
    for posterior in (MAP(), MAP(prior_precision=1e6)):
        model, seen = network(), []
        state = posterior.init(model, lambda p: torch.optim.SGD(p, lr=0.0), 10)
        posterior.step(state, SAM(rho=0.1)(closure(model, seen), model))
        displacements.append(seen[1] - seen[0])
    assert torch.equal(displacements[0], displacements[1])


def test_map_of_a_linear_gaussian_model_is_exact():
    torch.manual_seed(0)
    x, w = torch.randn(30, 3, dtype=torch.float64), torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    y = x @ w + 0.1 * torch.randn(30, dtype=torch.float64)
    model = nn.Linear(3, 1, bias=False).double()
    posterior = MAP(prior_precision=4.0)
    state = posterior.init(model, lambda p: torch.optim.SGD(p, lr=0.3), 30)

    def loss():
        model.zero_grad()
        value = (model(x).squeeze(1) - y).square().mean() / 2  # unit noise
        value.backward()
        return value.detach()

    for _ in range(500):
        posterior.step(state, Plain()(loss, model))
    exact = torch.linalg.solve(x.T @ x + 4.0 * torch.eye(3, dtype=torch.float64), x.T @ y)
    torch.testing.assert_close(model.weight.detach().squeeze(0), exact, rtol=1e-9, atol=1e-10)


def test_an_ensemble_needs_a_member():
    with pytest.raises(ValueError, match="at least 1 member"):
        Ensemble(size=0)
    assert Ensemble(Ensemble(size=2), size=3).num_members == 6


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Dropout(0.0), nn.Linear(3, 3)).double()


def closure(model, seen=None):
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)).double()

    def call():
        if seen is not None:
            seen.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        model.zero_grad()
        loss = nn.functional.cross_entropy(model(x), torch.arange(8) % 3)
        loss.backward()
        return loss.detach()

    return call
