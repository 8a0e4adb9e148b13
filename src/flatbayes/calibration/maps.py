"""Calibration maps of predictions, fitted to validation examples: what a posterior predicts, corrected afterwards.

Classes, with p the averaged probabilities of all networks:

    temperature  p' = softmax(log p / T)               Guo et al., ICML 2017
    vector       p' = softmax(w * log p + b)           Guo et al., ICML 2017
    dirichlet    p' = softmax(W log p + b)             Kull et al., NeurIPS 2019
    isotonic     p'_c = iso_c(p_c) / sum               Zadrozny & Elkan, KDD 2002

Several labels of an example, each a prediction of two classes with the log odds z: `temperature` gives z / T, and
`vector` gives w z + b with a weight and a bias for each label (Platt scaling).

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
from typing import Any, Literal, Self, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from flatbayes.calibration.isotonic import apply_isotonic, stack_curves
from flatbayes.core.display import format_fields
from flatbayes.core.names import format_count
from flatbayes.likelihoods import BernoulliPredictive, GaussianPredictive, Predictive, RecalibratedPredictive
from flatbayes.likelihoods.categorical_predictive import ClassProbabilities, categorical_entropy

CalibrationMethod = Literal["temperature", "vector", "dirichlet", "isotonic", "scale", "quantile"]
"""Kinds of maps; `scale` and `quantile` are those of numbers."""
LABEL_METHODS = ("temperature", "vector")
"""Kinds of maps of several labels."""
NUMBER_METHODS, MONOTONE_METHODS = ("scale", "quantile"), ("isotonic", "quantile")
MIN_LOG_PROB = -80.0
"""Smallest log probability that `vector` and `dirichlet` tell from a smaller one, within the range of float32."""


@dataclass(frozen=True)
class CalibrationMap:
    """A map of predictions to calibrated predictions; made by `fit_calibration`.

    Attributes:
        method: Kind of the map.
        weights: 1 / T; w, one for each class or label; the rows of W one after another; the factor of each target; or
            the knots of the monotone functions of all classes or targets, one after another.
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
            f"{self.method}{value}, fitted to {format_count(self.num_examples, 'example')}: their NLL "
            f"{self.nll_raw:.4g} became {self.nll_calibrated:.4g}"
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

        For classes and labels, the mutual information stays that of the networks, at most the entropy; predictions of
        single networks and their variances are not changed. For numbers, `scale` keeps means and multiplies standard
        deviations; `quantile` gives a `RecalibratedPredictive`, whose moments all differ.

        Args:
            predictive: Predictions of the posterior for which the map was fitted.

        Raises:
            TypeError: The map is not for predictions of this kind.
            ValueError: The map is for another number of classes, labels or targets.
        """
        weights, bias = self.get_parameters()
        if self.method not in NUMBER_METHODS and isinstance(predictive, ClassProbabilities):
            num_classes = predictive.log_probs.shape[-1]
            _check_count(len(bias) or num_classes, num_classes, "classes")
            log_probs = transform_log_probs(
                predictive.log_probs, weights.to(predictive.log_probs), bias.to(predictive.log_probs)
            )
            information = predictive.mutual_information
            expected_entropy = (categorical_entropy(log_probs) - information).clamp_min(0.0)
            return replace(predictive, log_probs=log_probs, expected_entropy=expected_entropy)
        if self.method in LABEL_METHODS and isinstance(predictive, BernoulliPredictive):
            num_labels = predictive.log_probs.shape[1]
            _check_count(len(bias) or num_labels, num_labels, "labels")
            log_probs = transform_label_log_probs(
                predictive.log_probs, weights.to(predictive.log_probs), bias.to(predictive.log_probs)
            )
            information = (predictive.label_entropies - predictive.expected_entropies).clamp_min(0.0)
            expected_entropies = (categorical_entropy(log_probs) - information).clamp_min(0.0)
            return replace(predictive, log_probs=log_probs, expected_entropies=expected_entropies)
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
    """Whether data are those of a map, with as many finite numbers as its method has."""
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


def transform_label_log_probs(
    log_probs: Float[Tensor, "examples labels 2"], weights: Tensor, bias: Tensor
) -> Float[Tensor, "examples labels 2"]:
    """Log probabilities of the values 0 and 1 of labels, whose log odds z become w z + b.

    One weight, with 0 axes, is that of all labels, without a bias.
    """
    if weights.ndim == 0:
        return torch.log_softmax(weights * log_probs, -1)
    log_probs = log_probs.clamp_min(MIN_LOG_PROB)
    log_odds = weights * (log_probs[..., 1] - log_probs[..., 0]) + bias
    return torch.stack([logsigmoid(-log_odds), logsigmoid(log_odds)], -1)


def scale_mixture(predictive: GaussianPredictive, factors: Tensor) -> GaussianPredictive:
    """Mixtures stretched about their mean by one factor, or one for each target: m + factor (Y - m)."""
    mean = predictive.mean
    return GaussianPredictive(mean + factors * (predictive.member_means - mean), factors * predictive.member_stds)


def _check_count(expected: int, count: int, kind: str) -> None:
    if expected != count:
        raise ValueError(f"The calibration was fitted to predictions of {expected} {kind}, got {count} {kind}.")
