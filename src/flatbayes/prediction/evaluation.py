"""Evaluation of a fitted posterior on labelled examples: metrics and a reliability diagram."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from flatbayes.data import LazyImages
from flatbayes.likelihoods import (
    Categorical,
    CategoricalPredictive,
    Custom,
    GaussianPredictive,
    Likelihood,
    Predictive,
)
from flatbayes.metrics import (
    CoverageCurve,
    ReliabilityBins,
    classification_metrics,
    coverage_curve,
    metrics_per_target,
    regression_metrics,
    reliability_bins,
)
from flatbayes.prediction.fitted import FittedPosterior
from flatbayes.prediction.placement import PredictionPrecision


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
    """

    metrics: dict[str, float]
    reliability: ReliabilityBins | CoverageCurve
    num_networks: int
    target_metrics: dict[str, tuple[float, ...]] = field(default_factory=dict)


def evaluate(
    fitted: FittedPosterior,
    inputs: Tensor | LazyImages,
    targets: Tensor,
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
        inputs: Raw examples, in the form of the training data.
        targets: Class indices of any dtype, or one-hot rows; examples with the likelihood's `ignore_index` are left
            out. For a regression numbers, shape (examples,) or (examples, targets).
        num_draws: Networks to average, as in `FittedPosterior.predict`.
        batch_size: Examples per forward pass.
        seed: The same seed draws the same networks.
        show_progress: Show a progress bar on standard error.
        precision: As in `FittedPosterior.predict`.
        compiled: As in `FittedPosterior.predict`.

    Raises:
        ValueError: The targets do not match the predictions, or are missing or not finite.
        TypeError: There are no metrics for this kind of prediction.
    """
    inputs, targets = _prepare_examples(fitted.likelihood, inputs, targets)
    predictive = fitted.predict(
        inputs,
        num_draws,
        batch_size=batch_size,
        seed=seed,
        show_progress=show_progress,
        precision=precision,
        compiled=compiled,
    )
    return _compute_metrics(predictive, targets, len(fitted.sample_ids(num_draws, seed)))


def _prepare_examples(
    likelihood: Likelihood, inputs: Tensor | LazyImages, targets: Tensor
) -> tuple[Tensor | LazyImages, Tensor]:
    """Examples that have a target, and class labels as class indices, as in training."""
    while isinstance(likelihood, Custom):
        likelihood = likelihood.output_likelihood
    targets = torch.as_tensor(targets)
    if not isinstance(likelihood, Categorical):
        return inputs, targets
    targets = likelihood.prepare_targets(targets.cpu())
    if targets.is_floating_point():
        raise ValueError("Metrics compare predictions with classes, got class probabilities: try labels.argmax(-1).")
    is_labelled = likelihood.find_labelled(targets)
    if is_labelled is None or is_labelled.all() or len(targets) != len(inputs):
        return inputs, targets
    if not is_labelled.any():
        raise ValueError(f"All {len(targets)} labels are {likelihood.ignore_index}: there are no labelled examples.")
    selected = inputs.subset(is_labelled) if isinstance(inputs, LazyImages) else inputs[is_labelled]
    return selected, targets[is_labelled]


def _compute_metrics(predictive: Predictive, targets: Tensor, num_networks: int) -> Evaluation:
    match predictive:
        case CategoricalPredictive():
            log_probs, labels = predictive.log_probs.cpu(), targets.cpu()
            bins = reliability_bins(log_probs.exp(), labels)
            return Evaluation(classification_metrics(log_probs, labels), bins, num_networks)
        case GaussianPredictive():
            targets = _match_target_shape(targets.to(predictive.member_means), predictive.mean.shape)
            pit = predictive.cdf(targets)
            means, stds, interval = predictive.member_means, predictive.member_stds, predictive.interval(0.95)
            log_density = predictive.log_prob(targets)
            metrics = regression_metrics(
                targets, means=means, stds=stds, log_density=log_density, pit=pit, interval=interval
            )
            target_metrics = (
                metrics_per_target(targets, means=means, stds=stds, pit=pit, interval=interval)
                if targets.ndim == 2 and targets.shape[1] > 1
                else {}
            )
            return Evaluation(metrics, coverage_curve(pit), num_networks, target_metrics)
        case _:
            raise TypeError(f"There are no metrics for a {type(predictive).__name__} yet.")


def _match_target_shape(targets: Tensor, shape: torch.Size) -> Tensor:
    if targets.shape != shape and targets.shape != (*shape, 1):
        raise ValueError(
            f"There are {shape[0]} predictions of the shape {tuple(shape)}, and targets of the shape "
            f"{tuple(targets.shape)}. Give one target for each prediction, in the same order."
        )
    return targets.reshape(shape)
