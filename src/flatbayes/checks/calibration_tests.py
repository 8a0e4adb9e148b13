"""Tests of the null hypothesis that targets are drawn from the predictive distributions.

For classes the alternative is the family of tempered predictions p_T(c) ∝ p(c)^(1 / T), an exponential family in
s = 1 - 1 / T with the sufficient statistic S = -sum_i log p_i(y_i), the summed NLL. Its cumulant function is
K(s) = sum_i log sum_c p_i(c)^(1 - s), and its maximum likelihood estimate is temperature scaling. The p-value is that
of the signed root of the likelihood ratio with the saddlepoint correction of Lugannani and Rice (Advances in Applied
Probability 1980) in the form of Barndorff-Nielsen (Biometrika 1986), which is accurate in the tails and for few
examples. Nearly uniform predictions may have their estimate beyond the range of temperatures: the p-value is then
that of the score test, (S - K'(0)) / sqrt(K''(0)). For numbers the alternative is the family of standard deviations
times a factor, whose test is exact.
"""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flatbayes.metrics.temperature import MAX_TEMPERATURE, MIN_TEMPERATURE, apply_temperature, fit_temperature

NEAR_ZERO = 1e-4
"""Signed roots below this have no correction, which is then 0 / 0."""


@dataclass(frozen=True)
class TemperatureTest:
    """Result of the test for classes.

    Attributes:
        temperature: Temperature of the largest likelihood; above 1 the predictions are overconfident.
        nll_gain: Decrease of the mean NLL at this temperature.
        p_value: Two-sided.
    """

    temperature: float
    nll_gain: float
    p_value: float


def run_temperature_test(
    log_probs: Float[Tensor, "examples classes"], labels: Int[Tensor, " examples"]
) -> TemperatureTest:
    """Test whether labels are drawn from the predicted probabilities.

    >>> log_probs = torch.tensor([[0.99, 0.01]]).repeat(100, 1).log()
    >>> run_temperature_test(log_probs, torch.tensor([0] * 80 + [1] * 20)).p_value < 1e-6
    True
    """
    log_probs = log_probs.detach().double().cpu()
    label_log_probs = _select(log_probs, labels)
    if bool(label_log_probs.isneginf().any()):
        return TemperatureTest(math.inf, math.inf, 0.0)
    temperature = fit_temperature(log_probs, labels, prior_examples=0)
    gain = float((_select(apply_temperature(log_probs, temperature), labels) - label_log_probs).sum())
    top = log_probs.amax(1, keepdim=True)
    if bool((label_log_probs == top[:, 0]).all()):  # the probability that all labels are most probable is exact
        p_value = 2 * math.exp(float(log_probs.masked_fill(log_probs < top, -math.inf).logsumexp(1).sum()))
        return TemperatureTest(temperature, gain / len(labels), min(1.0, p_value))
    is_at_end = temperature in (MIN_TEMPERATURE, MAX_TEMPERATURE)
    probs = apply_temperature(log_probs, 1.0 if is_at_end else temperature).exp()
    finite = log_probs.masked_fill(log_probs.isneginf(), 0.0)  # times a probability of 0
    means = (probs * finite).sum(1)
    std = math.sqrt(float(((probs * finite.square()).sum(1) - means.square()).clamp_min(0).sum()))
    if std == 0:  # a label that is not the most probable one has no probability
        return TemperatureTest(temperature, gain / len(labels), 0.0)
    if is_at_end:  # the likelihood has its maximum elsewhere: the score test
        score = float((means - label_log_probs).sum()) / std
    else:
        s = 1 - 1 / temperature
        score = correct_signed_root(math.copysign(math.sqrt(max(0.0, 2 * gain)), s), s * std)
    return TemperatureTest(temperature, gain / len(labels), math.erfc(abs(score) / math.sqrt(2)))


def run_grouped_temperature_test(
    log_probs: Float[Tensor, "examples predictions classes"], targets: Int[Tensor, "examples predictions"]
) -> TemperatureTest:
    """The test for all known labels, or labelled positions, of all examples.

    Those of an example may depend on each other, given the inputs, although each has its probability. The p-value is
    therefore at least that of Student's t-test of S - K'(0), which has the mean zero, summed over an example. The
    classes of a label are that it is 0, and that it is 1; a target that is not known is no class.
    """
    log_probs, targets = log_probs.detach().double().cpu(), targets.cpu()
    is_known = (targets >= 0) & (targets < log_probs.shape[-1])
    labelled_log_probs, labels = log_probs[is_known], targets[is_known].long()
    test = run_temperature_test(labelled_log_probs, labels)
    if test.temperature == math.inf:  # a label is impossible
        return test
    scores = torch.zeros(targets.shape, dtype=torch.float64)
    means = (labelled_log_probs.exp() * labelled_log_probs.masked_fill(labelled_log_probs.isneginf(), 0.0)).sum(1)
    scores[is_known] = means - _select(labelled_log_probs, labels)
    sums = scores.sum(1)[is_known.any(1)]
    p_value = 2 * min(run_paired_test(sums), run_paired_test(-sums))
    return replace(test, p_value=min(1.0, max(test.p_value, p_value)))


def _select(log_probs: Tensor, labels: Tensor) -> Tensor:
    return log_probs.gather(1, labels[:, None].cpu())[:, 0]


def correct_signed_root(root: float, standardized: float) -> float:
    """Barndorff-Nielsen's r* = w + log(u / w) / w, standard normal to third order.

    Here w is the signed root of twice the log likelihood ratio, and u, of the same sign, the estimate times the root
    of its information.

    >>> correct_signed_root(2.0, 2.0)
    2.0
    """
    if abs(root) < NEAR_ZERO or standardized == 0:
        return root
    return root + math.log(standardized / root) / root


def run_scale_test(z_scores: Float[Tensor, " examples"]) -> tuple[float, float]:
    """Root mean square of standardised residuals, and its two-sided p-value: n times its square is chi-square.

    `z_scores` are normal quantiles of the predictive distribution function at the targets.

    >>> scale, p_value = run_scale_test(torch.tensor([2.0, -2.0] * 20))
    >>> scale, p_value < 1e-6
    (2.0, True)
    """
    from scipy.stats import chi2  # slow to import

    total, count = float(z_scores.double().square().sum()), len(z_scores)
    return math.sqrt(total / count), _two_sided(chi2.cdf(total, count), chi2.sf(total, count))


def run_coverage_test(num_covered: int, num_examples: int, level: float) -> float:
    """Two-sided p-value of the number of targets in intervals of a level, which is binomial.

    >>> round(run_coverage_test(72, 100, 0.95), 6), run_coverage_test(95, 100, 0.95) > 0.5
    (0.0, True)
    """
    from scipy.stats import binom

    return _two_sided(binom.cdf(num_covered, num_examples, level), binom.sf(num_covered - 1, num_examples, level))


def run_fractions_test(num_first: int, first_size: int, num_second: int, second_size: int) -> float:
    """One-sided p-value of Fisher's exact test that a fraction of a sample is not above that of another.

    >>> round(run_fractions_test(3, 3, 0, 3), 6)  # 1 of the 20 ways to choose 3 of 6
    0.05
    """
    from scipy.stats import hypergeom

    return float(hypergeom.sf(num_first - 1, first_size + second_size, num_first + num_second, first_size))


def run_paired_test(differences: Float[Tensor, " examples"]) -> float:
    """One-sided p-value of Student's t-test that the mean of the differences is not above zero.

    >>> run_paired_test(torch.tensor([1.0, 1.1, 0.9])) < 0.01
    True
    """
    from scipy.stats import t as student

    count = len(differences)
    if count < 2:
        return 1.0
    mean, std = float(differences.mean()), float(differences.std())
    if std == 0:
        return 0.0 if mean > 0 else 1.0
    return float(student.sf(mean / std * math.sqrt(count), count - 1))


def compute_z_scores(cdf: Float[Tensor, "examples ..."]) -> Float[Tensor, "examples ..."]:
    """Normal quantiles of probability integral transforms, standard normal if the predictions are right.

    >>> [round(score, 3) for score in compute_z_scores(torch.tensor([0.5, 1.0], dtype=torch.float64)).tolist()]
    [0.0, 8.126]
    """
    smallest = torch.finfo(torch.float64).eps
    scores: Tensor = torch.special.ndtri(cdf.double().clamp(smallest, 1 - smallest))
    return scores


def _two_sided(lower: float, upper: float) -> float:
    return float(min(1.0, 2 * min(lower, upper)))
