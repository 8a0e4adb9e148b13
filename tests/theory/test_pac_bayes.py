"""PAC-Bayes bounds against root finders, exact distributions and repeated sampling."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.special import rel_entr
from scipy.stats import binom, chi2

from flatbayes.theory import (
    betting_mean_bound,
    binary_kl,
    compute_certificate,
    compute_certificate_from_draws,
    gibbs_error_bound,
    holdout_bound,
    inverse_kl,
    norm_tail_probability,
    prior_scale_grid,
    select_prior_scale,
    sharpness_bound,
)
from flatbayes.theory.pac_bayes import BET_FRACTIONS

probability = st.floats(0, 1, allow_subnormal=False)


# ---- Theorem B


@pytest.mark.parametrize(
    ("norm_squared", "num_data", "value"),
    [
        (1.0, 1000, 0.2369266389131326),
        (1.0, 10**6, 0.00897998171961565),
        (4.0, 1000, 0.24519546645539397),
    ],
)
def test_sharpness_bound_reference(norm_squared, num_data, value):
    assert sharpness_bound(norm_squared, 0.1, 10, num_data, 0.05) == pytest.approx(value, rel=1e-13)


def test_sharpness_bound_is_monotone():
    at = sharpness_bound(1.0, 0.1, 10, 1000, 0.05)
    assert sharpness_bound(1.1, 0.1, 10, 1000, 0.05) > at
    assert sharpness_bound(1.0, 0.09, 10, 1000, 0.05) > at
    assert sharpness_bound(1.0, 0.1, 11, 1000, 0.05) > at
    assert sharpness_bound(1.0, 0.1, 10, 1000, 0.04) > at
    assert sharpness_bound(1.0, 0.1, 10, 1001, 0.05) < at
    assert sharpness_bound(4.0, 0.2, 10, 1000, 0.05) == pytest.approx(at)  # only the ratio counts
    assert sharpness_bound(1.0, 0.1, 10, 10**12, 0.05) < 2e-5
    assert sharpness_bound(100.0, 0.05, 10**6, 50_000, 0.05) > 1  # vacuous for a network


def test_gaussian_noise_rarely_leaves_the_ball():
    assert norm_tail_probability(5, 1000) == pytest.approx(2.52e-4, abs=5e-7)
    for p in (1, 2, 5, 100, 10_000):
        for n in (1, 2, 10, 1000, 10**6):
            assert norm_tail_probability(p, n) <= 1 / math.sqrt(n)
            radius = math.sqrt(p) + math.sqrt(math.log(n))
            assert norm_tail_probability(p, n) == pytest.approx(chi2.sf(radius**2, p), rel=1e-7, abs=0)


# ---- the certificate


def test_gibbs_error_bound():
    assert gibbs_error_bound(0.2, 100, 0.01) == inverse_kl(0.2, math.log(200) / 100)
    assert gibbs_error_bound(0.0, 100, 0.02) == pytest.approx(1 - 0.01 ** (1 / 100), rel=1e-13)
    assert gibbs_error_bound(1.0, 100, 0.01) == 1


def test_certificate_keeps_its_pieces():
    found = compute_certificate(0.05, 200, 100.0, 10_000, 0.025, 0.01)
    assert (found.empirical_error, found.num_draws, found.kl, found.num_data) == (0.05, 200, 100.0, 10_000)
    assert (found.delta, found.delta_mc) == (0.025, 0.01)
    assert found.confidence == pytest.approx(0.965)
    assert found.gibbs_error == gibbs_error_bound(0.05, 200, 0.01)
    assert found.complexity == pytest.approx((100 + math.log(200 / 0.025)) / 10_000, rel=1e-14)
    assert found.bound == inverse_kl(found.gibbs_error, found.complexity)
    # kl(ê || g) = log(2/δ')/m and kl(g || b) = complexity, solved by a root finder
    step = brentq(lambda p: float(rel_entr(0.05, p) + rel_entr(0.95, 1 - p)) - math.log(200) / 200, 0.05, 0.9)
    assert found.gibbs_error == pytest.approx(step, abs=1e-10)
    last = brentq(lambda p: float(rel_entr(step, p) + rel_entr(1 - step, 1 - p)) - found.complexity, step, 0.9)
    assert found.bound == pytest.approx(last, abs=1e-10)


def test_maurers_constant():
    """E exp(n kl(mean || p)) <= 2√n for coins, the heart of the bound, for every n and the worst p."""
    for n in (1, 2, 3, 5, 8, 20, 100):
        for p in (0.01, 0.1, 0.3, 0.5):
            total = sum(float(binom.pmf(k, n, p)) * math.exp(n * binary_kl(k / n, p)) for k in range(n + 1))
            assert 1 <= total <= 2 * math.sqrt(n) * (1 + 1e-12)
    assert total > math.sqrt(100)  # and not much less


def test_certificate_is_monotone():
    at = compute_certificate(0.05, 200, 100.0, 10_000, 0.025, 0.01).bound
    assert 0.05 < at < 1
    assert compute_certificate(0.06, 200, 100.0, 10_000, 0.025, 0.01).bound > at
    assert compute_certificate(0.05, 199, 100.0, 10_000, 0.025, 0.01).bound > at
    assert compute_certificate(0.05, 200, 101.0, 10_000, 0.025, 0.01).bound > at
    assert compute_certificate(0.05, 200, 100.0, 9_999, 0.025, 0.01).bound > at
    assert compute_certificate(0.05, 200, 100.0, 10_000, 0.024, 0.01).bound > at
    assert compute_certificate(0.05, 200, 100.0, 10_000, 0.025, 0.009).bound > at


def test_certificate_at_its_edges():
    none = compute_certificate(0.0, 10**9, 0.0, 100, 0.05, 0.01)
    assert none.bound == pytest.approx(1 - (0.05 / 20) ** (1 / 100), rel=1e-3)
    assert compute_certificate(1.0, 10, 0.0, 100, 0.05, 0.01).bound == 1
    assert compute_certificate(0.1, 10, math.inf, 100, 0.05, 0.01).bound == 1
    assert compute_certificate(0.1, 10, 1e9, 100, 0.05, 0.01).bound == 1
    assert 0.5 < compute_certificate(0.0, 1, 0.0, 1, 0.5, 0.4).bound < 1


def coins(probability, num, n, generator):
    return torch.rand(num, n, generator=generator, dtype=torch.float64) < probability


def test_monte_carlo_step_covers():
    """Violations over repetitions of m draws, against δ' and its noise; without the budget half would be."""
    generator, truth, draws, delta = torch.Generator().manual_seed(0), 0.3, 20, 0.2
    means = coins(truth, 4000, draws, generator).double().mean(1)
    bounds = {float(m): gibbs_error_bound(float(m), draws, delta) for m in means.unique()}
    violated = sum(bounds[float(m)] < truth for m in means) / 4000
    assert violated <= delta + 3 * math.sqrt(delta * (1 - delta) / 4000)
    assert sum(gibbs_error_bound(float(m), draws, 0.9999) < truth for m in means) > 100


def test_certificate_covers_a_coin():
    """One hypothesis, kl 0: the bound is on the mean of a coin from n throws."""
    generator, truth, n, delta = torch.Generator().manual_seed(1), 0.2, 40, 0.2
    means = coins(truth, 4000, n, generator).double().mean(1)
    bounds = {float(m): compute_certificate(float(m), 10**9, 0.0, n, delta, 1e-3).bound for m in means.unique()}
    violated = sum(bounds[float(m)] < truth for m in means) / 4000
    assert violated <= delta + 1e-3 + 3 * math.sqrt(delta * (1 - delta) / 4000)
    tight = [b for m, b in bounds.items() if abs(m - truth) < 0.03]
    assert max(tight) < 0.5  # and it says something


def test_certificate_covers_posteriors_chosen_on_the_sample():
    """Many useless hypotheses, a posterior on those that happened to look best: the kl has to pay for it."""
    generator = torch.Generator().manual_seed(2)
    num, n, draws, delta, delta_mc, repeats = 20_000, 50, 1000, 0.1, 0.05, 300
    violated = free_lunch = 0
    throws, half = torch.full((num,), n, dtype=torch.float64), torch.full((num,), 0.5, dtype=torch.float64)
    for _ in range(repeats):
        errors = torch.binomial(throws, half, generator=generator) / n
        posterior = torch.softmax(-3 * n * errors, 0)
        divergence = float((posterior * (posterior * num).log().clamp(min=-1e3)).sum())
        drawn = errors[torch.multinomial(posterior, draws, replacement=True, generator=generator)]
        seen = float(drawn.mean())
        violated += compute_certificate(seen, draws, divergence, n, delta, delta_mc).bound < 0.5
        free_lunch += compute_certificate(seen, draws, 0.0, n, delta, delta_mc).bound < 0.5
    expected = delta + delta_mc
    assert violated / repeats <= expected + 3 * math.sqrt(expected * (1 - expected) / repeats)
    assert free_lunch / repeats > 0.5


def test_certificate_of_a_gaussian_posterior_over_classifiers():
    """A linear classifier under label noise: the true error is an arc, and the Gibbs error known by quadrature."""
    generator = torch.Generator().manual_seed(3)
    n, draws, noise, repeats, violated, bounds = 400, 200, 0.05, 40, 0, []
    scales = prior_scale_grid(0.1, 10.0, 9)
    for _ in range(repeats):
        x = torch.randn(n, 2, generator=generator, dtype=torch.float64)
        labels = (x[:, 0] > 0) ^ (torch.rand(n, generator=generator) < noise)
        signed = (2 * labels.double() - 1)[:, None] * x
        mean = 2 * signed.mean(0) / signed.mean(0).norm()
        std = torch.full_like(mean, 0.3)

        def drawn(num, mean=mean, std=std):
            return mean + std * torch.randn(num, 2, generator=generator, dtype=torch.float64)

        wrong = (signed @ drawn(draws).T) < 0
        angle = torch.atan2(*reversed(drawn(200_000).T.unbind())).abs() / math.pi
        truth = float((noise + (1 - 2 * noise) * angle).mean())
        prior = select_prior_scale(mean, std, 0.0, scales)
        found = compute_certificate(float(wrong.double().mean()), draws, prior.complexity, n, 0.05, 0.01)
        violated += found.bound < truth
        bounds.append(found.bound)
    assert violated <= 6  # 2.4 expected at most
    assert max(bounds) < 0.4  # far from vacuous


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sharpness_bound(-1.0, 0.1, 10, 100, 0.1), "norm_squared .* got -1.0"),
        (lambda: sharpness_bound(1.0, 0.0, 10, 100, 0.1), "rho must be positive and finite, got 0.0"),
        (lambda: sharpness_bound(1.0, 0.1, 0, 100, 0.1), "num_params must be at least 1, got 0"),
        (lambda: sharpness_bound(1.0, 0.1, 1, 1, 0.1), "num_data must be at least 2, got 1"),
        (lambda: sharpness_bound(1.0, 0.1, 1, 9, 1.0), "delta is a probability of failure.* got 1.0"),
        (lambda: norm_tail_probability(0, 5), "at least 1, got 0 and 5"),
        (lambda: gibbs_error_bound(0.1, 0, 0.1), "num_draws must be at least 1, got 0; draw networks"),
        (lambda: gibbs_error_bound(0.1, 1, 0.0), "delta_mc is a probability of failure.* got 0.0"),
        (lambda: gibbs_error_bound(5.0, 1, 0.1), "empirical_error must lie between 0 and 1, got 5.0"),
        (lambda: compute_certificate(0.1, 1, -1.0, 10, 0.1, 0.1), "kl .* at least 0, got -1.0"),
        (lambda: compute_certificate(0.1, 1, math.nan, 10, 0.1, 0.1), "kl .* at least 0, got nan"),
        (lambda: compute_certificate(0.1, 1, 1.0, 0, 0.1, 0.1), "num_data must be at least 1, got 0"),
        (lambda: compute_certificate(0.1, 1, 1.0, 10, 0.0, 0.1), "delta is a probability of failure.* got 0.0"),
        (
            lambda: compute_certificate(0.1, 1, 1.0, 10, 0.6, 0.4),
            "delta [+] delta_mc must be below 1, got 0.6 [+] 0.4",
        ),
    ],
)
def test_invalid_arguments_raise_with_the_value(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@settings(max_examples=50)
@given(probability, st.floats(0, 1e4), st.integers(1, 10**6), st.integers(1, 10**4))
def test_certificate_is_a_probability_above_what_was_seen(error, divergence, n, draws):
    found = compute_certificate(error, draws, divergence, n, 0.05, 0.01)
    assert error <= found.gibbs_error <= found.bound <= 1


# ---- bounds from the draws themselves


def test_mean_bound_of_equal_values_is_the_root():
    m, delta, x = 200, 0.05, 0.1

    def capital(mean):
        return sum((1 + bet * (mean - x)) ** m for bet in BET_FRACTIONS) / len(BET_FRACTIONS) - 1 / delta

    expected = brentq(capital, x, 1, xtol=1e-14)
    assert betting_mean_bound(torch.full((m,), x), delta) == pytest.approx(expected, rel=1e-6)  # x in float32
    assert betting_mean_bound(torch.full((m,), x, dtype=torch.float64), delta) == pytest.approx(expected, rel=1e-12)


@given(st.lists(probability, min_size=1, max_size=30), st.floats(0.001, 0.9))
@settings(max_examples=50)
def test_mean_bound_lies_above_the_mean_and_grows_with_the_values(values, delta):
    values = torch.tensor(values, dtype=torch.float64)
    bound = betting_mean_bound(values, delta)
    assert float(values.mean()) - 1e-12 <= bound <= 1
    assert betting_mean_bound(values.sqrt(), delta) >= bound - 1e-12
    assert betting_mean_bound(values, delta / 2) >= bound
    assert betting_mean_bound(values.repeat(20), delta) <= bound


@pytest.mark.parametrize("make", ["coin", "beta", "narrow"])
def test_mean_bound_fails_no_more_often_than_it_may(make):
    generator = torch.Generator().manual_seed(3)
    u = torch.rand(120, 60, generator=generator, dtype=torch.float64)
    values, mean = {
        "coin": ((u < 0.03).double(), 0.03),
        "beta": (u**4, 1 / 5),
        "narrow": (0.02 + 0.001 * u, 0.0205),
    }[make]
    failed = sum(betting_mean_bound(row, 0.2) < mean for row in values)
    assert failed <= 120 * 0.2


def test_mean_bound_is_sharper_where_draws_hardly_differ():
    errors = 0.02 + 0.003 * torch.randn(1000, generator=torch.Generator().manual_seed(0)).clamp(-3, 3)
    ours, theirs = betting_mean_bound(errors, 0.01), gibbs_error_bound(float(errors.mean()), 1000, 0.01)
    assert ours - 0.02 == pytest.approx(math.log(len(BET_FRACTIONS) / 0.01) / 1000, rel=0.1)
    assert ours - 0.02 < 0.4 * (theirs - 0.02)


@pytest.mark.parametrize("values", [[], [0.1, 1.1], [-0.1], [float("nan")]])
def test_mean_bound_refuses_what_is_no_loss(values):
    with pytest.raises(ValueError, match="values must be at least one number between 0 and 1"):
        betting_mean_bound(torch.tensor(values), 0.1)


def test_held_out_bound_holds_for_a_coin_and_is_the_root():
    assert holdout_bound(0.0, 1, 0.25) == pytest.approx(0.75, abs=1e-15)
    bound = holdout_bound(0.1, 50, 0.05)
    assert binary_kl(0.1, bound) == pytest.approx(math.log(20) / 50)
    # The exact probability of k or fewer errors, at the largest error rate that the bound allows.
    assert all(binom.cdf(k, 50, holdout_bound(k / 50, 50, 0.05)) <= 0.05 for k in range(50))
    with pytest.raises(ValueError, match="num_data must be at least 1"):
        holdout_bound(0.1, 0, 0.05)
    with pytest.raises(ValueError, match="delta is a probability"):
        holdout_bound(0.1, 10, 0.0)


def test_certificate_of_draws_is_made_of_its_two_steps():
    errors = torch.linspace(0.1, 0.2, 11, dtype=torch.float64)
    found = compute_certificate_from_draws(errors, 3.0, 100, 0.05, 0.01)
    assert (found.num_draws, found.kl, found.num_data, found.delta, found.delta_mc) == (11, 3.0, 100, 0.05, 0.01)
    assert found.empirical_error == pytest.approx(0.15)
    assert found.gibbs_error == betting_mean_bound(errors, 0.01)
    assert found.complexity == pytest.approx((3 + math.log(2 * 10 / 0.05)) / 100)
    assert found.bound == inverse_kl(found.gibbs_error, found.complexity)
    assert found.confidence == pytest.approx(0.94)


def test_certificate_of_draws_is_monotone():
    errors = torch.linspace(0.1, 0.2, 101, dtype=torch.float64)

    def bound(errors=errors, kl=3.0, num_data=100, delta=0.05, delta_mc=0.01):
        return compute_certificate_from_draws(errors, kl, num_data, delta, delta_mc).bound

    assert bound(errors=errors + 0.01) > bound()
    assert bound(kl=4.0) > bound()
    assert bound(num_data=110) < bound()
    assert bound(delta=0.04) > bound()
    assert bound(delta_mc=0.005) > bound()
    with pytest.raises(ValueError, match="kl is a divergence"):
        bound(kl=-1.0)
    with pytest.raises(ValueError, match="must be below 1"):
        bound(delta=0.9, delta_mc=0.2)
