"""Evaluation of a fitted posterior on labelled examples: metrics and a reliability diagram."""

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from flatbayes.core.display import format_entries, format_html_table, format_number, make_data_frame
from flatbayes.core.files import replace_nonfinite
from flatbayes.core.input_trees import IGNORE_INDEX
from flatbayes.core.names import format_count
from flatbayes.core.prediction_lock import lock_predictions
from flatbayes.data import LazyImages
from flatbayes.data.column_names import convert_target_frame
from flatbayes.likelihoods import (
    Bernoulli,
    BernoulliPredictive,
    Categorical,
    CategoricalPredictive,
    DenseCategoricalPredictive,
    DistributionLikelihood,
    DistributionPredictive,
    GaussianPredictive,
    Likelihood,
    Predictive,
    RecalibratedPredictive,
)
from flatbayes.likelihoods.custom import unwrap_custom
from flatbayes.likelihoods.labels import encode_labels
from flatbayes.metrics import CoverageCurve, ReliabilityBins, coverage_curve, metrics_per_target, regression_metrics
from flatbayes.metrics.calibration import bin_confidences
from flatbayes.metrics.classification import binary_metrics, score_examples
from flatbayes.metrics.definitions import select_definitions
from flatbayes.metrics.multi_label import measure_labels
from flatbayes.prediction.calibrated import replace_calibration
from flatbayes.prediction.fitted import FittedPosterior
from flatbayes.prediction.labelled import LabelledBatches, mark_unlabelled, select_examples
from flatbayes.prediction.number_metrics import measure_distribution
from flatbayes.prediction.placement import PredictionPrecision
from flatbayes.prediction.position_stream import PositionMetrics, stream_labelled

if TYPE_CHECKING:  # optional packages
    import pandas as pd
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Evaluation:
    """Metrics of the predictions on labelled examples.

    Attributes:
        metrics: Values by the names of `flatbayes.metrics.DEFINITIONS`.
        reliability: Plain data for a diagram: the fields of `ReliabilityBins` for classes, of `CoverageCurve` for
            numbers.
        num_networks: Number of networks that were averaged.
        target_metrics: For a regression with several targets, the metrics of each in its unit, whose means are in
            `metrics`; all but the NLL, which is that of all targets together. Empty otherwise.
        raw_metrics: For a posterior with a calibration, the metrics of its predictions without it. Empty otherwise.

    Examples:
        >>> evaluation = evaluate(fitted, data.test, num_draws=5)
        >>> sorted(evaluation.metrics)
        ['accuracy', 'auroc_correct', 'brier', 'ece', 'nll']
        >>> axes = evaluation.plot_reliability()
    """

    metrics: dict[str, float]
    reliability: ReliabilityBins | CoverageCurve
    num_networks: int
    target_metrics: dict[str, tuple[float, ...]] = field(default_factory=dict)
    raw_metrics: dict[str, float] = field(default_factory=dict)

    def __repr__(self) -> str:
        values = ", ".join(f"{name} {format_number(value)}" for name, value in self.metrics.items())
        return f"<Evaluation of {format_count(self.num_networks, 'network')}: {values}>"

    def _repr_html_(self) -> str:
        definitions = select_definitions(self.metrics)
        rows = [
            (definitions.get(name, name), format_number(value) + self._format_raw(name))
            for name, value in self.metrics.items()
        ]
        return format_html_table(f"Evaluation, networks averaged: {self.num_networks}", (), rows)

    def _format_raw(self, name: str) -> str:
        """The value without calibration, in brackets; nothing for a posterior without one."""
        return f" (uncalibrated {format_number(self.raw_metrics[name])})" if name in self.raw_metrics else ""

    def summary(self) -> str:
        """The metrics with their definitions, as text."""
        definitions = select_definitions(self.metrics)
        entries = {
            name: f"{format_number(value):>8}{self._format_raw(name)}  {definitions.get(name, '')}"
            for name, value in self.metrics.items()
        }
        return format_entries(f"Evaluation, networks averaged: {self.num_networks}", entries)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with None for numbers that are not finite."""
        data: dict[str, Any] = replace_nonfinite(
            {
                "metrics": dict(self.metrics),
                "raw_metrics": dict(self.raw_metrics),
                "num_networks": self.num_networks,
                "reliability": self.reliability.to_dict(),
                "target_metrics": {name: list(values) for name, values in self.target_metrics.items()},
            }
        )
        return data

    def to_pandas(self) -> "pd.DataFrame":
        """One row with a column for each metric; for several targets a row for each, and their mean first.

        Raises:
            ImportError: pandas is not installed.
        """
        columns = {name: [value, *self.target_metrics.get(name, ())] for name, value in self.metrics.items()}
        count = max(map(len, columns.values()))
        return make_data_frame(
            {name: values + [math.nan] * (count - len(values)) for name, values in columns.items()}
        )

    def plot_reliability(self, *, ax: "Axes | None" = None) -> "Axes":
        """Draw the reliability diagram of a classification, or the coverage of the intervals of a regression.

        Bins with few predictions are joined; bars are Wilson's 95 % intervals.

        Args:
            ax: Where to draw; by default new axes.

        Raises:
            ImportError: matplotlib is not installed.
        """
        from flatbayes.plotting.calibration import plot_coverage, plot_reliability

        if isinstance(self.reliability, CoverageCurve):
            title = f"coverage of 95 % intervals {self.metrics['coverage_95']:.3f}"
            return plot_coverage(self.reliability.levels, self.reliability.coverage, title, ax)
        bins = self.reliability.merge()
        intervals, title = bins.accuracy_intervals(), f"ECE {self.metrics['ece']:.3f}"
        return plot_reliability(bins.confidence, bins.accuracy, bins.counts, intervals, title, ax)


def evaluate(
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
) -> Evaluation:
    """Predict, and compare the predictions with targets. The posterior is not changed.

    Inputs and targets may be on any device, and on different ones.

    Args:
        fitted: The posterior.
        data: Labelled examples in the form of the training data: a split (`data.test`), a pair `(inputs, targets)` of
            tensors, arrays or data frames, a dataset, or a loader of batches. With `targets`, inputs alone.
        targets: Class indices of any dtype, one-hot rows, or names of classes; examples with the likelihood's
            `ignore_index` are left out. For a class at each position one index for each. For several labels rows of
            0 and 1, with NaN or `ignore_index` where a label is not known. For a regression numbers, shape
            (examples,) or (examples, targets).
        num_draws: Networks to average, as in `FittedPosterior.predict`.
        batch_size: Examples per forward pass.
        seed: The same seed draws the same networks.
        show_progress: Show a progress bar on standard error.
        precision: As in `FittedPosterior.predict`.
        compiled: As in `FittedPosterior.predict`.

    Raises:
        ValueError: The targets do not match the predictions, or are missing or not finite.
        TypeError: There are no targets, or no metrics for this kind of prediction.

    Examples:
        >>> evaluation = evaluate(fitted, data.test, num_draws=5)
        >>> sorted(evaluation.metrics), evaluation.num_networks
        (['accuracy', 'auroc_correct', 'brier', 'ece', 'nll'], 5)
    """
    options: dict[str, Any] = {
        "batch_size": batch_size,
        "seed": seed,
        "show_progress": show_progress,
        "precision": precision,
        "compiled": compiled,
    }
    if fitted.likelihood.has_positions:
        return _evaluate_positions(fitted, data, targets, num_draws, **options)
    calibration = fitted.calibration
    raw = fitted if calibration is None else replace_calibration(fitted, None)
    predictive, targets, _ = predict_labelled(raw, data, targets, num_draws, **options)
    evaluation = _compute_metrics(predictive, targets, len(fitted.sample_ids(num_draws, seed)))
    if calibration is None:
        return evaluation
    calibrated = _compute_metrics(calibration.apply(predictive), targets, evaluation.num_networks)
    return replace(calibrated, raw_metrics=evaluation.metrics)


@lock_predictions()  # until the last example, as `predict` does
def _evaluate_positions(
    fitted: FittedPosterior, data: Any, targets: Any, num_draws: int, *, seed: int, **options: Any
) -> Evaluation:
    """The metrics of a class at each position; arguments as of `evaluate`."""
    calibration, num_networks = fitted.calibration, len(fitted.sample_ids(num_draws, seed))
    raw, calibrated = PositionMetrics(), PositionMetrics()
    sampler = fitted if calibration is None else replace_calibration(fitted, None)
    for predictive, labels in stream_labelled(sampler, data, targets, num_draws, seed=seed, **options):
        raw.add(predictive, labels)
        if calibration is not None:
            calibrated.add(cast("DenseCategoricalPredictive", calibration.apply(predictive)), labels)
    metrics, raw_metrics = raw, dict[str, float]()
    if calibration is not None:
        metrics, raw_metrics = calibrated, raw.compute(raw.join_scores())
    scores = metrics.join_scores()
    bins = bin_confidences(scores.confidence, scores.is_right, examples=metrics.join_examples())
    return Evaluation(metrics.compute(scores), bins, num_networks, raw_metrics=raw_metrics)


def predict_labelled(
    fitted: FittedPosterior, data: Any, targets: Any, num_draws: int, *, batch_size: int, **options: Any
) -> tuple[Predictive, Tensor, Tensor | None]:
    """Predictions and targets of the labelled examples, and which of the examples have a label; None for all.

    Raises:
        ValueError: The targets do not match the predictions, or are missing.
        TypeError: There are no targets.
    """
    inputs, targets = select_examples(fitted, data, targets, batch_size)
    is_labelled: Tensor | None = None
    if targets is not None:
        targets = convert_target_frame(targets, fitted.info.get("target_names"))
        targets, is_labelled = _prepare_targets(
            fitted.likelihood, encode_labels(targets, fitted.info.get("class_names"))
        )
        if (
            is_labelled is not None
            and isinstance(inputs, Tensor | LazyImages | np.ndarray)
            and len(inputs) == len(targets)
        ):
            inputs = inputs.subset(is_labelled) if isinstance(inputs, LazyImages) else inputs[is_labelled]
            predictive = fitted.predict(inputs, num_draws, batch_size=batch_size, **options)
            return predictive, targets[is_labelled], is_labelled
    predictive = fitted.predict(inputs, num_draws, batch_size=batch_size, **options)
    if isinstance(inputs, LabelledBatches):
        targets, is_labelled = _prepare_targets(fitted.likelihood, inputs.targets)
    if is_labelled is not None and len(is_labelled) == len(predictive.mean):
        predictive, targets = predictive.select(is_labelled), targets[is_labelled]
    return predictive, targets, is_labelled


def _prepare_targets(likelihood: Likelihood, targets: Tensor) -> tuple[Tensor, Tensor | None]:
    """Labels as class indices, or as 0, 1 and `IGNORE_INDEX`; and which examples have one, None if all have.

    Positions without a label have `IGNORE_INDEX` too.
    """
    likelihood = unwrap_custom(likelihood)
    if isinstance(likelihood, DistributionLikelihood):
        likelihood.prepare_targets(targets.cpu())
    if not (isinstance(likelihood, Bernoulli | Categorical) or likelihood.has_positions):
        return targets, None
    targets = likelihood.prepare_targets(targets.cpu())
    is_labelled = likelihood.find_labelled(targets)
    if isinstance(likelihood, Bernoulli):
        values, is_known = likelihood.split_targets(targets)
        if not bool(((values == 0) | (values == 1)).all()):
            raise ValueError("Metrics compare predictions with labels, 0 or 1, got probabilities: try labels > 0.5.")
        targets = values.long().masked_fill(~is_known, IGNORE_INDEX)
    elif likelihood.has_positions:
        targets = mark_unlabelled(likelihood, targets)
    elif targets.is_floating_point():
        raise ValueError("Metrics compare predictions with classes, got class probabilities: try labels.argmax(-1).")
    if is_labelled is None or is_labelled.all():
        return targets, None
    if not is_labelled.any():
        raise ValueError("Every label is NaN, or the ignore_index of the likelihood: there are no labelled examples.")
    return targets, is_labelled


def _compute_metrics(predictive: Predictive, targets: Tensor, num_networks: int) -> Evaluation:
    match predictive:
        case CategoricalPredictive():
            scores = score_examples(predictive.log_probs, targets)
            metrics = {**scores.metrics(), **binary_metrics(predictive.log_probs, targets)}
            return Evaluation(metrics, bin_confidences(scores.confidence, scores.is_right), num_networks)
        case BernoulliPredictive():
            metrics, scores = measure_labels(predictive.log_probs, targets)
            examples = ((targets == 0) | (targets == 1)).cpu().nonzero()[:, 0]
            bins = bin_confidences(scores.confidence, scores.is_right, examples=examples)
            return Evaluation(metrics, bins, num_networks)
        case GaussianPredictive():
            targets = _match_target_shape(targets.to(predictive.member_means), predictive.member_means.shape[1:])
            pit = predictive.cdf(targets)
            quantities: dict[str, Any] = {
                "means": predictive.member_means,
                "stds": predictive.member_stds,
                "pit": pit,
                "interval": predictive.interval(0.95),
            }
            if isinstance(predictive, RecalibratedPredictive):  # no mixture any more
                quantities |= {"mean": predictive.mean, "crps_values": predictive.crps(targets)}
            metrics = regression_metrics(targets, log_density=predictive.log_prob(targets), **quantities)
            is_joint = targets.ndim == 2 and targets.shape[1] > 1
            target_metrics = metrics_per_target(targets, **quantities) if is_joint else {}
            return Evaluation(metrics, coverage_curve(pit), num_networks, target_metrics)
        case DistributionPredictive():
            targets = _match_target_shape(targets.to(predictive.mean), predictive.mean.shape)
            metrics, target_metrics, pit = measure_distribution(predictive, targets)
            return Evaluation(metrics, coverage_curve(pit), num_networks, target_metrics)
        case _:
            raise TypeError(f"There are no metrics for a {type(predictive).__name__} yet.")


def _match_target_shape(targets: Tensor, shape: torch.Size) -> Tensor:
    if targets.shape != shape and targets.shape != (*shape, 1):
        raise ValueError(
            f"There are {format_count(shape[0], 'prediction')} of the shape {tuple(shape)}, and targets of the shape "
            f"{tuple(targets.shape)}. Give one target for each prediction, in the same order."
        )
    return targets.reshape(shape)
