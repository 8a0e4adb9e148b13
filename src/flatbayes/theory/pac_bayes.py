"""PAC-Bayes bounds: Theorem B on the worst loss, and certificates of the error rate of a Gaussian posterior.

Theorem B bounds the population loss by the worst loss in a ball and is vacuous for real networks. The certificate is
the PAC-Bayes-kl bound (Langford & Seeger 2001; Maurer 2004) for networks drawn from a Gaussian posterior, with the
Monte-Carlo step of Pérez-Ortiz et al. (JMLR 2021) or a sharper one by betting (Waudby-Smith & Ramdas, JRSS B 2024).
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from flatbayes.theory.divergences import inverse_kl
from flatbayes.theory.numerics import check_delta, check_probability, find_increasing_root

BET_FRACTIONS = (1.0, 0.3, 0.1, 0.03, 0.01)
"""Shares of the capital that `betting_mean_bound` averages over; large ones gain most at small variance."""


def sharpness_bound(norm_squared: float, rho: float, num_params: int, num_data: int, delta: float) -> float:
    """The constant f of Theorem B, E_Q[L_D] <= E_Q[L^ρ_S] + f for all Q, with probability at least 1 - δ.

    f = 1/√n + √([(P/4) log(1 + (||θ||²/ρ²) (1 + √(log n / P))²) + 1/4 + log(n/δ) + 2 log(6n + 3P)] / (n - 1)),
    for losses in [0, 1] and the largest ||θ|| of the parameter space. Like Foret et al. (ICLR 2021) it assumes
    that Gaussian noise on the weights does not reduce the population loss. Above 1 it is vacuous.

    Nothing in flatbayes computes it in training; docs/theory.md and the tests use it.

    Args:
        norm_squared: The largest ||θ||².
        rho: Radius ρ of the ball, positive.
        num_params: P.
        num_data: n, at least 2.
        delta: Probability δ over the sample that the bound fails.

    Examples:
        >>> round(
        ...     sharpness_bound(
        ...         norm_squared=10.0, rho=0.5, num_params=100, num_data=60_000, delta=0.05
        ...     ),
        ...     3,
        ... )
        0.054
    """
    if not 0 <= norm_squared < math.inf:
        raise ValueError(f"norm_squared must be finite and at least 0, got {norm_squared}.")
    if not 0 < rho < math.inf:
        raise ValueError(f"rho must be positive and finite, got {rho}; without a ball there is no bound.")
    if num_params < 1:
        raise ValueError(f"num_params must be at least 1, got {num_params}.")
    if num_data < 2:
        raise ValueError(f"num_data must be at least 2, got {num_data}: the bound divides by num_data - 1.")
    check_delta("delta", delta)
    n, p = num_data, num_params
    ratio = norm_squared / rho**2 * (1 + math.sqrt(math.log(n) / p)) ** 2
    inner = p / 4 * math.log1p(ratio) + 1 / 4 + math.log(n / delta) + 2 * math.log(6 * n + 3 * p)
    return 1 / math.sqrt(n) + math.sqrt(inner / (n - 1))


def norm_tail_probability(num_params: int, num_data: int) -> float:
    """Pr(||e|| > σ (√P + √log n)) for e ~ N(0, σ² I) in P dimensions, exactly. Theorem B uses that it is <= 1/√n.

    Args:
        num_params: P.
        num_data: n.

    Examples:
        >>> norm_tail_probability(num_params=100, num_data=1000) <= 1000**-0.5
        True
    """
    if num_params < 1 or num_data < 1:
        raise ValueError(f"num_params and num_data must be at least 1, got {num_params} and {num_data}.")
    radius = math.sqrt(num_params) + math.sqrt(math.log(num_data))
    half = torch.tensor([num_params / 2, radius**2 / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


def gibbs_error_bound(empirical_error: float, num_draws: int, delta_mc: float) -> float:
    """Upper bound on the Gibbs predictor's error on the sample, from m networks: kl⁻¹(ê, log(2/δ')/m).

    It holds with probability at least 1 - δ' over m independent draws from the posterior, given the sample, each
    evaluated on the whole sample with an error in [0, 1]. (Pérez-Ortiz et al. 2021, after Langford & Caruana 2001.)

    Args:
        empirical_error: ê, mean error over the draws and the sample.
        num_draws: m.
        delta_mc: Probability δ' over the draws that the bound fails.

    Examples:
        >>> round(gibbs_error_bound(0.02, num_draws=1000, delta_mc=0.01), 4)
        0.0379
    """
    check_probability("empirical_error", empirical_error)
    if num_draws < 1:
        raise ValueError(f"num_draws must be at least 1, got {num_draws}; draw networks from the posterior.")
    check_delta("delta_mc", delta_mc)
    return inverse_kl(empirical_error, math.log(2 / delta_mc) / num_draws)


def betting_mean_bound(values: Float[Tensor, " draws"], delta: float) -> float:
    """Upper bound on the mean of independent values in [0, 1], which is sharp where their variance is small.

    A bettor starts with capital 1 and bets a share λ of it that each next value falls below the mean μ. The final
    capital Π_i (1 + λ (μ - x_i)) >= 0 has expectation 1; by Markov's inequality the average over K shares exceeds
    1/δ with probability at most δ. It increases with μ, and the bound is the μ at which it reaches 1/δ. For
    values of mean x̄ and small variance v it is about x̄ + log(K/δ)/m + v/2, where kl⁻¹(x̄, log(1/δ)/m) is off by
    a multiple of √(x̄ log(1/δ)/m).

    Source: Waudby-Smith & Ramdas (JRSS B 2024), section 4, with constant bets.

    Args:
        values: x_1 .. x_m.
        delta: Probability that the bound fails.

    Examples:
        >>> errors = torch.full((100,), 0.05) + 0.001 * torch.randn(100)
        >>> betting_mean_bound(errors, delta=0.01) < gibbs_error_bound(
        ...     0.05, num_draws=100, delta_mc=0.01
        ... )
        True
    """
    values = values.double()
    if values.numel() == 0 or not bool(((values >= 0) & (values <= 1)).all()):
        raise ValueError(
            f"values must be at least one number between 0 and 1, got {values.numel()} of them"
            + (f" from {float(values.min())} to {float(values.max())}." if values.numel() else ".")
        )
    check_delta("delta", delta)
    bets = torch.tensor(BET_FRACTIONS, dtype=torch.float64, device=values.device)[:, None]
    allowed = math.log(len(BET_FRACTIONS) / delta)

    def log_capital(mean: float) -> float:
        return float(torch.log1p(bets * (mean - values)).sum(1).logsumexp(0))

    return find_increasing_root(log_capital, 0.0, 1.0, target=allowed)


def holdout_bound(empirical_error: float, num_data: int, delta: float) -> float:
    """Upper bound on the error on new data of one network, from held-out examples: kl⁻¹(ê, log(1/δ)/n).

    Chernoff's bound (Langford, JMLR 2005) needs neither prior nor draws; it is the baseline for a certificate.

    Args:
        empirical_error: ê, mean over the sample of an error in [0, 1].
        num_data: n.
        delta: Probability over the sample that the bound fails.

    Examples:
        >>> round(holdout_bound(0.02, num_data=1000, delta=0.05), 4)
        0.0328
    """
    check_probability("empirical_error", empirical_error)
    if num_data < 1:
        raise ValueError(f"num_data must be at least 1, got {num_data}.")
    check_delta("delta", delta)
    return inverse_kl(empirical_error, math.log(1 / delta) / num_data)


@dataclass(frozen=True)
class Certificate:
    """A bound on the error rate of the Gibbs predictor on new data, with all its inputs.

    Attributes:
        empirical_error: Mean error of the draws on the sample.
        num_draws: Number m of networks drawn.
        kl: KL(Q || P) of posterior and prior, in nats, plus the cost of every selection in the prior.
        num_data: Number n of examples in the sample.
        delta: Probability over the sample that the bound fails.
        delta_mc: Probability over the draws that it fails.
        gibbs_error: Upper bound on the Gibbs predictor's error on the sample.
        complexity: (KL + log(2√n/δ)) / n, the divergence allowed between errors on the sample and on new data.
        bound: Upper bound on the Gibbs predictor's error rate on new data.

    Examples:
        >>> certificate = compute_certificate(0.02, 1000, 50.0, 10_000, delta=0.025, delta_mc=0.01)
        >>> round(certificate.bound, 4), certificate.confidence
        (0.0624, 0.965)
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

    Statement: with probability at least 1 - δ - δ', over the sample and the m draws together, the *Gibbs
    predictor*, which predicts every example with a network freshly drawn from the posterior Q, has an expected
    error on new data of at most `bound`. The statement does not cover a single network or the average of many (a
    majority vote over the posterior errs at most twice as often; for averaged probabilities there is no bound).

    Assumptions: the n examples are independent and distributed like the new data, with errors in [0, 1]; the
    prior P, with its mean, scale and other hyperparameters, was fixed without them (or the cost of a selection was
    added, see `select_prior_scale`); `empirical_error` is over all n of them, unaugmented; the draws are
    independent, and none was discarded. The posterior may depend on the sample in any way, but only through weights
    that the KL
    includes: running statistics re-estimated on the sample for every draw are not covered.

    Sources: Langford & Seeger 2001 and Maurer 2004, with log(2√n/δ), for the second step; Pérez-Ortiz et al. 2021
    for the two steps.

    Args:
        empirical_error: ê, mean error over the draws and the sample.
        num_draws: m.
        kl: KL(Q || P), in nats.
        num_data: n.
        delta: Probability δ over the sample that the bound fails.
        delta_mc: Probability δ' over the draws that it fails.

    Examples:
        >>> certificate = compute_certificate(0.02, 1000, 50.0, 10_000, delta=0.025, delta_mc=0.01)
        >>> round(certificate.gibbs_error, 4), round(certificate.bound, 4)
        (0.0379, 0.0624)
    """
    gibbs_error = gibbs_error_bound(empirical_error, num_draws, delta_mc)
    return _make_certificate(empirical_error, num_draws, gibbs_error, kl, num_data, delta, delta_mc)


def compute_certificate_from_draws(
    errors: Float[Tensor, " draws"], kl: float, num_data: int, delta: float, delta_mc: float
) -> Certificate:
    """Certificate kl⁻¹(ē, (KL(Q || P) + log(2√n/δ)) / n), with ē the `betting_mean_bound` of the errors.

    Statement and assumptions are those of `compute_certificate`; errors may be any losses in [0, 1]. Errors of
    networks on a whole sample differ little, so fewer draws are needed.

    Args:
        errors: Mean error of each of the m draws on the sample.
        kl: KL(Q || P), in nats.
        num_data: n.
        delta: Probability δ over the sample that the bound fails.
        delta_mc: Probability δ' over the draws that it fails.

    Examples:
        >>> errors = torch.full((1000,), 0.02)
        >>> certificate = compute_certificate_from_draws(errors, 50.0, 10_000, 0.025, 0.01)
        >>> round(certificate.bound, 3)
        0.047
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
    check_delta("delta", delta)
    if delta + delta_mc >= 1:
        raise ValueError(
            f"delta + delta_mc must be below 1, got {delta} + {delta_mc}: the bound would hold with probability 0."
        )
    complexity = (kl + math.log(2 * math.sqrt(num_data) / delta)) / num_data
    bound = inverse_kl(gibbs_error, complexity)
    return Certificate(empirical_error, num_draws, kl, num_data, delta, delta_mc, gibbs_error, complexity, bound)
