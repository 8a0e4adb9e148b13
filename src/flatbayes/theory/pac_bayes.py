"""PAC-Bayes: what a sharpness-aware posterior promises about data it has not seen.

First Theorem B, the bound that explains why the loss may be replaced by the worst loss in a ball; it is vacuous for
real networks. Then a certificate that is not: the PAC-Bayes-kl bound (Langford & Seeger 2001; Maurer 2004) for the
networks drawn from a Gaussian posterior, with the Monte-Carlo step of Pérez-Ortiz et al. (JMLR 2021) or a sharper
one by betting (Waudby-Smith & Ramdas, JRSS B 2024).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

BET_FRACTIONS = (1.0, 0.3, 0.1, 0.03, 0.01)
"""Stakes that `betting_mean_bound` spreads its capital over: the smaller the spread of the values, the larger
wins.
"""


def sharpness_bound(norm_squared: float, rho: float, num_params: int, num_data: int, delta: float) -> float:
    """The constant f of Theorem B, E_Q[L_D] <= E_Q[L^ρ_S] + f for all Q, with probability at least 1 - δ.

    f = 1/√n + √([(P/4) log(1 + (||θ||²/ρ²) (1 + √(log n / P))²) + 1/4 + log(n/δ) + 2 log(6n + 3P)] / (n - 1)),
    for losses in [0, 1] and the largest ||θ|| of the parameter space. It supposes, as Foret et al. (ICLR 2021) do,
    that Gaussian noise on the weights does not reduce the population loss. Above 1 it says nothing.

    Args:
        norm_squared: The largest ||θ||².
        rho: Radius ρ of the ball, positive.
        num_params: P.
        num_data: n, at least 2.
        delta: Probability δ over the sample that the bound fails.
    """
    if not 0 <= norm_squared < math.inf:
        raise ValueError(f"norm_squared must be finite and at least 0, got {norm_squared}.")
    if not 0 < rho < math.inf:
        raise ValueError(f"rho must be positive and finite, got {rho}; without a ball there is no bound.")
    if num_params < 1:
        raise ValueError(f"num_params must be at least 1, got {num_params}.")
    if num_data < 2:
        raise ValueError(f"num_data must be at least 2, got {num_data}: the bound divides by num_data - 1.")
    _check_delta("delta", delta)
    n, p = num_data, num_params
    ratio = norm_squared / rho**2 * (1 + math.sqrt(math.log(n) / p)) ** 2
    inner = p / 4 * math.log1p(ratio) + 1 / 4 + math.log(n / delta) + 2 * math.log(6 * n + 3 * p)
    return 1 / math.sqrt(n) + math.sqrt(inner / (n - 1))


def norm_tail_probability(num_params: int, num_data: int) -> float:
    """Pr(||e|| > σ (√P + √log n)) for e ~ N(0, σ² I) in P dimensions, exactly; Theorem B uses that it is <= 1/√n.

    Args:
        num_params: P.
        num_data: n.
    """
    if num_params < 1 or num_data < 1:
        raise ValueError(f"num_params and num_data must be at least 1, got {num_params} and {num_data}.")
    radius = math.sqrt(num_params) + math.sqrt(math.log(num_data))
    half = torch.tensor([num_params / 2, radius**2 / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


def binary_kl(q: float, p: float) -> float:
    """kl(q || p) = q log(q/p) + (1 - q) log((1 - q)/(1 - p)), between coins; infinite where p excludes q.

    Args:
        q: Probability of the first coin.
        p: Probability of the second.
    """
    _check_probability("q", q)
    _check_probability("p", p)
    if abs(p - q) < min(q, 1 - q) / 2:
        return _kl_from_shift(q, p, p - q)  # the two terms of the formula nearly cancel
    return _relative_entropy_term(q, p) + _relative_entropy_term(1 - q, 1 - p)


def inverse_kl(q: float, budget: float) -> float:
    """The largest p with kl(q || p) <= budget: an upper bound on the mean of what averaged to q.

    Found by bisection of p - q, to rounding.

    Args:
        q: Probability.
        budget: Allowed divergence, in nats.
    """
    _check_probability("q", q)
    if not budget >= 0:
        raise ValueError(f"budget is a divergence: it must be at least 0, got {budget}.")
    low, high = 0.0, min(1 - q, math.sqrt(budget / 2))  # Pinsker: 2 (p - q)² <= kl(q || p)
    while low < (middle := low + (high - low) / 2) < high:
        if _kl_from_shift(q, q + middle, middle) <= budget:
            low = middle
        else:
            high = middle
    return min(1.0, q + high)


def gaussian_kl(
    mean: Float[Tensor, "..."],
    std: Float[Tensor, "..."],
    prior_mean: Float[Tensor, "..."] | float,
    prior_std: Float[Tensor, "..."] | float,
) -> float:
    """KL(N(μ, σ²) || N(μ₀, σ₀²)) = Σ [(σ²/σ₀² + (μ - μ₀)²/σ₀² - 1) / 2 - log(σ/σ₀)], diagonal covariances, in nats.

    Args:
        mean: μ, one entry a weight.
        std: σ, of the same shape, positive.
        prior_mean: μ₀, of the same shape or one for all.
        prior_std: σ₀, likewise, positive.
    """
    mean, std, prior_mean, prior_std = _check_gaussians(mean, std, prior_mean, prior_std)
    ratio = (std / prior_std) ** 2
    terms = ratio - 1 - ratio.log() + ((mean - prior_mean) / prior_std) ** 2
    return float((terms / 2).sum().clamp(min=0))


@dataclass(frozen=True)
class PriorScale:
    """The best scale on a grid of isotropic priors, and what choosing it after seeing the data costs.

    Attributes:
        scale: Standard deviation σ₀ of the chosen prior.
        kl: KL(Q || N(μ₀, σ₀² I)), in nats.
        cost: log K for a grid of K scales.
    """

    scale: float
    kl: float
    cost: float

    @property
    def complexity(self) -> float:
        """`kl + cost`: what a bound is to be given as the divergence from the prior."""
        return self.kl + self.cost


def prior_scale_grid(smallest: float, largest: float, num_scales: int) -> list[float]:
    """A geometric grid of K standard deviations, smallest (largest/smallest)^{k/(K-1)} for k = 0 .. K-1.

    It must be fixed before the data are seen.

    Args:
        smallest: First scale, positive.
        largest: Last scale.
        num_scales: K; one scale is a grid only if it is both smallest and largest.
    """
    if not 0 < smallest <= largest < math.inf:
        raise ValueError(f"scales must satisfy 0 < smallest <= largest < inf, got {smallest} and {largest}.")
    if num_scales < 1 or (num_scales == 1) != (smallest == largest):
        raise ValueError(
            f"num_scales must be 1 for a single scale and at least 2 from one scale to another, "
            f"got {num_scales} from {smallest} to {largest}."
        )
    if num_scales == 1:
        return [smallest]
    step = math.log(largest / smallest) / (num_scales - 1)
    return [smallest * math.exp(k * step) for k in range(num_scales - 1)] + [largest]


def select_prior_scale(
    mean: Float[Tensor, "..."],
    std: Float[Tensor, "..."],
    prior_mean: Float[Tensor, "..."] | float,
    scales: Sequence[float],
) -> PriorScale:
    """The prior N(μ₀, σ₀² I) nearest to N(μ, diag σ²), with σ₀ from a grid, and the price of the choice.

    The prior is the uniform mixture over the K scales of the grid, from which KL(Q || mixture) <=
    KL(Q || component) + log K for every component: the same as a union bound that gives each scale δ/K. So log K
    nats pay for choosing the scale after the data were seen.

    Args:
        mean: μ, one entry a weight.
        std: σ, of the same shape, positive.
        prior_mean: μ₀, of the same shape or one for all; it must not depend on the data used for a bound.
        scales: The grid, for example from `prior_scale_grid`; likewise.
    """
    if not scales or not all(0 < scale < math.inf for scale in scales):
        raise ValueError(f"scales must be at least one positive, finite standard deviation, got {list(scales)}.")
    mean, std, prior_mean, _ = _check_gaussians(mean, std, prior_mean, 1.0)
    squares = float((std**2 + (mean - prior_mean) ** 2).sum())
    # KL up to a constant: P log σ₀ + Σ (σ² + (μ - μ₀)²) / (2 σ₀²)
    scale = min(scales, key=lambda s: mean.numel() * math.log(s) + squares / (2 * s**2))
    return PriorScale(scale, gaussian_kl(mean, std, prior_mean, scale), math.log(len(scales)))


def gibbs_error_bound(empirical_error: float, num_draws: int, delta_mc: float) -> float:
    """Upper bound on the error on the sample of the Gibbs predictor, from networks drawn: kl⁻¹(ê, log(2/δ')/m).

    It holds with probability at least 1 - δ' over m independent draws from the posterior, given the sample, each
    evaluated on the whole sample with an error in [0, 1]. (Pérez-Ortiz et al. 2021, after Langford & Caruana 2001.)

    Args:
        empirical_error: ê, mean error over the draws and the sample.
        num_draws: m.
        delta_mc: Probability δ' over the draws that the bound fails.
    """
    _check_probability("empirical_error", empirical_error)
    if num_draws < 1:
        raise ValueError(f"num_draws must be at least 1, got {num_draws}; draw networks from the posterior.")
    _check_delta("delta_mc", delta_mc)
    return inverse_kl(empirical_error, math.log(2 / delta_mc) / num_draws)


def betting_mean_bound(values: Float[Tensor, " draws"], delta: float) -> float:
    """Upper bound on the mean of independent values in [0, 1], which is sharp where they hardly differ.

    Whoever bets a share λ of a capital of 1 that each next value falls short of the mean μ ends with
    Π_i (1 + λ (μ - x_i)) >= 0, of expectation 1; so, by Markov, the average over K shares exceeds 1/δ with
    probability at most δ. It increases with μ, and the bound is the μ at which it reaches 1/δ, by bisection. For
    values of mean x̄ and small variance v it is about x̄ + log(K/δ)/m + v/2, where kl⁻¹(x̄, log(1/δ)/m) is off by
    a multiple of √(x̄ log(1/δ)/m).

    Source: Waudby-Smith & Ramdas (JRSS B 2024), section 4, with constant bets.

    Args:
        values: x_1 .. x_m.
        delta: Probability that the bound fails.
    """
    values = values.double()
    if values.numel() == 0 or not bool(((values >= 0) & (values <= 1)).all()):
        raise ValueError(
            f"values must be at least one number between 0 and 1, got {values.numel()} of them"
            + (f" from {float(values.min())} to {float(values.max())}." if values.numel() else ".")
        )
    _check_delta("delta", delta)
    bets = torch.tensor(BET_FRACTIONS, dtype=torch.float64, device=values.device)[:, None]
    allowed = math.log(len(BET_FRACTIONS) / delta)

    def log_capital(mean: float) -> float:
        return float(torch.log1p(bets * (mean - values)).sum(1).logsumexp(0))

    low, high = 0.0, 1.0
    while low < (middle := (low + high) / 2) < high:
        if log_capital(middle) <= allowed:
            low = middle
        else:
            high = middle
    return high


def holdout_bound(empirical_error: float, num_data: int, delta: float) -> float:
    """Upper bound on the error on new data of one network, from examples it has not seen: kl⁻¹(ê, log(1/δ)/n).

    Chernoff's bound (Langford, JMLR 2005): no prior and no draws; it is what a certificate is to be measured
    against.

    Args:
        empirical_error: ê, mean over the sample of an error in [0, 1].
        num_data: n.
        delta: Probability over the sample that the bound fails.
    """
    _check_probability("empirical_error", empirical_error)
    if num_data < 1:
        raise ValueError(f"num_data must be at least 1, got {num_data}.")
    _check_delta("delta", delta)
    return inverse_kl(empirical_error, math.log(1 / delta) / num_data)


@dataclass(frozen=True)
class Certificate:
    """A bound on the error rate of the Gibbs predictor on new data, and all it was made of.

    Attributes:
        empirical_error: Mean error of the draws on the sample.
        num_draws: Number m of networks drawn.
        kl: KL(Q || P) of posterior and prior, in nats, with the cost of every choice made in the prior.
        num_data: Number n of examples in the sample.
        delta: Probability over the sample that the bound fails.
        delta_mc: Probability over the draws that it fails.
        gibbs_error: Upper bound on the Gibbs predictor's error on the sample.
        complexity: (KL + log(2√n/δ)) / n, the divergence allowed between errors on the sample and on new data.
        bound: Upper bound on the Gibbs predictor's error rate on new data.
    """

    empirical_error: float
    num_draws: int
    kl: float
    num_data: int
    delta: float
    delta_mc: float
    gibbs_error: float
    complexity: float
    bound: float

    @property
    def confidence(self) -> float:
        """1 - δ - δ', the probability with which the bound holds."""
        return 1 - self.delta - self.delta_mc


def compute_certificate(
    empirical_error: float, num_draws: int, kl: float, num_data: int, delta: float, delta_mc: float
) -> Certificate:
    """PAC-Bayes-kl bound: kl⁻¹(kl⁻¹(ê, log(2/δ')/m), (KL(Q || P) + log(2√n/δ)) / n).

    What is promised: with probability at least 1 - δ - δ', over the sample and the m draws together, the *Gibbs
    predictor*, which answers every question with a network freshly drawn from the posterior Q, has an expected
    error on new data of at most `bound`. It does not speak of any single network, nor of the average of many (a
    majority vote over the posterior errs at most twice as often, an average of probabilities may do anything).

    What it rests on: the n examples are independent and distributed like the new data, with errors in [0, 1]; the
    prior P was fixed without them, also in its mean, scale and other hyperparameters (or their choice was paid for,
    see `select_prior_scale`); `empirical_error` is over all n of them, as they are; the draws are independent, and
    none was discarded. The posterior may depend on the sample in any way, but only through weights that the KL
    counts: running statistics re-estimated on the sample for every draw are not covered.

    Sources: Langford & Seeger 2001 and Maurer 2004, with log(2√n/δ), for the second step; Pérez-Ortiz et al. 2021
    for the two steps.

    Args:
        empirical_error: ê, mean error over the draws and the sample.
        num_draws: m.
        kl: KL(Q || P), in nats.
        num_data: n.
        delta: Probability δ over the sample that the bound fails.
        delta_mc: Probability δ' over the draws that it fails.
    """
    gibbs_error = gibbs_error_bound(empirical_error, num_draws, delta_mc)
    return _make_certificate(empirical_error, num_draws, gibbs_error, kl, num_data, delta, delta_mc)


def compute_certificate_from_draws(
    errors: Float[Tensor, " draws"], kl: float, num_data: int, delta: float, delta_mc: float
) -> Certificate:
    """The same promise as `certificate`, from the error of every draw.

    It is kl⁻¹(ē, (KL(Q || P) + log(2√n/δ)) / n), where ē is the `betting_mean_bound` of the draws. The errors of
    networks on
    a whole sample differ by little, so fewer draws do. All that `certificate` rests on holds here too; errors may be
    any losses in [0, 1].

    Args:
        errors: Mean error of each of the m draws on the sample.
        kl: KL(Q || P), in nats.
        num_data: n.
        delta: Probability δ over the sample that the bound fails.
        delta_mc: Probability δ' over the draws that it fails.
    """
    gibbs_error = betting_mean_bound(errors, delta_mc)
    empirical_error = float(errors.double().mean())
    return _make_certificate(empirical_error, errors.numel(), gibbs_error, kl, num_data, delta, delta_mc)


def _make_certificate(
    empirical_error: float,
    num_draws: int,
    gibbs_error: float,
    kl: float,
    num_data: int,
    delta: float,
    delta_mc: float,
) -> Certificate:
    if not kl >= 0:
        raise ValueError(f"kl is a divergence: it must be at least 0, got {kl}.")
    if num_data < 1:
        raise ValueError(f"num_data must be at least 1, got {num_data}.")
    _check_delta("delta", delta)
    if delta + delta_mc >= 1:
        raise ValueError(f"delta + delta_mc must be below 1, got {delta} + {delta_mc}: nothing would be promised.")
    complexity = (kl + math.log(2 * math.sqrt(num_data) / delta)) / num_data
    bound = inverse_kl(gibbs_error, complexity)
    return Certificate(empirical_error, num_draws, kl, num_data, delta, delta_mc, gibbs_error, complexity, bound)


def _relative_entropy_term(q: float, p: float) -> float:
    if q == 0:
        return 0.0
    return q * math.log(q / p) if p > 0 else math.inf


def _kl_from_shift(q: float, p: float, shift: float) -> float:
    """The divergence kl(q || p) for p = q + shift, with rounding relative to the shift, not to one."""
    total = 0.0
    for weight, other, change in ((q, p, shift), (1 - q, 1 - q - shift, -shift)):
        if weight > 0 and other <= 0:
            return math.inf
        if abs(change) < weight / 2:
            total -= weight * math.log1p(change / weight)
        elif weight > 0:
            total += weight * math.log(weight / other)
    return max(0.0, total)


def _check_gaussians(
    mean: Tensor, std: Tensor, prior_mean: Tensor | float, prior_std: Tensor | float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mean, std = mean.double(), std.double()
    prior_mean = torch.as_tensor(prior_mean, dtype=torch.float64, device=mean.device)
    prior_std = torch.as_tensor(prior_std, dtype=torch.float64, device=mean.device)
    for name, tensor in (("std", std), ("prior_mean", prior_mean), ("prior_std", prior_std)):
        if tensor.shape != mean.shape and (tensor.dim() > 0 or name == "std"):
            raise ValueError(
                f"{name} must have the shape of mean, {tuple(mean.shape)}, got {tuple(tensor.shape)}; "
                "flatten all weights in the same order."
            )
    for name, tensor in (("std", std), ("prior_std", prior_std)):
        if not bool((tensor > 0).all()):
            raise ValueError(f"{name} must be positive, got a smallest value of {float(tensor.min())}.")
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{name} must be finite, got infinity in it.")
    for name, tensor in (("mean", mean), ("prior_mean", prior_mean)):
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{name} must be finite, got NaN or infinity in it.")
    return mean, std, prior_mean, prior_std


def _check_probability(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie between 0 and 1, got {value}.")


def _check_delta(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} is a probability of failure: it must lie strictly between 0 and 1, got {value}.")
