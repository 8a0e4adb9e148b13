"""Evaluation under distribution shift: corrupted images, and out-of-distribution detection.

Corruptions and severities are those of Hendrycks and Dietterich (ICLR 2019). Out-of-distribution examples are the
positive class of every detection metric.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, cat, from_numpy, ones, zeros

from flatbayes.core.display import format_fields
from flatbayes.data import CIFAR10C, Split, corrupt_images, infer_white_value
from flatbayes.data.corruptions.corrupt import MOVING_CORRUPTIONS
from flatbayes.likelihoods import BernoulliPredictive, CategoricalPredictive, DenseCategoricalPredictive, Predictive
from flatbayes.metrics import aupr, auroc, classification_metrics, entropy_divergence, fpr_at_tpr, multi_label_metrics
from flatbayes.prediction.fitted import FittedPosterior
from flatbayes.prediction.inputs import make_input_tensor
from flatbayes.prediction.placement import PredictionPrecision
from flatbayes.prediction.predictors import flatten_positions, make_predictor, require_classes

CLEAN = "clean"
SEVERITIES = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class CorruptionMetrics:
    """Classification metrics on corrupted images.

    Attributes:
        corruption: Name of the corruption; "clean" for the images as they are.
        severity: From 1 to 5; 0 for clean images.
        metrics: Values by name, as of `classification_metrics`; of `multi_label_metrics` for several labels.

    Examples:
        >>> rows = evaluate_corruptions(fitted, data.test, ["fog"], [3], num_draws=2)
        >>> rows[1].corruption, sorted(rows[1].metrics)
        ('fog', ['accuracy', 'auroc_correct', 'brier', 'ece', 'nll'])
    """

    corruption: str
    severity: int
    metrics: dict[str, float]

    __repr__ = format_fields

    def to_dict(self) -> dict[str, Any]:
        """One flat row of a table, ready for JSON."""
        return {"corruption": self.corruption, "severity": self.severity, **self.metrics}


@dataclass(frozen=True)
class DetectionMetrics:
    """How well one score separates out-of-distribution examples from test examples.

    Attributes:
        auroc: Area under the ROC curve.
        aupr_out: Average precision with out-of-distribution examples as the positive class.
        aupr_in: Average precision with test examples as the positive class.
        fpr95: Fraction of test examples above the threshold that 95 % of the out-of-distribution examples exceed.

    Examples:
        >>> ood = evaluate_ood(fitted, inputs, inputs.flip(2), num_draws=2)
        >>> 0 <= ood.scores["entropy"].auroc <= 1
        True
    """

    auroc: float
    aupr_out: float
    aupr_in: float
    fpr95: float


@dataclass(frozen=True)
class OODEvaluation:
    """Out-of-distribution detection by the uncertainty of the predictions.

    Attributes:
        scores: Metrics for each of the scores `entropy`, `mutual_information` and, for one class of each example,
            `one_minus_confidence`.
        entropy_divergence: Symmetric KL divergence of the histograms of the entropy, in nats.
        num_test: Number of test examples.
        num_ood: Number of out-of-distribution examples.

    Examples:
        >>> sorted(evaluate_ood(fitted, inputs, inputs.flip(2), num_draws=2).scores)
        ['entropy', 'mutual_information', 'one_minus_confidence']
    """

    scores: dict[str, DetectionMetrics]
    entropy_divergence: float
    num_test: int
    num_ood: int

    __repr__ = format_fields

    def to_dict(self) -> dict[str, Any]:
        """Nested dictionaries by field name, ready for JSON."""
        return asdict(self)


def evaluate_corruptions(
    fitted: FittedPosterior,
    split: Split,
    corruptions: Sequence[str],
    severities: Sequence[int] = SEVERITIES,
    num_draws: int = 30,
    *,
    corruption_source: CIFAR10C | None = None,
    corruption_seed: int = 0,
    batch_size: int = 256,
    seed: int = 0,
    show_progress: bool = False,
    precision: PredictionPrecision | None = None,
    compiled: bool = False,
) -> list[CorruptionMetrics]:
    """Compute classification metrics for each corruption and severity.

    One corrupted copy of the examples is in memory at a time.

    Args:
        fitted: The posterior.
        split: Clean raw images with their labels.
        corruptions: Names of corruptions.
        severities: Numbers from 1 to 5.
        num_draws: Networks to average, as in `FittedPosterior.predict`.
        corruption_source: Files of corrupted images; None corrupts the images of the split.
        corruption_seed: Determines the random numbers of the corruptions.
        batch_size: Examples per forward pass.
        seed: The same seed draws the same networks; they are the same for all rows.
        show_progress: Show progress bars on standard error.
        precision: As in `FittedPosterior.predict`.
        compiled: As in `FittedPosterior.predict`.

    Returns:
        The clean images first, then every corruption at every severity.

    Raises:
        ValueError: The images do not fit the posterior, there is no such corruption or severity, or a corruption
            moves what an image shows, and each pixel has a class.

    Examples:
        >>> rows = evaluate_corruptions(fitted, data.test, ["fog", "contrast"], [3], num_draws=2)
        >>> [(row.corruption, row.severity) for row in rows]
        [('clean', 0), ('fog', 3), ('contrast', 3)]
    """
    moving = [name for name in corruptions if name in MOVING_CORRUPTIONS]
    if moving and fitted.likelihood.has_positions:
        raise ValueError(
            f"{moving[0]} moves what an image shows, and the class of each pixel would stay where it is: leave it "
            "out. flatbayes.data.list_corruptions(channels, with_moving=False) lists the others."
        )
    images = split.input_tensor
    white = infer_white_value(images)
    predict = make_predictor(fitted, num_draws, batch_size, seed, show_progress, precision, compiled)

    def compute_row(name: str, severity: int, examples: Split) -> CorruptionMetrics:
        predictive, targets = flatten_positions(fitted, predict(examples.inputs), examples.targets)
        if isinstance(predictive, BernoulliPredictive):
            return CorruptionMetrics(name, severity, multi_label_metrics(predictive.log_probs, targets))
        log_probs = require_classes(predictive, "There are no metrics for it.").log_probs.cpu()
        return CorruptionMetrics(name, severity, classification_metrics(log_probs, targets.cpu()))

    rows = [compute_row(CLEAN, 0, split)]
    for name in corruptions:
        for severity in severities:
            if corruption_source is None:
                inputs = corrupt_images(images, name, severity, corruption_seed, white)
                corrupted = Split(inputs=inputs, targets=split.targets)
            else:
                stored = corruption_source.read_split(name, severity)
                inputs = (stored.input_tensor * (white / 255)).to(images.dtype)  # files have values from 0 to 255
                corrupted = Split(inputs=inputs, targets=stored.targets)
            rows.append(compute_row(name, severity, corrupted))
    return rows


def evaluate_ood(
    fitted: FittedPosterior,
    test_inputs: Any,
    ood_inputs: Any,
    num_draws: int = 30,
    *,
    batch_size: int = 256,
    seed: int = 0,
    show_progress: bool = False,
    precision: PredictionPrecision | None = None,
    compiled: bool = False,
) -> OODEvaluation:
    """Measure how well predictive uncertainty separates out-of-distribution examples from test examples.

    Args:
        fitted: The posterior.
        test_inputs: Raw inputs from the distribution of the training data, not used in training: a tensor, an array
            or a data frame; or graphs, or several tensors, in a form that `predict` takes.
        ood_inputs: Raw inputs from another distribution, of the same shape.
        num_draws: Networks to average, as in `FittedPosterior.predict`.
        batch_size: Examples per forward pass.
        seed: The same seed draws the same networks.
        show_progress: Show progress bars on standard error.
        precision: As in `FittedPosterior.predict`.
        compiled: As in `FittedPosterior.predict`.

    Raises:
        ValueError: The inputs differ in shape, or do not fit the posterior.

    Examples:
        >>> ood = evaluate_ood(fitted, inputs, inputs.flip(2), num_draws=2)
        >>> ood.num_test, ood.num_ood
        (100, 100)
    """
    if fitted.input_structure is None:
        test_inputs, ood_inputs = (
            make_input_tensor(inputs, fitted.info, fitted.transform) for inputs in (test_inputs, ood_inputs)
        )
        if test_inputs.shape[1:] != ood_inputs.shape[1:]:
            raise ValueError(
                f"Test inputs have the shape {tuple(test_inputs.shape[1:])} and out-of-distribution inputs "
                f"{tuple(ood_inputs.shape[1:])}. Use flatbayes.data.match_input_format(ood_inputs, test_inputs)."
            )
    predict = make_predictor(fitted, num_draws, batch_size, seed, show_progress, precision, compiled)
    uncertainties = [_compute_uncertainties(predict(inputs)) for inputs in (test_inputs, ood_inputs)]
    num_test, num_ood = (len(values["entropy"]) for values in uncertainties)
    is_ood = cat([zeros(num_test), ones(num_ood)]).bool()
    scores = {name: _detection_metrics(cat([u[name] for u in uncertainties]), is_ood) for name in uncertainties[0]}
    divergence = entropy_divergence(*(u["entropy"] for u in uncertainties))
    return OODEvaluation(scores, divergence, num_test=num_test, num_ood=num_ood)


def _compute_uncertainties(predictive: Predictive) -> dict[str, Float[Tensor, " examples"]]:
    if isinstance(predictive, DenseCategoricalPredictive):  # means over the positions of an example
        columns = predictive.columns()
        confidence = from_numpy(columns["confidence"])
        names = ("entropy", "mutual_information")
        return {**{name: from_numpy(columns[name]) for name in names}, "one_minus_confidence": -confidence}
    uncertainties = {
        "entropy": predictive.entropy.cpu().clamp_min(0.0),
        "mutual_information": predictive.mutual_information.cpu(),
    }
    if not isinstance(predictive, CategoricalPredictive):
        return uncertainties
    return {
        **uncertainties,
        # The order of 1 - max p, which rounds to 0 for many confident predictions.
        "one_minus_confidence": -predictive.log_probs.amax(-1).cpu(),
    }


def _detection_metrics(scores: Tensor, is_ood: Tensor) -> DetectionMetrics:
    return DetectionMetrics(
        auroc=auroc(scores, is_ood),
        aupr_out=aupr(scores, is_ood),
        aupr_in=aupr(-scores, ~is_ood),
        fpr95=fpr_at_tpr(scores, is_ood, 0.95),
    )
