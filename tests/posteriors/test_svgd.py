"""SVGD, flat SVGD and FHBI: stationary particles, the direction and its norm, and the limits of one particle."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from flatbayes.flatness import SAM, Plain
from flatbayes.posteriors import MAP, SVGD
from flatbayes.posteriors.svgd import median_bandwidth, stein_direction, stein_norm

SGD = partial(torch.optim.SGD, lr=0.1)


class Weights(nn.Module):
    """Weights with the loss force(w) as derivative; the gradient counts as one of the mean loss."""

    def __init__(self, *values):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(values, dtype=torch.float64))
        self.seen = []

    def closure(self, loss_fn):
        def closure():
            self.zero_grad()
            self.seen.append(self.weight.detach().clone())
            loss = loss_fn(self.weight)
            loss.backward()
            return loss.detach()

        return closure


def run_steps(posterior, loss_fn, flatness, values, *, steps, lr=0.1, num_data=1):
    torch.manual_seed(0)
    model = Weights(*values)
    state = posterior.init(model, partial(torch.optim.SGD, lr=lr), num_data)
    for _ in range(steps):
        posterior.step(state, flatness(model.closure(loss_fn), model))
    return torch.stack([model.weight.detach(), *state.statistics["particles"]]), state


def stationary_pair(linear, kink, bandwidth):
    """Root x of (c x + b)(1 - e^(-4 x² / h)) = (4 x / h) e^(-4 x² / h), by bisection."""

    def excess(x):
        k = math.exp(-4 * x * x / bandwidth)
        return (linear * x + kink) * (1 - k) - 4 * x / bandwidth * k

    low, high = 1e-6, 10.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) < 0 else (low, middle)
    return low


@pytest.mark.parametrize(("rho", "lr", "tolerance"), [(0.0, 0.1, 1e-8), (0.1, 0.02, 3e-3)])
def test_two_particles_on_a_gaussian_are_where_force_and_repulsion_balance(rho, lr, tolerance):
    # The precision is 2 + 1 of the prior. The perturbation of FHBI flips its sign with phi: the fixed point is that
    # of SVGD, around which a finite learning rate oscillates.
    posterior = SVGD(2, prior_precision=1.0, bandwidth=1.0, initial_std=0.5, rho=rho)
    particles, _ = run_steps(posterior, lambda w: w.square().sum(), Plain(), [0.3], steps=120, lr=lr)
    expected = math.sqrt(math.log(1 + 4 / 3) / 4)
    assert expected == pytest.approx(0.46024392, abs=1e-8)
    assert sorted(particles.flatten().tolist()) == pytest.approx([-expected, expected], abs=tolerance)


def test_flat_particles_are_those_of_the_sharpness_aware_posterior():
    # SAM on a w² / 2 has the force a w + a rho sign(w), and the prior adds w: c = 2, b = .8 with a = 1, rho = .8.
    posterior = SVGD(2, prior_precision=1.0, bandwidth=1.0, initial_std=0.5)
    particles, _ = run_steps(posterior, lambda w: w.square().sum() / 2, SAM(rho=0.8), [0.3], steps=120)
    expected = stationary_pair(2.0, 0.8, 1.0)
    assert expected == pytest.approx(0.41988041, abs=1e-8)
    assert sorted(particles.flatten().tolist()) == pytest.approx([-expected, expected], abs=1e-7)


def test_the_norm_in_the_hilbert_space_is_the_stein_discrepancy():
    generator = torch.Generator().manual_seed(0)
    x, s = (torch.randn(3, 2, generator=generator, dtype=torch.float64) for _ in "xs")
    h = torch.tensor(1.3, dtype=torch.float64)

    def direction(point):  # phi as a field of vectors
        kernel = torch.exp(-(point - x).square().sum(1) / h)
        return (kernel[:, None] * (s + 2 / h * (point - x))).mean(0)

    phi = stein_direction(x, s, h)
    torch.testing.assert_close(phi, torch.stack([direction(point) for point in x]))
    divergences = [torch.autograd.functional.jacobian(direction, point).trace() for point in x]
    squared = sum(p @ score + div for p, score, div in zip(phi, s, divergences, strict=True)) / 3
    assert stein_norm(x, s, h).square().item() == pytest.approx(squared.item(), rel=1e-12)
    one = stein_norm(x[:1], s[:1], h).item()
    assert one == pytest.approx(math.sqrt(s[0].square().sum().item() + 2 * 2 / 1.3), rel=1e-12)


def test_the_bandwidth_is_the_median_of_the_squared_distances():
    x = torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64)
    assert median_bandwidth(x).item() == pytest.approx(4 / math.log(4))
    assert median_bandwidth(x[:1]).item() == median_bandwidth(torch.zeros(2, 1)).item() == 1


def loss_fn(weight):
    return (torch.tensor([1.0, 3.0], dtype=torch.float64) * weight.square()).sum() / 2 + weight.prod()


def test_one_particle_without_radius_is_map():
    particles, _ = run_steps(SVGD(1, prior_precision=2.0), loss_fn, Plain(), [0.5, -0.3], steps=5, num_data=20)
    model, posterior = Weights(0.5, -0.3), MAP(prior_precision=2.0)
    state = posterior.init(model, SGD, 20)
    for _ in range(5):
        posterior.step(state, model.closure(loss_fn))
    torch.testing.assert_close(particles[0], model.weight.detach(), rtol=1e-13, atol=1e-14)


def test_one_particle_with_a_radius_asks_at_the_point_of_sam():
    # Of the negative log posterior, loss and prior together: the gradient of the prior is in the direction.
    _, state = run_steps(SVGD(1, prior_precision=2.0, rho=0.3), loss_fn, Plain(), [0.5, -0.3], steps=1, num_data=20)
    start = torch.tensor([0.5, -0.3], dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(20 * loss_fn(start) + start.square().sum(), start)
    expected = start.detach() + 0.3 * grad / grad.norm()
    torch.testing.assert_close(state.model.seen[1], expected, rtol=1e-14, atol=1e-14)
    _, by_space = run_steps(
        SVGD(1, prior_precision=2.0, rho=0.3, norm="rkhs"), loss_fn, Plain(), [0.5, -0.3], steps=1, num_data=20
    )
    expected = start.detach() + 0.3 * grad / (grad.square().sum() + 2 * 2).sqrt()  # h = 1
    torch.testing.assert_close(by_space.model.seen[1], expected, rtol=1e-14, atol=1e-14)


def test_particles_start_from_weights_of_their_own_and_each_is_drawn():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    before = [p.detach().clone() for p in model.parameters()]
    posterior = SVGD(3)
    state = posterior.init(model, torch.optim.Adam, 10)
    assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))
    firsts = set()
    for index in range(posterior.count_stored_snapshots(state)):
        with posterior.load_snapshot(state, index) as network:
            firsts.add(network[0].weight[0, 0].item())
            assert network[1].weight.tolist() == [1, 1, 1, 1]
    assert len(firsts) == 3
    inputs = torch.randn(8, 3)

    def closure():
        model.zero_grad()
        loss = model(inputs).square().mean()
        loss.backward()
        return loss.detach()

    posterior.step(state, closure)
    assert model[1].num_batches_tracked == 1  # running statistics are those of the first particle


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_particles": 0}, "num_particles must be"),
        ({"bandwidth": 0.0}, "bandwidth must be"),
        ({"rho": -1.0}, "rho is a radius"),
        ({"initial_std": -1.0}, "initial_std must be"),
    ],
)
def test_invalid_hyperparameters_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SVGD(**options)
    with pytest.raises(ValueError, match=r"second prior on the weights and one on the particles"):
        SVGD().init(Weights(1.0), partial(torch.optim.SGD, lr=0.1, weight_decay=0.1), 10)
    without = SVGD()
    object.__setattr__(without, "prior_precision", None)  # the tests check the types of arguments before
    with pytest.raises(ValueError, match="prior_precision must be a number"):
        without.__post_init__()
