"""Calibration maps of predictions, fitted to validation examples: what a posterior predicts, corrected afterwards.

Classes, with p the averaged probabilities of all networks:

    temperature  p' = softmax(log p / T)               Guo et al., ICML 2017
    vector       p' = softmax(w * log p + b)           Guo et al., ICML 2017
    dirichlet    p' = softmax(W log p + b)             Kull et al., NeurIPS 2019
    isotonic     p'_c = iso_c(p_c) / sum               Zadrozny & Elkan, KDD 2002

Numbers: `scale` stretches every predictive distribution about its mean by one factor for each target; `quantile`
replaces its distribution function F by R(F) (Kuleshov et al., ICML 2018). The last of each, which are in
`flatbayes.calibration.isotonic`, are monotone functions; the others minimise the NLL of the validation examples.
`vector` and `dirichlet` do so with a normal prior around the identity, of standard deviation 1 for every parameter,
since few examples do not determine them. It replaces the penalty of Kull et al., whose weight is chosen by
cross-validation, and its weight falls with the number of examples.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, Self, cast, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flatbayes.calibration.isotonic import apply_isotonic, fit_isotonic, fit_quantile_curves, stack_curves
from flatbayes.calibration.targets import MIN_EXAMPLES, check_targets, warn_if_few
from flatbayes.core.devices import to_double
from flatbayes.core.display import format_fields
from flatbayes.likelihoods import CategoricalPredictive, GaussianPredictive, Predictive, RecalibratedPredictive
from flatbayes.likelihoods.categorical_predictive import categorical_entropy
from flatbayes.likelihoods.mixture import log_mean_density, normal_log_density
from flatbayes.metrics import fit_temperature, nll

CalibrationMethod = Literal["temperature", "vector", "dirichlet", "isotonic", "scale", "quantile"]
"""Kinds of maps; `scale` and `quantile` are those of numbers."""
NUMBER_METHODS, MONOTONE_METHODS = ("scale", "quantile"), ("isotonic", "quantile")
MIN_ISOTONIC_EXAMPLES = 100
"""The same number for isotonic regression, which has as many steps as the examples ask for."""
MIN_LOG_PROB = -80.0
"""Smallest log probability that `vector` and `dirichlet` tell from a smaller one, within the range of float32."""
MAX_DIRICHLET_CLASSES = 100
"""Largest number of classes of `dirichlet`, which has a parameter for every pair of classes."""
MAX_SCALE = 100.0
"""Largest factor of `scale`; the smallest is its inverse."""


@dataclass(frozen=True)
class CalibrationMap:
    """A map of predictions to calibrated predictions; made by `fit_calibration`.

    Attributes:
        method: Kind of the map.
        weights: 1 / T; w; the rows of W one after another; the factor of each target; or the knots of the monotone
            functions of all classes or targets, one after another.
        bias: b; empty for `temperature` and `scale`; for monotone functions the values at the knots.
        num_examples: Number of validation examples.
        nll_raw: Mean NLL of the validation examples without the map.
        nll_calibrated: Mean NLL of the validation examples with the map, which was fitted to them.
        sizes: For `isotonic` and `quantile`, the number of knots of each class or target.

    Examples:
        >>> validation = fitted.predict(data.val.inputs)
        >>> calibration = fit_calibration(validation, data.val.targets)
        >>> calibrated = calibration.apply(fitted.predict(inputs))
        >>> calibrated.mean.shape, calibration.nll_calibrated <= calibration.nll_raw
        (torch.Size([100, 10]), True)
        >>> CalibrationMap.from_dict(calibration.to_dict()) == calibration
        True
    """

    method: CalibrationMethod
    weights: tuple[float, ...]
    bias: tuple[float, ...]
    num_examples: int
    nll_raw: float
    nll_calibrated: float
    sizes: tuple[int, ...] = ()

    __repr__ = format_fields

    def describe(self) -> str:
        """Method, parameters where they are few, and NLL of the validation examples, as text."""
        value = ""
        if self.method == "temperature":
            value = f" {1 / self.weights[0]:.4g}"
        elif self.method == "scale":
            value = f" {', '.join(f'{factor:.4g}' for factor in self.weights)}"
        return (
            f"{self.method}{value}, fitted to {self.num_examples} examples: their NLL {self.nll_raw:.4g} became "
            f"{self.nll_calibrated:.4g}"
        )

    def get_curves(self) -> tuple[tuple[tuple[float, ...], tuple[float, ...]], ...]:
        """Knots and values of the monotone function of each class or target."""
        ends = list(itertools.accumulate(self.sizes))
        slices = [slice(end - size, end) for end, size in zip(ends, self.sizes, strict=True)]
        return tuple((self.weights[rows], self.bias[rows]) for rows in slices)

    def get_parameters(self) -> tuple[Tensor, Tensor]:
        """Weights and bias as float64 tensors, for `transform_log_probs`."""
        if self.method == "isotonic":
            return stack_curves(self.get_curves())
        weights, bias = (torch.tensor(values, dtype=torch.float64) for values in (self.weights, self.bias))
        if self.method == "temperature":
            return weights[0], bias
        return weights.reshape(len(bias), -1) if self.method == "dirichlet" else weights, bias

    def apply(self, predictive: Predictive) -> Predictive:
        """The calibrated predictions.

        For classes, the mutual information stays that of the networks, at most the entropy; predictions of single
        networks and their variances are not changed. For numbers, `scale` keeps means and multiplies standard
        deviations; `quantile` gives a `RecalibratedPredictive`, whose moments all differ.

        Args:
            predictive: Predictions of the posterior for which the map was fitted.

        Raises:
            TypeError: The map is not for predictions of this kind.
            ValueError: The map is for another number of classes or targets.
        """
        weights, bias = self.get_parameters()
        if self.method not in NUMBER_METHODS and isinstance(predictive, CategoricalPredictive):
            num_classes = predictive.log_probs.shape[1]
            _check_count(len(bias) or num_classes, num_classes, "classes")
            log_probs = transform_log_probs(
                predictive.log_probs, weights.to(predictive.log_probs), bias.to(predictive.log_probs)
            )
            information = predictive.mutual_information
            expected_entropy = (categorical_entropy(log_probs) - information).clamp_min(0.0)
            return replace(predictive, log_probs=log_probs, expected_entropy=expected_entropy)
        if self.method in NUMBER_METHODS and isinstance(predictive, GaussianPredictive):
            num_targets = 1 if predictive.member_means.ndim == 2 else predictive.member_means.shape[2]
            _check_count(len(self.sizes or weights), num_targets, "targets")
            if self.method == "quantile":
                return RecalibratedPredictive(predictive.member_means, predictive.member_stds, self.get_curves())
            factors = weights.to(predictive.member_means)
            return scale_mixture(predictive, factors[0] if predictive.member_means.ndim == 2 else factors)
        raise TypeError(f"A calibration by {self.method!r} cannot be applied to a {type(predictive).__name__}.")

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, from which `from_dict` makes an equal map."""
        lists = {"weights": list(self.weights), "bias": list(self.bias)}
        return asdict(self) | lists | {"sizes": list(self.sizes)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The map that `to_dict` described.

        Args:
            data: Result of `to_dict`.
        """
        lists = {name: tuple(data.get(name, ())) for name in ("weights", "bias", "sizes")}
        return cls(**{**data, **lists})


def is_calibration(data: object) -> bool:
    """Whether data are those of a map, with as many finite numbers as its method has.

    Args:
        data: Read from a file.
    """
    names = {field.name for field in fields(CalibrationMap)}
    if not isinstance(data, dict) or set(data) | {"sizes"} != names:  # maps of 0.2 before `isotonic` have no sizes
        return False
    method, weights, bias, sizes = data["method"], data["weights"], data["bias"], data.get("sizes", [])
    if method not in get_args(CalibrationMethod) or not all(isinstance(v, list) for v in (weights, bias, sizes)):
        return False
    numbers = [*weights, *bias, *sizes, data["num_examples"], data["nll_raw"], data["nll_calibrated"]]
    if not weights or not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
        return False
    if method in MONOTONE_METHODS:
        return _are_curves(weights, bias, sizes, is_strict=method == "quantile")
    counts = {"temperature": (1, 0), "vector": (len(bias),) * 2, "dirichlet": (len(bias) ** 2, len(bias))}
    return (
        not sizes
        and (len(weights), len(bias)) == counts.get(method, (len(weights), 0))
        and (method not in ("temperature", "scale") or min(weights) > 0)
    )


def _are_curves(knots: list[float], values: list[float], sizes: list[float], *, is_strict: bool) -> bool:
    """Whether these are the knots and values of increasing functions, at least one knot each."""
    if not all(isinstance(size, int) and size > 0 for size in sizes) or not sum(sizes) == len(knots) == len(values):
        return False
    starts = set(itertools.accumulate(sizes))
    pairs = [k for k in range(1, len(knots)) if k not in starts]
    rises = all(values[k] > values[k - 1] if is_strict else values[k] >= values[k - 1] for k in pairs)
    return rises and all(knots[k] > knots[k - 1] for k in pairs)


def fit_calibration(
    predictive: Predictive, targets: Tensor, method: CalibrationMethod | None = None
) -> CalibrationMap:
    """Fit a calibration map to validation examples.

    Args:
        predictive: Predictions of examples that were not used for training.
        targets: Their class indices or numbers.
        method: None takes `temperature` for classes, which changes no decision, and `scale` for numbers.

    Raises:
        TypeError: There is no calibration for this kind of prediction.
        ValueError: The method is not for this kind of prediction, or the targets do not match the predictions.

    Warns:
        CalibrationWarning: There are fewer than 10 examples, or for `isotonic` than 100.

    Examples:
        >>> calibration = fit_calibration(
        ...     fitted.predict(data.val.inputs), data.val.targets, "vector"
        ... )
        >>> len(calibration.weights), len(calibration.bias), calibration.num_examples
        (10, 10, 100)
    """
    targets = check_targets(predictive, targets)
    if isinstance(predictive, GaussianPredictive):
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
            weights, bias = _fit_classes(log_probs, labels.long(), method)
    num_required = MIN_ISOTONIC_EXAMPLES if method == "isotonic" else MIN_EXAMPLES
    warn_if_few(len(targets), num_required, f"the calibration map {method!r}", "It may be worse than none")
    sizes: tuple[int, ...] = ()
    if method in MONOTONE_METHODS:
        knots, values = ([number for curve in curves for number in curve[end]] for end in (0, 1))
        sizes = tuple(len(curve[0]) for curve in curves)
    else:
        knots, values = weights.reshape(-1).tolist(), bias.tolist()
    calibration = CalibrationMap(method, tuple(knots), tuple(values), len(targets), math.nan, math.nan, sizes)
    losses = [mean_nll(candidate, targets) for candidate in (predictive, calibration.apply(predictive))]
    return replace(calibration, nll_raw=losses[0], nll_calibrated=losses[1])


def transform_log_probs(
    log_probs: Float[Tensor, "examples classes"], weights: Tensor, bias: Tensor
) -> Float[Tensor, "examples classes"]:
    """Log probabilities log_softmax(W log p + b), W a number without bias, a diagonal, or a matrix; or isotonic.

    Args:
        log_probs: log p.
        weights: 1 / T with 0 axes, w with 1 axis, or W with 2 axes; knots where the bias has 2 axes.
        bias: b; not used for a temperature; with 2 axes values at the knots.
    """
    if bias.ndim == 2:
        return apply_isotonic(log_probs, weights, bias)
    if weights.ndim == 0:
        return torch.log_softmax(weights * log_probs, -1)
    log_probs = log_probs.clamp_min(MIN_LOG_PROB)
    scores = weights * log_probs if weights.ndim == 1 else log_probs @ weights.T
    return torch.log_softmax(scores + bias, -1)


def scale_mixture(predictive: GaussianPredictive, factors: Tensor) -> GaussianPredictive:
    """Mixtures stretched about their mean: the distribution of m + factor (Y - m).

    Args:
        predictive: The mixtures.
        factors: One factor, or one for each target.
    """
    mean = predictive.mean
    return GaussianPredictive(mean + factors * (predictive.member_means - mean), factors * predictive.member_stds)


def mean_nll(predictive: Predictive, targets: Tensor) -> float:
    """Mean negative log likelihood.

    Args:
        predictive: Predictions of classes or numbers.
        targets: Class indices or numbers.
    """
    if isinstance(predictive, CategoricalPredictive):
        return nll(predictive.log_probs, targets)
    predictive = cast("GaussianPredictive", predictive)
    return -float(to_double(predictive.log_prob(targets)).mean())


def _fit_classes(
    log_probs: Float[Tensor, "examples classes"], labels: Int[Tensor, " examples"], method: str
) -> tuple[Tensor, Tensor]:
    num_classes = log_probs.shape[1]
    if method == "temperature":
        temperature = fit_temperature(log_probs, labels)
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
    weights, bias = identity.clone().requires_grad_(), torch.zeros_like(ones).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weights, bias], max_iter=500, tolerance_grad=1e-9, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = penalized_nll(log_probs, labels, weights, bias, identity)
        torch.autograd.backward(loss)
        return loss.detach()

    with torch.enable_grad():
        optimizer.step(closure)
    return weights.detach(), bias.detach()


def penalized_nll(log_probs: Tensor, labels: Tensor, weights: Tensor, bias: Tensor, identity: Tensor) -> Tensor:
    """Mean NLL + (|W - I|^2 + |b|^2) / (2 n): the negative log posterior of n examples divided by n."""
    losses = torch.nn.functional.nll_loss(transform_log_probs(log_probs, weights, bias), labels)
    return losses + ((weights - identity).square().sum() + bias.square().sum()) / (2 * len(labels))


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


def _check_count(expected: int, count: int, kind: str) -> None:
    if expected != count:
        raise ValueError(f"The calibration was fitted to predictions of {expected} {kind}, got {count} {kind}.")
