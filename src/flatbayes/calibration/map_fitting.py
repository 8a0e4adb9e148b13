"""Fits of calibration maps to validation examples."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flatbayes.calibration.isotonic import fit_isotonic, fit_quantile_curves
from flatbayes.calibration.maps import (
    LABEL_METHODS,
    MONOTONE_METHODS,
    NUMBER_METHODS,
    CalibrationMap,
    CalibrationMethod,
    scale_mixture,
    transform_label_log_probs,
    transform_log_probs,
)
from flatbayes.calibration.targets import (
    MIN_EXAMPLES,
    NO_DISTRIBUTION_MAP,
    check_targets,
    warn_if_absent,
    warn_if_at_end,
    warn_if_few,
    warn_if_rare,
)
from flatbayes.core.devices import to_double
from flatbayes.core.input_trees import IGNORE_INDEX
from flatbayes.likelihoods import (
    BernoulliPredictive,
    CategoricalPredictive,
    DenseCategoricalPredictive,
    DistributionPredictive,
    GaussianPredictive,
    NumberPredictive,
    Predictive,
)
from flatbayes.likelihoods.mixture import log_mean_density, normal_log_density
from flatbayes.metrics import fit_temperature
from flatbayes.metrics.multi_label import sum_label_losses
from flatbayes.metrics.temperature import MAX_TEMPERATURE, MIN_TEMPERATURE, PRIOR_EXAMPLES

MIN_ISOTONIC_EXAMPLES = 100
"""Fewest examples without a warning for isotonic regression, which has many steps; `MIN_EXAMPLES` for the others."""
MAX_DIRICHLET_CLASSES = 100
"""Largest number of classes of `dirichlet`, which has a parameter for every pair of classes."""
MAX_SCALE = 100.0
"""Largest factor of `scale`; the smallest is its inverse."""


def fit_calibration(
    predictive: Predictive,
    targets: Tensor,
    method: CalibrationMethod | None = None,
    *,
    num_examples: int | None = None,
) -> CalibrationMap:
    """Fit a calibration map to validation examples.

    Args:
        predictive: Predictions of examples that were not used for training.
        targets: Their class indices, numbers, or several labels, NaN or -100 where a label is not known. For a class
            at each position the map is that of all labelled positions, and an example is one observation beside the
            prior.
        method: None takes `temperature` for classes and labels, which changes no decision, and `scale` for numbers.
        num_examples: Number of examples of which these classes are positions; None if each is an example.

    Raises:
        TypeError: There is no calibration for this kind of prediction.
        ValueError: The method is not for this kind of prediction, or the targets do not match the predictions.

    Warns:
        CalibrationWarning: There are fewer than 10 examples, or for `isotonic` than 100, or fewer than 10 outside of
            a class with more than four fifths of them; or, for maps with parameters of each class, a class has none;
            or the temperature or factor is at an end of its range.

    Examples:
        >>> calibration = fit_calibration(
        ...     fitted.predict(data.val.inputs), data.val.targets, "vector"
        ... )
        >>> len(calibration.weights), len(calibration.bias), calibration.num_examples
        (10, 10, 100)
    """
    num_examples = len(targets) if num_examples is None else num_examples
    if isinstance(predictive, DenseCategoricalPredictive):
        num_examples = int((targets != IGNORE_INDEX).flatten(1).any(1).sum())
        predictive, targets = predictive.select_labelled(targets)
    targets = check_targets(predictive, targets)
    if isinstance(predictive, DistributionPredictive):
        raise TypeError(NO_DISTRIBUTION_MAP)
    if isinstance(predictive, BernoulliPredictive):
        has_label = (targets != IGNORE_INDEX).any(1)
        predictive, targets = predictive.select(has_label.to(predictive.log_probs.device)), targets[has_label]
        num_examples = len(targets)
        method = method or "temperature"
        weights, bias = _fit_labels(predictive.log_probs.detach().cpu().double(), targets.cpu(), method)
    elif isinstance(predictive, GaussianPredictive):
        method = method or "scale"
        if method not in NUMBER_METHODS:
            raise ValueError(f"Predictions of numbers are calibrated by 'scale' or 'quantile', got {method!r}.")
        if method == "quantile":
            curves = fit_quantile_curves(predictive, targets)
        else:
            weights, bias = _fit_scales(predictive, targets), torch.zeros(0, dtype=torch.float64)
    else:
        method = method or "temperature"
        log_probs, labels = cast("CategoricalPredictive", predictive).log_probs.detach().cpu().double(), targets.cpu()
        if method == "isotonic":
            curves = fit_isotonic(log_probs, labels)
        else:
            weights, bias = _fit_classes(log_probs, labels.long(), method, num_examples)
        warn_if_rare(labels.long(), f"the calibration map {method!r}")
        if method != "temperature":
            warn_if_absent(labels.long(), log_probs.shape[1], method)
    num_required = MIN_ISOTONIC_EXAMPLES if method == "isotonic" else MIN_EXAMPLES
    warn_if_few(num_examples, num_required, f"the calibration map {method!r}", "It may be worse than none")
    if method == "temperature":
        warn_if_at_end(1 / float(weights), (MIN_TEMPERATURE, MAX_TEMPERATURE), "temperature", num_examples)
    elif method == "scale":
        for factor in weights.tolist():
            warn_if_at_end(factor, (1 / MAX_SCALE, MAX_SCALE), "factor on the standard deviations", num_examples)
    sizes: tuple[int, ...] = ()
    if method in MONOTONE_METHODS:
        knots, values = ([number for curve in curves for number in curve[end]] for end in (0, 1))
        sizes = tuple(len(curve[0]) for curve in curves)
    else:
        knots, values = weights.reshape(-1).tolist(), bias.tolist()
    calibration = CalibrationMap(method, tuple(knots), tuple(values), num_examples, math.nan, math.nan, sizes)
    losses = [mean_nll(candidate, targets) for candidate in (predictive, calibration.apply(predictive))]
    return replace(calibration, nll_raw=losses[0], nll_calibrated=losses[1])


def mean_nll(predictive: Predictive, targets: Tensor) -> float:
    """Mean negative log likelihood; arguments as of `compute_example_losses`."""
    return float(compute_example_losses(predictive, targets).mean())


def compute_example_losses(predictive: Predictive, targets: Tensor) -> Float[Tensor, " examples"]:
    """Negative log likelihood of each example, float64, whose mean is that of all targets.

    For a class at each position the losses of the labelled positions of an example are summed, and divided by the
    mean number of labelled positions.
    """
    if isinstance(predictive, DenseCategoricalPredictive):
        sums, counts = sum_position_losses(predictive, targets)
        return sums * (len(sums) / int(counts.sum()))
    if isinstance(predictive, CategoricalPredictive):
        log_probs = to_double(predictive.log_probs).cpu()
        return log_probs.gather(1, targets.cpu().long()[:, None])[:, 0].abs()  # abs: without a negative zero
    if isinstance(predictive, BernoulliPredictive):
        return sum_label_losses(predictive.log_probs, targets)
    predictive = cast("NumberPredictive", predictive)
    return -to_double(predictive.log_prob(targets.to(predictive.member_means.device))).cpu()


def compute_difference_error(losses: Tensor, reference: Tensor) -> float:
    """Standard error of the difference of two mean losses, from the differences of single examples; 0 for one."""
    differences = losses - reference
    return float(differences.std() / len(differences) ** 0.5) if len(differences) > 1 else 0.0


def sum_position_losses(
    predictive: DenseCategoricalPredictive, targets: Tensor
) -> tuple[Float[Tensor, " examples"], Int[Tensor, " examples"]]:
    """Negative log likelihood of each example, summed over its labelled positions, and their number."""
    targets = targets.cpu()
    is_labelled = targets != IGNORE_INDEX
    losses = torch.zeros(targets.shape, dtype=torch.float64)
    losses[is_labelled] = compute_example_losses(*predictive.select_labelled(targets))
    return losses.flatten(1).sum(1), is_labelled.flatten(1).sum(1)


def _fit_classes(
    log_probs: Float[Tensor, "labels classes"], labels: Int[Tensor, " labels"], method: str, num_examples: int
) -> tuple[Tensor, Tensor]:
    num_classes = log_probs.shape[1]
    if method == "temperature":
        temperature = fit_temperature(log_probs, labels, PRIOR_EXAMPLES * len(labels) / num_examples)
        return torch.tensor(1 / temperature, dtype=torch.float64), torch.zeros(0, dtype=torch.float64)
    if method not in ("vector", "dirichlet"):
        raise ValueError(
            "Predictions of classes are calibrated by 'temperature', 'vector', 'dirichlet' or 'isotonic', got "
            f"{method!r}."
        )
    if method == "dirichlet" and num_classes > MAX_DIRICHLET_CLASSES:
        raise ValueError(
            f"'dirichlet' has a parameter for every pair of {num_classes} classes; it is for at most "
            f"{MAX_DIRICHLET_CLASSES} classes. Use 'temperature' or 'vector'."
        )
    ones = torch.ones(num_classes, dtype=torch.float64)
    identity = ones if method == "vector" else torch.diag(ones)
    return _minimize(
        lambda weights, bias: penalized_nll(log_probs, labels, weights, bias, identity, num_examples),
        identity,
        torch.zeros_like(ones),
    )


def _fit_labels(
    log_probs: Float[Tensor, "examples labels 2"], labels: Int[Tensor, "examples labels"], method: str
) -> tuple[Tensor, Tensor]:
    if method not in LABEL_METHODS:
        raise ValueError(
            f"Predictions of several labels are calibrated by 'temperature' or 'vector', got {method!r}."
        )
    if method == "temperature":
        is_known = labels != IGNORE_INDEX
        return _fit_classes(log_probs[is_known], labels[is_known], method, int(is_known.sum()))
    ones = torch.ones(labels.shape[1], dtype=torch.float64)
    return _minimize(
        lambda weights, bias: penalized_label_nll(log_probs, labels, weights, bias), ones, torch.zeros_like(ones)
    )


def _minimize(
    compute_loss: Callable[[Tensor, Tensor], Tensor], weights: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Weights and bias of the smallest loss, from these values on."""
    weights, bias = weights.clone().requires_grad_(), bias.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weights, bias], max_iter=500, tolerance_grad=1e-9, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = compute_loss(weights, bias)
        torch.autograd.backward(loss)
        return loss.detach()

    with torch.enable_grad():
        optimizer.step(closure)
    return weights.detach(), bias.detach()


def penalized_nll(
    log_probs: Tensor, labels: Tensor, weights: Tensor, bias: Tensor, identity: Tensor, num_examples: int
) -> Tensor:
    """Mean NLL + (|W - I|^2 + |b|^2) / (2 n): the negative log posterior of n examples divided by n."""
    losses = torch.nn.functional.nll_loss(transform_log_probs(log_probs, weights, bias), labels)
    return losses + ((weights - identity).square().sum() + bias.square().sum()) / (2 * num_examples)


def penalized_label_nll(log_probs: Tensor, labels: Tensor, weights: Tensor, bias: Tensor) -> Tensor:
    """The same for several labels, whose NLL is the sum over the known labels of an example."""
    losses = sum_label_losses(transform_label_log_probs(log_probs, weights, bias), labels).mean()
    return losses + ((weights - 1).square().sum() + bias.square().sum()) / (2 * len(labels))


def _fit_scales(predictive: GaussianPredictive, targets: Tensor) -> Tensor:
    from scipy.optimize import minimize_scalar  # slow to import

    count = len(targets)
    means, stds = (
        values.detach().cpu().double().reshape(len(values), count, -1)
        for values in (predictive.member_means, predictive.member_stds)
    )
    targets = targets.detach().cpu().double().reshape(count, -1)
    factors, limit = [], math.log(MAX_SCALE)
    for k in range(targets.shape[1]):
        mixture, values = GaussianPredictive(means[..., k], stds[..., k]), targets[:, k]

        def compute_nll(log_factor: float, mixture: GaussianPredictive = mixture, values: Tensor = values) -> float:
            scaled = scale_mixture(mixture, torch.tensor(math.exp(log_factor), dtype=torch.float64))
            densities = normal_log_density(values, scaled.member_means, scaled.member_stds)
            return -float(log_mean_density(densities).mean())

        result = minimize_scalar(compute_nll, bounds=(-limit, limit), method="bounded", options={"xatol": 1e-9})
        factors.append(math.exp(result.x))
    return torch.tensor(factors, dtype=torch.float64)
