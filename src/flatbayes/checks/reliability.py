"""Over- and underconfidence beyond chance, and the coverage of intervals."""

from dataclasses import replace

from torch import Tensor

from flatbayes.checks.calibration_tests import (
    TemperatureTest,
    compute_z_scores,
    run_coverage_test,
    run_grouped_temperature_test,
    run_scale_test,
    run_temperature_test,
)
from flatbayes.checks.evidence import Evidence
from flatbayes.checks.report import Finding, format_percent
from flatbayes.checks.spread import suggest_narrower
from flatbayes.likelihoods import (
    BernoulliPredictive,
    CategoricalPredictive,
    DenseCategoricalPredictive,
    DistributionPredictive,
    NumberPredictive,
    Predictive,
)

MAX_SCALE = 1.1
"""Largest temperature, or factor on standard deviations, that does not matter; the smallest is its inverse."""
COVERAGE_LEVELS = (0.95, 0.5)
MAX_COVERAGE_ERRORS = (0.03, 0.1)
"""Largest errors of the coverage at these levels that do not matter."""
MIN_EXAMPLES = 20
"""Smallest number of examples of a test."""
MAX_TESTED_VALUES = 2**22
"""Largest number of probabilities of positions in a test; of more, positions are evenly spaced."""
TOO_FEW = f"a test needs at least {MIN_EXAMPLES} labelled examples"
CALIBRATE = "calibrate(fitted, validation) corrects it for all predictions"
OTHER_FAMILY = "another distribution, such as NegativeBinomial in place of Poisson, or StudentT"


def check_confidence(evidence: Evidence) -> Finding | str:
    """Whether predictions are over- or underconfident: by a temperature, or by a factor on standard deviations."""
    predictive = evidence.predictive
    if len(evidence.targets) < MIN_EXAMPLES:
        return TOO_FEW
    if isinstance(predictive, BernoulliPredictive | CategoricalPredictive | DenseCategoricalPredictive):
        test = _run_test_of_classes(predictive, evidence.targets)
        scale, p_value = test.temperature, test.p_value
        meaning = f"a temperature of {scale:.3g} lowers the NLL by {test.nll_gain:.3g} nats"
    elif isinstance(predictive, NumberPredictive):
        scale, p_value = _test_worst_target(_compute_columns(predictive, evidence.targets))
        meaning = f"the residuals are {scale:.3g} predicted standard deviations (root mean square)"
    else:
        return "there is no test for this kind of prediction"
    word = "overconfident" if scale > 1 else "underconfident"
    wider = "a wider posterior, more weight decay, fewer epochs, or an Ensemble"
    return Finding(
        "confidence",
        1 / MAX_SCALE <= scale <= MAX_SCALE,
        f"Predictions are {word}",
        meaning,
        scale,
        f"{1 / MAX_SCALE:.2f} to {MAX_SCALE:g}",
        f"{_suggest_map(predictive)}; or {wider if scale > 1 else suggest_narrower(evidence)}",
        p_value,
    )


def _run_test_of_classes(
    predictive: BernoulliPredictive | CategoricalPredictive | DenseCategoricalPredictive, targets: Tensor
) -> TemperatureTest:
    if isinstance(predictive, CategoricalPredictive):
        return run_temperature_test(predictive.log_probs, targets)
    if isinstance(predictive, BernoulliPredictive):  # the NLL of an example is a sum
        test = run_grouped_temperature_test(predictive.log_probs, targets)
        is_known = (targets == 0) | (targets == 1)
        return replace(test, nll_gain=test.nll_gain * int(is_known.sum()) / int(is_known.any(1).sum()))
    every = -(-predictive.log_probs.numel() // MAX_TESTED_VALUES)  # neighbouring positions are correlated
    return run_grouped_temperature_test(
        predictive.log_probs.flatten(1, -2)[:, ::every], targets.flatten(1)[:, ::every]
    )


def check_coverage(evidence: Evidence) -> Finding | str:
    """Whether central intervals contain as many targets as they should."""
    predictive = evidence.predictive
    if isinstance(predictive, BernoulliPredictive):
        return "labels have no intervals"
    if not isinstance(predictive, NumberPredictive):
        return "classes have no intervals; conformalize(fitted, validation) gives sets with a guarantee"
    if len(evidence.targets) < MIN_EXAMPLES:
        return TOO_FEW
    cdf = predictive.probability_integral_transform(evidence.targets.to(predictive.member_means)).cpu().double()
    columns = cdf.reshape(len(cdf), -1).T
    tests = [
        (*measure_coverage(column, level), level, largest_error)
        for column in columns
        for level, largest_error in zip(COVERAGE_LEVELS, MAX_COVERAGE_ERRORS, strict=True)
    ]
    p_value, coverage, level, largest_error = min(tests)
    return Finding(
        "coverage",
        all(abs(covered - nominal) <= limit for _, covered, nominal, limit in tests),
        f"Intervals are too {'narrow' if coverage < level else 'wide'}",
        f"{format_percent(level)} intervals cover {format_percent(coverage)} of {len(cdf)} targets",
        coverage,
        f"{format_percent(level - largest_error)} to {format_percent(level + largest_error)}",
        f"{_suggest_map(predictive)}; conformalize(fitted, validation) gives intervals with a guarantee",
        min(1.0, p_value * len(tests)),
    )


def _suggest_map(predictive: Predictive) -> str:
    """A calibration; another family for distributions without a calibration map."""
    return OTHER_FAMILY if isinstance(predictive, DistributionPredictive) else CALIBRATE


def measure_coverage(cdf: Tensor, level: float) -> tuple[float, float]:
    """Two-sided p-value and fraction of targets in central intervals.

    >>> import torch
    >>> measure_coverage(torch.tensor([0.1, 0.3, 0.6, 0.9]), 0.5)[1]
    0.5
    """
    num_covered = int(((cdf - 0.5).abs() <= level / 2).sum())
    return run_coverage_test(num_covered, len(cdf), level), num_covered / len(cdf)


def _compute_columns(predictive: NumberPredictive, targets: Tensor) -> list[Tensor]:
    """Standardised residuals of each target."""
    scores = compute_z_scores(predictive.probability_integral_transform(targets.to(predictive.member_means)).cpu())
    return list(scores.reshape(len(scores), -1).T)


def _test_worst_target(columns: list[Tensor]) -> tuple[float, float]:
    """Scale and p-value of the target with the smallest p-value, which is multiplied by the number of targets."""
    tests = [run_scale_test(column) for column in columns]
    scale, p_value = min(tests, key=lambda test: test[1])
    return scale, min(1.0, p_value * len(tests))
