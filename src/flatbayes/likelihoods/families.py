"""Families of distributions by name: how the outputs of a network become their parameters.

o1, o2, ... are the outputs for one target, and m, s location and scale, which `fit` takes from the training targets:

    Poisson                         rate = s exp(o1)
    NegativeBinomial                mean = s exp(o1), count r = f(o2), variance = mean + mean² / r
    ZeroInflatedPoisson             the same, and sigmoid(o2) is the probability of an additional zero
    ZeroInflatedNegativeBinomial    the same, and sigmoid(o3)
    StudentT                        location = m + s o1, scale = s f(o2), degrees of freedom = 2 + f(o3)
    Laplace                         location = m + s o1, scale = s f(o2)
    LogNormal                       median = s exp(o1), standard deviation of the logarithm = f(o2)
    Gamma                           mean = s exp(o1), shape = f(o2)
    Weibull                         scale = s exp(o1), shape = f(o2)
    Beta                            mean = sigmoid(o1), sum of both parameters = f(o2)

with f(o) = 0.01 + softplus(o). Counts have the logarithm as their link, as in generalised linear models; `StudentT`
has a finite variance, with more than 2 degrees of freedom.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
import torch
from torch import Tensor, distributions
from torch.distributions import Distribution
from torch.nn import functional as F

from flatbayes.core.names import match_name
from flatbayes.likelihoods.weibull import Weibull
from flatbayes.likelihoods.zero_inflated import ZeroInflated

FLOOR = 0.01
"""Smallest value of a positive parameter; it bounds the density where a network fits some targets exactly."""
QUARTILES_PER_STD = 1.349
"""Distance between the quartiles of a standard normal distribution."""
TargetKind = Literal["counts", "numbers", "positive numbers", "fractions"]
Parameters = Sequence[Tensor]


@dataclass(frozen=True)
class Family:
    """A family of distributions.

    Attributes:
        num_parameters: Number of outputs of a network for each target.
        targets: What the targets are.
        build: Makes the distribution of outputs, location and scale, all of the shape (batch, targets).
    """

    num_parameters: int
    targets: TargetKind
    build: Callable[[Parameters, Tensor, Tensor], Distribution]

    def find_invalid(self, targets: Tensor) -> Tensor:
        """Whether each target is outside of the support, or not finite.

        Args:
            targets: Numbers of any shape.
        """
        match self.targets:
            case "counts":
                is_valid = (targets >= 0) & (targets == targets.round())
            case "positive numbers":
                is_valid = targets > 0
            case "fractions":
                is_valid = (targets > 0) & (targets < 1)
            case _:
                is_valid = torch.ones_like(targets, dtype=torch.bool)
        return ~(is_valid & targets.isfinite())


SUPPORTS: Mapping[TargetKind, str] = MappingProxyType(
    {
        "counts": "whole numbers of at least 0",
        "numbers": "finite numbers",
        "positive numbers": "numbers above 0",
        "fractions": "numbers above 0 and below 1",
    }
)
"""Supports in words."""


def to_positive(outputs: Tensor) -> Tensor:
    """FLOOR + softplus(outputs)."""
    return FLOOR + F.softplus(outputs)


def build_poisson(outputs: Parameters, location: Tensor, scale: Tensor) -> Distribution:
    """Counts whose variance is their mean."""
    return distributions.Poisson(scale * outputs[0].exp(), validate_args=False)


def build_negative_binomial(outputs: Parameters, location: Tensor, scale: Tensor) -> Distribution:
    """Counts of a larger variance: Poisson counts whose rate has a Gamma distribution of the shape r."""
    count = to_positive(outputs[1])
    logits = scale.log() + outputs[0] - count.log()  # mean = r exp(logits)
    return distributions.NegativeBinomial(count, logits=logits, validate_args=False)


def inflate_zeros(base: Callable[[Parameters, Tensor, Tensor], Distribution]) -> Callable[..., Distribution]:
    """The zero-inflated family of a family of counts, whose last output is the logit of an additional zero."""

    def build(outputs: Parameters, location: Tensor, scale: Tensor) -> Distribution:
        return ZeroInflated(base(outputs[:-1], location, scale), outputs[-1], validate_args=False)

    return build


def build_student_t(outputs: Parameters, location: Tensor, scale: Tensor) -> Distribution:
    """Numbers with outliers."""
    df, width = 2 + to_positive(outputs[2]), scale * to_positive(outputs[1])
    return distributions.StudentT(df, location + scale * outputs[0], width, validate_args=False)


def build_laplace(outputs: Parameters, location: Tensor, scale: Tensor) -> Distribution:
    """Numbers whose median is learnt with the absolute error."""
    width = scale * to_positive(outputs[1])
    return distributions.Laplace(location + scale * outputs[0], width, validate_args=False)


def build_log_normal(outputs: Parameters, location: Tensor, scale: Tensor) -> Distribution:
    """Positive numbers whose logarithm is normal."""
    return distributions.LogNormal(scale.log() + outputs[0], to_positive(outputs[1]), validate_args=False)


def build_gamma(outputs: Parameters, location: Tensor, scale: Tensor) -> Distribution:
    """Positive numbers, such as amounts."""
    shape = to_positive(outputs[1])
    return distributions.Gamma(shape, shape / (scale * outputs[0].exp()), validate_args=False)


def build_weibull(outputs: Parameters, location: Tensor, scale: Tensor) -> Distribution:
    """Positive numbers, such as lifetimes."""
    return Weibull(scale * outputs[0].exp(), to_positive(outputs[1]), validate_args=False)


def build_beta(outputs: Parameters, location: Tensor, scale: Tensor) -> Distribution:
    """Fractions between 0 and 1."""
    total = to_positive(outputs[1])
    parameters = (total * outputs[0].sigmoid(), total * (-outputs[0]).sigmoid())
    return distributions.Beta(*parameters, validate_args=False)


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "Poisson": Family(1, "counts", build_poisson),
        "NegativeBinomial": Family(2, "counts", build_negative_binomial),
        "ZeroInflatedPoisson": Family(2, "counts", inflate_zeros(build_poisson)),
        "ZeroInflatedNegativeBinomial": Family(3, "counts", inflate_zeros(build_negative_binomial)),
        "StudentT": Family(3, "numbers", build_student_t),
        "Laplace": Family(2, "numbers", build_laplace),
        "LogNormal": Family(2, "positive numbers", build_log_normal),
        "Gamma": Family(2, "positive numbers", build_gamma),
        "Weibull": Family(2, "positive numbers", build_weibull),
        "Beta": Family(2, "fractions", build_beta),
    }
)
"""All families by name."""


def find_family(name: object) -> str | None:
    """The name of a family, written in any case and with or without underscores; None if there is none.

    >>> find_family("negative_binomial"), find_family("Gaussian")
    ('NegativeBinomial', None)
    """
    return match_name(name.replace("_", "").replace(" ", ""), FAMILIES) if isinstance(name, str) else None


def standardize_targets(kind: TargetKind, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Location and scale of each column of targets, float64.

    For counts the scale is the mean, for positive numbers the median. For numbers location and scale are the median,
    and the distance between the quartiles in standard deviations of a normal distribution, which outliers do not
    change; it is the standard deviation where half of the targets are equal.
    """
    zeros = torch.zeros(targets.shape[1], dtype=torch.float64)
    match kind:
        case "counts":
            return zeros, targets.mean(0)
        case "positive numbers":
            return zeros, compute_quantiles(targets, 0.5)
        case "numbers":
            low, median, high = (compute_quantiles(targets, probability) for probability in (0.25, 0.5, 0.75))
            scale = (high - low) / QUARTILES_PER_STD
            return median, torch.where(scale > 0, scale, targets.std(0, correction=0))
        case _:
            return zeros, zeros + 1


def compute_quantiles(values: Tensor, probability: float) -> Tensor:
    """A quantile of each column; torch has a limit on the number of values."""
    return torch.from_numpy(np.atleast_1d(np.quantile(values.numpy(), probability, axis=0)))
