"""Self-checks of a fitted posterior on labelled examples."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flatbayes.checks.chains import check_mixing
from flatbayes.checks.evidence import Evidence
from flatbayes.checks.gaussians import check_collapse, check_laplace_width
from flatbayes.checks.inputs import check_duplicates, check_inputs_outside, check_norm_statistics
from flatbayes.checks.reliability import check_confidence, check_coverage
from flatbayes.checks.report import SIGNIFICANCE, CheckReport, Finding
from flatbayes.checks.spread import check_one_network, check_wide_posterior
from flatbayes.checks.training_length import (
    check_diverged,
    check_too_few_steps,
    check_too_many_steps,
    forecast_flatness_gain,
)
from flatbayes.core.display import format_fields
from flatbayes.likelihoods import NumberPredictive
from flatbayes.prediction import FittedPosterior
from flatbayes.prediction.evaluation import predict_labelled
from flatbayes.prediction.labelled import LabelledBatches, select_examples
from flatbayes.prediction.placement import PredictionPrecision
from flatbayes.prediction.position_stream import FirstBatches, limit_examples


@dataclass(frozen=True)
class Check:
    """A check, and what it costs.

    Attributes:
        name: Name of its finding.
        run: Makes the finding, or says why the check does not apply.
        passes: Forward passes in addition to the predictions of all examples, as text.

    Examples:
        >>> [entry.name for entry in CHECKS][:2]
        ['diverged', 'too_few_steps']
    """

    name: str
    run: Callable[[Evidence], Finding | str]
    passes: str = "none"

    __repr__ = format_fields


CHECKS = (
    Check("diverged", check_diverged),
    Check("too_few_steps", check_too_few_steps),
    Check("too_many_steps", check_too_many_steps),
    Check("one_network", check_one_network),
    Check("wide_posterior", check_wide_posterior, "one network per member, at most 256 examples"),
    Check("confidence", check_confidence),
    Check("coverage", check_coverage),
    Check("mixing", check_mixing, "every snapshot, at most 64 examples"),
    Check("collapse", check_collapse),
    Check("laplace_width", check_laplace_width, "20 networks, at most 256 examples"),
    Check("norm_statistics", check_norm_statistics, "one network, at most 256 examples"),
    Check("inputs_outside", check_inputs_outside, "one network for images, at most 256 examples"),
    Check("duplicates", check_duplicates),
)
"""All checks, in the order in which they run."""


def check(
    fitted: FittedPosterior,
    data: Any,
    targets: Any = None,
    num_draws: int = 30,
    *,
    batch_size: int = 256,
    seed: int = 0,
    show_progress: bool = False,
    precision: PredictionPrecision | None = None,
    compiled: bool = False,
) -> CheckReport:
    """Check whether the uncertainty of a posterior can be relied on, and say what to try where it cannot.

    The posterior is not changed. The cost is that of one `evaluate`, and what `CHECKS` says of the single checks.
    Inside `fitted.share_predictions()` this function and an evaluation of the same examples predict once.

    Args:
        fitted: The posterior.
        data: Labelled examples as for `flatbayes.evaluate`, not used for training: `data.val`.
        targets: As for `flatbayes.evaluate`.
        num_draws: Networks to average.
        batch_size: Examples per forward pass.
        seed: The same seed draws the same networks.
        show_progress: Show a progress bar on standard error.
        precision: As in `FittedPosterior.predict`.
        compiled: As in `FittedPosterior.predict`.

    Raises:
        ValueError: The targets do not match the predictions, or are missing.
        TypeError: There are no targets.

    Examples:
        >>> report = check(fitted, data.val, num_draws=10)
        >>> report["one_network"].value < 1
        True
    """
    inputs, targets = limit_examples(fitted, *select_examples(fitted, data, targets, batch_size))
    if fitted.likelihood.has_positions and isinstance(inputs, LabelledBatches):
        data = FirstBatches(inputs.batches, fitted.likelihood.num_outputs)
    predictive, labels, is_labelled = predict_labelled(
        fitted,
        data if targets is None else inputs,
        targets,
        num_draws,
        batch_size=batch_size,
        seed=seed,
        show_progress=show_progress,
        precision=precision,
        compiled=compiled,
    )
    if isinstance(predictive, NumberPredictive):
        labels = labels.reshape(predictive.mean.shape)
    examples = _select_tensor(inputs, is_labelled)
    return run_checks(Evidence(fitted, predictive, labels, examples, num_draws, seed, batch_size))


def run_checks(evidence: Evidence) -> CheckReport:
    """Run all checks, and correct their p-values for the number of tests."""
    results = {entry.name: entry.run(evidence) for entry in CHECKS}
    findings = correct_p_values([result for result in results.values() if isinstance(result, Finding)])
    skipped = {name: result for name, result in results.items() if isinstance(result, str)}
    ordered = tuple(sorted(findings, key=lambda finding: finding.passed))
    notes = forecast_flatness_gain(evidence)
    return CheckReport(ordered, skipped, len(evidence.targets), evidence.num_networks, notes)


def correct_p_values(findings: list[Finding]) -> list[Finding]:
    """Multiply every p-value by the number of tests (Bonferroni); a difference that may be chance passes."""
    num_tests = sum(finding.p_value is not None for finding in findings)
    corrected = []
    for finding in findings:
        if finding.p_value is not None:
            p_value = min(1.0, num_tests * finding.p_value)
            finding = replace(finding, p_value=p_value, passed=finding.passed or p_value >= SIGNIFICANCE)
        corrected.append(finding)
    return corrected


def _select_tensor(inputs: Any, is_labelled: Tensor | None) -> Tensor | None:
    """Raw inputs of the labelled examples; None for those of a loader, of several tensors, or in files."""
    if not isinstance(inputs, Tensor | np.ndarray):
        return None
    examples = torch.as_tensor(inputs)
    if is_labelled is not None and len(is_labelled) == len(examples):
        examples = examples[is_labelled.to(examples.device)]
    return examples
