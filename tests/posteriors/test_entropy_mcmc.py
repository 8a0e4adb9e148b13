"""Entropy-MCMC: the stationary covariance of weights and anchor, and the storage of both."""

import pytest
import torch
from torch import nn

from flatbayes.core.context import vectorized
from flatbayes.flatness import SAM
from flatbayes.posteriors import EntropyMCMC
from flatbayes.posteriors.entropy_mcmc import couple_anchors
from flatbayes.posteriors.presets import ENTROPY_MCMC_CIFAR10


class Chains(nn.Module):
    """Independent chains, a row each."""

    def __init__(self, chains, start=0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.full((chains, 1), start, dtype=torch.float64))


def make_closure(model, curvature):
    def closure():
        model.weight.grad = curvature * model.weight.detach()
        return torch.zeros((), dtype=torch.float64)

    return closure


def run_chains(posterior, curvature, num_data, lr, decay, steps, chains=20_000):
    torch.manual_seed(0)
    model = Chains(chains)
    state = posterior.init(model, lambda p: torch.optim.SGD(p, lr=lr, weight_decay=decay), num_data)
    closure = make_closure(model, curvature)
    for _ in range(steps):
        posterior.step(state, closure)
    x, y = model.weight.detach().flatten(), state.statistics["anchor"]
    return x.square().mean().item(), (x * y).mean().item(), y.square().mean().item()


def stationary_covariance(curvature, num_data, temperature, coupling, lr, decay, anchor_decay):
    """(T / n) H^-1 (I - lr H / 2)^-1, with H the Hessian of the coupled loss."""
    k = temperature / (coupling * num_data)
    hessian = torch.tensor([[curvature + decay + k, -k], [-k, anchor_decay + k]], dtype=torch.float64)
    covariance = temperature / num_data * torch.linalg.inv(hessian @ (torch.eye(2) - lr * hessian / 2))
    return covariance[0, 0].item(), covariance[0, 1].item(), covariance[1, 1].item()


@pytest.mark.parametrize(
    ("curvature", "num_data", "temperature", "eta", "lr", "decay", "decay_anchor", "published"),
    [
        (2.0, 1, 1.0, 0.5, 0.05, 0.0, False, (0.527859, 0.498534, 1.02639)),
        (2.0, 10, 0.5, 0.05, 0.2, 0.1, True, (0.0320467, 0.0193451, 0.0513918)),
        (2.0, 10, 0.5, 0.05, 0.2, 0.1, False, None),
    ],
)
def test_the_stationary_covariance_is_exact(
    curvature, num_data, temperature, eta, lr, decay, decay_anchor, published
):
    posterior = EntropyMCMC(coupling=eta * temperature, temperature=temperature, decay_anchor=decay_anchor)
    exact = stationary_covariance(
        curvature, num_data, temperature, eta * temperature, lr, decay, decay if decay_anchor else 0.0
    )
    assert published is None or exact == pytest.approx(published, rel=1e-5)
    simulated = run_chains(posterior, curvature, num_data, lr, decay, steps=120)
    assert simulated == pytest.approx(exact, rel=0.05)


def test_with_sam_the_weights_sample_the_sharpness_aware_posterior_and_the_anchor_smooths_it():
    """Var(weights) is that of exp(-n (|x| + rho)²), as for SGLD; the anchor has the coupling in addition."""
    rho, coupling, num_data, chains = 0.2, 0.1, 10, 20_000
    grid = torch.linspace(-3, 3, 6001, dtype=torch.float64)
    density = (-num_data * (grid.abs() + rho).square()).exp()
    variance = float((density * grid.square()).sum() / density.sum())
    torch.manual_seed(0)
    model, posterior = Chains(chains), EntropyMCMC(coupling=coupling)
    state = posterior.init(model, lambda p: torch.optim.SGD(p, lr=0.02), num_data)
    closure = make_closure(model, 2.0)
    with vectorized(chains):  # a ball for each chain
        for _ in range(400):
            posterior.step(state, SAM(rho=rho)(closure, model))
    assert model.weight.detach().square().mean().item() == pytest.approx(variance, rel=0.06)  # plain: 0.05
    assert state.statistics["anchor"].square().mean().item() == pytest.approx(variance + coupling, rel=0.05)
    assert variance < 0.03


def test_both_updates_are_from_the_old_pair():
    w, a = torch.tensor([2.0], dtype=torch.float64), torch.tensor([1.0], dtype=torch.float64)
    w.grad = torch.tensor([0.5], dtype=torch.float64)
    couple_anchors([w], [a], lr=0.1, strength=3.0, decay=0.2, std=0.0)
    assert w.grad.item() == pytest.approx(0.5 + 3.0 * (2 - 1))
    assert a.item() == pytest.approx(1 - 0.1 * (3.0 * (1 - 2) + 0.2 * 1))


def test_the_prior_precision_is_a_weight_decay_also_of_the_anchor():
    given = EntropyMCMC(coupling=0.5, prior_precision=4.0, temperature=0.5, decay_anchor=True)
    by_decay = EntropyMCMC(coupling=0.5, temperature=0.5, decay_anchor=True)
    results = [run_chains(given, 2.0, 20, 0.1, 0.0, 5, 50), run_chains(by_decay, 2.0, 20, 0.1, 0.5 * 4 / 20, 5, 50)]
    assert results[0] == pytest.approx(results[1], rel=1e-12)


def test_weights_and_anchors_are_stored_and_drawn():
    model, posterior = Chains(3, start=1.0), EntropyMCMC(max_snapshots=2, coupling=0.5)
    state = posterior.init(model, lambda p: torch.optim.SGD(p, lr=0.1), 10)
    pairs = []
    for _ in range(4):
        posterior.step(state, SAM(rho=0.1)(make_closure(model, 2.0), model))
        posterior.collect(state)
        pairs.append((model.weight.detach().flatten().clone(), state.statistics["anchor"].clone()))
    assert posterior.count_stored_snapshots(state) == 4
    current = model.weight.detach().clone()
    for index, expected in enumerate([*pairs[1], *pairs[3]]):  # every second one is stored
        with posterior.load_snapshot(state, index) as network:
            assert torch.equal(network.weight.detach().flatten(), expected)
    assert torch.equal(model.weight, current)
    drawn = set()
    for seed in range(30):
        with posterior.draw(state, torch.Generator().manual_seed(seed)) as network:
            drawn.add(network.weight[0].item())
    assert len(drawn) == 4


def test_a_learning_rate_at_which_the_pair_diverges_is_refused():
    with pytest.raises(
        ValueError, match=r"can be at most coupling \* num_data / temperature = 0.001 \* 10 / 1 = 0.01"
    ):
        run_chains(EntropyMCMC(coupling=1e-3), 2.0, 10, 0.1, 0.0, steps=1, chains=2)
    with pytest.raises(ValueError, match="coupling is a variance"):
        EntropyMCMC(coupling=0.0)
    assert ENTROPY_MCMC_CIFAR10.coupling / ENTROPY_MCMC_CIFAR10.temperature == pytest.approx(4e-4)
