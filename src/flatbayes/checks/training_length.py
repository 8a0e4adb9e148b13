"""Length of a training: loss that still falls, validation NLL that rises, and training that has diverged."""

import math
from collections.abc import Sequence
from itertools import pairwise

from flatbayes.checks.evidence import Evidence, TrainingCurve
from flatbayes.checks.report import Finding, format_percent
from flatbayes.core.display import format_number
from flatbayes.core.names import format_count
from flatbayes.diagnostics.flatness_forecast import forecast_from_history
from flatbayes.likelihoods import Bernoulli, Categorical, DenseCategorical, Gaussian, Likelihood

LATE_FRACTION = 0.2
"""Part at the end of a training, measured in the sum of learning rates, in which the loss should fall no more. In
epochs, every loss stands still at the end of a decaying learning rate."""
MAX_LATE_FALL, MIN_FALL_NATS = 0.2, 0.01
"""Largest part of the whole fall of the loss that may be late, and the fall that does not matter."""
MAX_RISE, MIN_RISE_NATS = 0.25, 0.1
"""Largest rise of the validation NLL above its lowest value, as a part of the fall before; one that is ignored."""
MAX_EXCESS_NATS = 0.1
"""Largest training loss above that of a constant prediction, per target."""
MAX_REBOUND = 0.5
"""Largest rise of the training loss above its lowest value, as a part of the fall before."""
NO_CURVE = "the losses of the training are not in the artefact"


def check_too_few_steps(evidence: Evidence) -> Finding | str:
    """Whether the loss still falls at the end of the training."""
    curve = TrainingCurve.read(evidence.fitted.info)
    if curve is None:
        return NO_CURVE
    if curve.is_cyclical:
        return "a cyclical learning rate has no trend at the end"
    is_validated = len(curve.validated) > 2
    rows, values = (curve.validated, curve.validations) if is_validated else (range(len(curve.losses)), curve.losses)
    if len(values) < 2:
        return "a single epoch has no trend"
    quantity = "validation NLL" if is_validated else "training loss"
    fall, share = measure_late_fall([curve.times[k] for k in rows], values)
    return Finding(
        "too_few_steps",
        fall <= MIN_FALL_NATS or share <= MAX_LATE_FALL or values[-1] > min(values) + MIN_FALL_NATS,
        "The training is too short",
        f"in the last fifth of its learning rates the {quantity} {'fell' if fall > 0 else 'rose'} by {abs(fall):.3g} "
        f"nats{f', {format_percent(share)} of the whole fall' if fall > 0 else ''}",
        share,
        f"at most {format_percent(MAX_LATE_FALL)}, or {MIN_FALL_NATS} nats",
        f"train longer, such as twice the epochs (now {format_number(curve.epochs[-1])})",
    )


def check_too_many_steps(evidence: Evidence) -> Finding | str:
    """Whether the validation NLL of the network rises at the end of the training."""
    curve = TrainingCurve.read(evidence.fitted.info)
    if curve is None:
        return NO_CURVE
    posterior, training = evidence.fitted.posterior, evidence.fitted.info["training"]
    if training.get("best_epochs") and not posterior.snapshot_requirements.max_used:
        return "the weights are those of the lowest validation NLL (early stopping)"
    if len(curve.validated) < 3:
        return "there are fewer than three validations"
    rise, share, index = measure_rise(curve.validations)
    best = curve.epochs[curve.validated[index]]
    return Finding(
        "too_many_steps",
        rise <= MIN_RISE_NATS or share <= MAX_RISE,
        "The training is too long",
        f"the validation NLL of the network is {rise:.3g} nats above its lowest value, that of epoch {best:g}"
        + (f": {format_percent(share)} of its fall before" if math.isfinite(share) else ", the first one"),
        share,
        f"at most {format_percent(MAX_RISE)}, or {MIN_RISE_NATS} nats",
        f"early_stopping=True, about {format_count(best, 'epoch', spec='g')}, more weight decay (a larger prior "
        "precision), or a larger rho",
    )


def check_diverged(evidence: Evidence) -> Finding | str:
    """Whether the training ends worse than a constant prediction, or far above its lowest loss."""
    curve = TrainingCurve.read(evidence.fitted.info)
    if curve is None:
        return NO_CURVE
    last, problem = curve.losses[-1], "The training has diverged"
    constant = compute_constant_nll(evidence.fitted.likelihood)
    remedy = "a lower learning rate, a smaller rho, or clipping (optimization.clip_norm=1)"
    rebound, share, index = measure_rise(curve.losses)
    lowest, way = curve.losses[index], "of its fall"
    if constant is not None and rebound < share * (constant[0] - lowest):  # a trained network has little to fall
        share, way = rebound / (constant[0] - lowest), "of the way back to a constant prediction"
    if not curve.is_cyclical and rebound > MIN_RISE_NATS and share > MAX_REBOUND:
        course = f"{format_percent(share)} {way} above" if math.isfinite(share) else "and has only risen from"
        measurement = (
            f"the training loss is {last:.4g} at the end, {course} the {lowest:.4g} of epoch {curve.epochs[index]:g}"
        )
        limit = f"at most {format_percent(MAX_REBOUND)}"
        return Finding("diverged", False, problem, measurement, share, limit, remedy)
    if constant is None:
        return "the loss has units of its own, in which no constant prediction is known"
    nll, num_targets = constant
    excess = (last - nll) / num_targets
    return Finding(
        "diverged",
        excess <= MAX_EXCESS_NATS,
        problem,
        f"the training loss is {last:.4g} at the end, and that of the best constant prediction {nll:.4g}",
        excess,
        f"at most {MAX_EXCESS_NATS} nats above it",
        remedy,
    )


def forecast_flatness_gain(evidence: Evidence) -> tuple[str, ...]:
    """A sentence on whether flatness would pay, from a plain training without early stopping; none for others."""
    curve, training = TrainingCurve.read(evidence.fitted.info), evidence.fitted.info.get("training", {})
    if curve is None or training.get("flatness") != "Plain" or training.get("best_epochs"):
        return ()
    forecast = forecast_from_history(curve.val_nlls)
    return () if forecast is None else (f"Forecast: {forecast.text}",)


def measure_late_fall(times: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """Fall of a curve in the last fifth of a training, and its part of the whole fall.

    >>> measure_late_fall([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], [10, 9, 8, 7, 6, 5, 4, 3, 2, 1])
    (2.0, 0.2222222222222222)
    """
    time = (1 - LATE_FRACTION) * times[-1]
    points = list(zip(times, values, strict=True))
    earlier = values[0]
    for (start, first), (end, second) in pairwise(points):
        if start <= time <= end:
            earlier = first + (second - first) * (time - start) / max(end - start, 1e-300)
    fall, total = earlier - values[-1], max(values) - values[-1]
    return fall, (fall / total if total > 0 else 0.0)


def measure_rise(values: Sequence[float]) -> tuple[float, float, int]:
    """Rise of a curve at its end above its lowest value, its ratio to the fall before, and the lowest value's index.

    The ratio is infinite if there was no fall.

    >>> measure_rise([2.0, 1.0, 1.5])
    (0.5, 0.5, 1)
    """
    index = min(range(len(values)), key=values.__getitem__)
    rise, fall = values[-1] - values[index], max(values[: index + 1]) - values[index]
    return rise, (rise / fall if fall > 0 else math.inf if rise > 0 else 0.0), index


def compute_constant_nll(likelihood: Likelihood) -> tuple[float, int] | None:
    """NLL of a prediction that ignores the inputs, and the number of targets; None where it is not known.

    It is log(classes) for classes, log(2) for each of several labels, and for numbers the entropy of a normal
    distribution with the standard deviation of the training targets, to which the likelihood standardises.

    >>> compute_constant_nll(Categorical(10))
    (2.302585092994046, 1)
    """
    if isinstance(likelihood, Categorical | DenseCategorical):
        return math.log(likelihood.num_classes), 1
    if isinstance(likelihood, Bernoulli):
        return likelihood.num_labels * math.log(2), likelihood.num_labels
    if not isinstance(likelihood, Gaussian) or likelihood.scale == (1.0,) * likelihood.num_targets:
        return None
    entropy = likelihood.num_targets * 0.5 * math.log(2 * math.pi * math.e)
    return entropy + sum(map(math.log, likelihood.scale)), likelihood.num_targets
