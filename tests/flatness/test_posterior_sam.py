"""Perturbations in the geometry of the posterior, against closed forms and their KL divergence."""

import math

import pytest
import torch
from torch import nn

from flatbayes.core.context import DiagonalGaussian, offer_distribution, vectorized
from flatbayes.core.gaussians import IndependentWeights, LowRankGaussian, weight_distribution
from flatbayes.flatness import SAM, PosteriorSAM
from flatbayes.flatness.asam import adaptive_perturbation
from flatbayes.flatness.ascent import Perturbation
from flatbayes.flatness.posterior_sam import mean_over_std_scale
from flatbayes.posteriors import LRT, MAP, SGVB, SWAG, Ensemble
from flatbayes.posteriors.variational import gaussian_kl


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


def some(seed, count=7):
    return torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Weights(nn.Module):
    """A linear loss <g, w>, so that the perturbation can be read from its passes."""

    def __init__(self, *values):
        super().__init__()
        self.params = nn.ParameterList(vector(*v) for v in values)
        self.seen = []

    def closure(self, *grads):
        def closure():
            self.seen.append([p.detach().clone() for p in self.params])
            for param, grad in zip(self.params, grads, strict=True):
                param.grad = grad.clone()
            return sum((p.detach() @ g for p, g in zip(self.params, grads, strict=True)), vector(0.0).sum())

        return closure

    def perturbation(self):
        return [after - before for before, after in zip(self.seen[0], self.seen[-1], strict=True)]


# By hand: with g = (3, -1 | 2) and std = (0.5, 2 | 0.25), |std g| = sqrt(2.25 + 4 + 0.25) = sqrt(6.5).


def test_std_is_the_closed_form_over_all_tensors():
    model = Weights([1.0, 1.0], [1.0])
    means, stds = [vector(9.0, 9.0), vector(9.0)], [vector(0.5, 2.0), vector(0.25)]
    with weight_distribution(list(model.params), means, stds):
        PosteriorSAM(rho=0.2)(model.closure(vector(3.0, -1.0), vector(2.0)), model)()
    expected = vector(0.75, -4.0, 0.125) * 0.2 / math.sqrt(6.5)  # rho std² g / |std g|
    torch.testing.assert_close(torch.cat(model.perturbation()), expected)


def test_std_does_not_perturb_weights_without_a_distribution():
    model = Weights([1.0, 1.0], [1.0])
    with weight_distribution([model.params[1]], [vector(9.0)], [vector(0.25)]):
        PosteriorSAM(rho=0.2)(model.closure(vector(3.0, -1.0), vector(-2.0)), model)()
    first, second = model.perturbation()
    assert first.tolist() == [0, 0]
    torch.testing.assert_close(second, vector(-0.2 * 0.25))


def test_mean_over_std_is_the_closed_form_with_weights_themselves_for_the_rest():
    model = Weights([9.0, 9.0], [-3.0])  # drawn weights do not matter where there is a mean
    with weight_distribution([model.params[0]], [vector(0.4, -0.1)], [vector(0.5, 2.0)]):
        flat = PosteriorSAM(rho=0.2, geometry="mean_over_std")
        flat(model.closure(vector(3.0, -1.0), vector(2.0)), model)()
    t = vector(0.8, 0.05, 3.0)
    g = vector(3.0, -1.0, 2.0)
    expected = 0.2 * t**2 * g / math.sqrt(2.4**2 + 0.05**2 + 6**2)
    torch.testing.assert_close(torch.cat(model.perturbation()), expected)


def shift_by_std(grad, mean, std, rho):
    """The perturbation of one parameter with independent weights."""
    distribution = IndependentWeights({mean: DiagonalGaussian(mean, std)})
    products, norm, _ = distribution.multiply_covariance([mean], [grad])
    return Perturbation(products, norm, rho).to_tensors()[0]


@pytest.mark.parametrize("scale_fn", [lambda params, gaussians: [gaussians[0].std], mean_over_std_scale])
def test_no_feasible_perturbation_rises_faster(scale_fn):
    param, g = some(0), some(1)
    (scale,) = scale_fn([param], [DiagonalGaussian(some(2), some(3).exp())])
    (best,) = adaptive_perturbation([g], [scale], 0.3).to_tensors()
    assert (best / scale).norm().item() == pytest.approx(0.3)
    for seed in range(300):
        z = some(10 + seed)
        assert g @ (scale * z * (0.3 / z.norm())) < g @ best


@pytest.mark.parametrize("rho", [0.1, 3.0])
def test_the_divergence_of_the_shift_is_half_the_square_of_the_radius(rho):
    mean, std = some(0), some(1).exp()
    shift = shift_by_std(some(2), mean, std, rho)
    assert gaussian_kl(mean + shift, std, mean, std**-2).item() == pytest.approx(rho**2 / 2, rel=1e-12)


def test_std_does_not_depend_on_the_units_of_weights():
    mean, std, g, units = some(0), some(1).exp(), some(2), some(3)  # w = units v, some of them negative
    in_w = shift_by_std(g, mean, std, 0.7)
    in_units = DiagonalGaussian(mean / units, std / units.abs())
    in_v = shift_by_std(g * units, mean / units, std / units.abs(), 0.7)
    torch.testing.assert_close(in_v * units, in_w)
    scales = (mean_over_std_scale([mean], [DiagonalGaussian(mean, std)]), mean_over_std_scale([mean], [in_units]))
    torch.testing.assert_close(scales[0], scales[1])  # a pure number: its ball is not that of other units


def test_a_weight_without_spread_has_the_scale_of_one_without_a_distribution():
    mean, std = vector(2.0, -3.0), vector(0.5, 0.0)
    torch.testing.assert_close(mean_over_std_scale([mean], [DiagonalGaussian(mean, std)]), [vector(4.0, 3.0)])


def test_equal_standard_deviations_are_sam():
    seen = []
    for flat in (PosteriorSAM(rho=3.0), SAM(rho=0.06)):
        model = Weights([1.0, 1.0], [1.0])
        with weight_distribution(
            list(model.params), list(model.params), [torch.full_like(p, 0.02) for p in model.params]
        ):
            flat(model.closure(vector(3.0, -1.0), vector(2.0)), model)()
        seen.append(torch.cat(model.perturbation()))
    torch.testing.assert_close(*seen)


@pytest.mark.parametrize(
    "member",
    [SGVB(initial_std=0.5), pytest.param(Ensemble(SGVB(initial_std=0.5), size=2), marks=pytest.mark.slow)],
    ids=str,
)
def test_gradients_with_sgvb_have_their_closed_form(member):
    """Methods 2.8 (W) with a radius rho std: the shift is rho std sign(theta), and its std is held in the gradient.

    For a theta² / 2, z = mean / std: d/dmean = a (mean + rho std (2 Phi(z) - 1)), d/dstd = a std (1 + 2 rho phi(z)).
    """
    a, rho, mean, std, count = 2.0, 0.6, 0.4, 0.5, 2000
    model = nn.ParameterDict({"theta": nn.Parameter(vector(mean))})
    state = member.init(model, lambda p: torch.optim.SGD(p, lr=0.0), 1)

    def closure():
        theta = model["theta"].detach()
        model["theta"].grad = a * theta
        return a / 2 * theta.square().sum()

    torch.manual_seed(0)
    raw, grads = state.statistics["raw_scale"], []
    for _ in range(count):
        member.step(state, PosteriorSAM(rho=rho)(closure, model))
        grads.append(torch.cat([model["theta"].grad - mean, raw.grad / raw.sigmoid() - (std - 1 / std)]))
    normal = torch.distributions.Normal(vector(0.0), vector(1.0))
    z = vector(mean / std)
    exact = torch.cat(
        [a * (mean + rho * std * (2 * normal.cdf(z) - 1)), a * (std + 2 * rho * std * normal.log_prob(z).exp())]
    )
    samples = torch.stack(grads)
    assert ((samples.mean(0) - exact).abs() < 5 * samples.std(0) / math.sqrt(count)).all()
    plain = vector(a * mean, a * std)
    assert ((exact - plain).abs() > 6 * samples.std(0) / math.sqrt(count)).all()


def test_lrt_perturbs_its_means():
    model = nn.Linear(3, 1, bias=False).double()
    posterior = LRT(initial_std=0.1)
    state = posterior.init(model, lambda p: torch.optim.SGD(p, lr=0.0), 10)
    seen, x = [], some(0, 15).view(5, 3)

    def closure():
        seen.append((state.model.weight.detach().clone(), state.model.weight.grad))
        state.model.zero_grad()
        loss = state.model(x).square().mean()
        loss.backward()
        return loss.detach()

    posterior.step(state, PosteriorSAM(rho=2.0)(closure, state.model))
    (before, _), (after, g) = seen
    torch.testing.assert_close(after - before, 2.0 * 0.1 * g / g.norm())


def test_the_error_names_the_posteriors_with_weight_distributions():
    model = Weights([1.0])
    flat = PosteriorSAM()(model.closure(vector(2.0)), model)
    with pytest.raises(
        ValueError, match=r"Use it with SGVB, LRT, IVON, SWAG, BLoB, or an Ensemble .* SAM, ASAM or FisherSAM"
    ):
        flat()
    state = MAP().init(model, lambda p: torch.optim.SGD(p, lr=0.1), 10)
    with pytest.raises(ValueError, match="this one has none"):
        MAP().step(state, flat)
    assert model.params[0].tolist() == [1]


@pytest.mark.parametrize(("name", "value"), [("ascent_steps", 0), ("rho", -1.0)])
def test_invalid_numbers_are_refused(name, value):
    with pytest.raises(ValueError, match=name):
        PosteriorSAM(**{name: value})


def test_an_unknown_geometry_is_refused():
    flat = PosteriorSAM()
    object.__setattr__(flat, "geometry", "raw")  # beartype, in the tests only, would be first to refuse
    with pytest.raises(ValueError, match="geometry must be std or mean_over_std, got 'raw'"):
        flat.__post_init__()


# Covariances that are not diagonal


def make_low_rank(params, scale=0.7, rank=3):
    """A Gaussian over several parameters, and its dense covariance."""
    size = sum(param.numel() for param in params)
    variance, deviations = some(4, size).exp(), some(5, rank * size).view(rank, size)
    covariance = scale * (variance.diag() + deviations.T @ deviations / (rank - 1))
    return LowRankGaussian(params, some(6, size), variance, deviations, scale), covariance


def test_a_low_rank_covariance_has_its_dense_product_and_marginals():
    params = [some(0, 4).view(2, 2), some(1, 3)]
    gaussian, covariance = make_low_rank(params)
    other, g = some(2, 2), some(3, 7)
    products, norm, _ = gaussian.multiply_covariance(
        [params[1], other, params[0]], [g[4:], some(7, 2), g[:4].view(2, 2)]
    )
    torch.testing.assert_close(torch.cat([products[2].flatten(), products[0]]), covariance @ g)
    torch.testing.assert_close(norm, (g @ covariance @ g).sqrt())
    assert products[1].tolist() == [0, 0]  # without a distribution
    stds = torch.cat([gaussian.get_marginal(param).std.flatten() for param in params])
    torch.testing.assert_close(stds, covariance.diagonal().sqrt())
    assert torch.equal(gaussian.get_marginal(params[0]).mean, gaussian.mean[:4].view(2, 2))
    assert gaussian.get_marginal(other) is None


def test_vectorized_networks_have_covariances_of_their_own():
    params = [some(0, 6).view(2, 3), some(1, 4).view(2, 2)]  # two networks of 3 + 2 weights
    grads = [some(8, 6).view(2, 3), some(9, 4).view(2, 2)]
    gaussian, _ = make_low_rank(params)
    with vectorized(2):
        products, norm, _ = gaussian.multiply_covariance(params, grads)
    for k in range(2):
        columns = [*range(3 * k, 3 * k + 3), *range(6 + 2 * k, 8 + 2 * k)]
        own = [param[k] for param in params]
        single = LowRankGaussian(
            own, gaussian.mean[columns], gaussian.variance[columns], gaussian.deviations[:, columns], gaussian.scale
        )
        expected, expected_norm, _ = single.multiply_covariance(own, [grad[k] for grad in grads])
        torch.testing.assert_close([product[k] for product in products], expected)
        torch.testing.assert_close(norm[k], expected_norm)


def test_the_perturbation_is_the_worst_of_the_ball_of_the_covariance():
    """eᵀ Σ⁻¹ e / 2 = ρ² / 2 = KL(shifted || unshifted), and no other shift of this length rises faster."""
    model, g, rho = Weights([1.0, 2.0], [3.0, 4.0]), some(3, 4), 0.6
    gaussian, covariance = make_low_rank(list(model.params))
    with offer_distribution(gaussian):
        PosteriorSAM(rho=rho)(model.closure(g[:2], g[2:]), model)()
    e = torch.cat(model.perturbation())
    assert (e @ torch.linalg.solve(covariance, e)).item() == pytest.approx(rho**2, rel=1e-12)
    assert (g @ e).item() == pytest.approx(rho * (g @ covariance @ g).sqrt().item(), rel=1e-12)
    others = torch.randn(20_000, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    others = rho * others / others.norm(dim=1, keepdim=True) @ torch.linalg.cholesky(covariance).T
    assert 0.99 * g @ e < (others @ g).max() < g @ e


@pytest.mark.parametrize("rank", [0, 3])
def test_with_swag_the_covariance_is_that_of_the_draws_so_far(rank):
    """Plain SAM before the second snapshot, then the covariance of the draws with the snapshots that there are."""
    posterior, model, g = SWAG(rank=rank, scale=0.5), Weights([1.0, 2.0], [3.0, 4.0]), some(3, 4)
    state = posterior.init(model, lambda p: torch.optim.SGD(p, lr=0.1), 10)
    flat, snapshots = PosteriorSAM(rho=0.6, initial_rho=0.2), []
    for k in range(5):
        model.seen.clear()
        posterior.step(state, flat(model.closure(some(10 + k, 4)[:2], some(10 + k, 4)[2:]), model))
        model.seen.clear()
        posterior.step(state, flat(model.closure(g[:2], g[2:]), model))
        e = torch.cat(model.perturbation())
        if len(snapshots) < 2:
            torch.testing.assert_close(e, 0.2 * g / g.norm())
        else:
            generator, stored = torch.Generator().manual_seed(0), state.statistics["deviations"][:k]
            covariance = 0.5 * torch.stack(snapshots).var(0, correction=0).diag()
            covariance += 0.5 * stored.T @ stored / max(len(stored) - 1, 1)
            torch.testing.assert_close(e, 0.6 * covariance @ g / (g @ covariance @ g).sqrt())
            if k == 4:
                draws = []
                for _ in range(2000):
                    with posterior.draw(state, generator) as drawn:
                        draws.append(torch.cat([*drawn.params]).detach())
                torch.testing.assert_close(torch.stack(draws).T.cov(), covariance, rtol=0.2, atol=0.01)
        posterior.collect(state)
        snapshots.append(torch.cat([*model.params]).detach().clone())
