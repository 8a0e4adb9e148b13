"""What distributions of torch lack: distribution functions, and moments and densities of all values.

`torch.distributions` has no distribution function for counts, StudentT and Beta; here they are those of SciPy.
Moments of StudentT are computed without a selection of rows, which could not be traced.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributions
from torch.distributions import Distribution, constraints

from flatbayes.likelihoods.zero_inflated import ZeroInflated

_VALIDATION_LOCK = threading.RLock()


@contextmanager
def set_validation(enabled: bool) -> Iterator[None]:
    """Inside, new distributions of torch do, or do not, check parameters and values where the user did not say.

    The checks wait for an accelerator, and cannot be vectorized.
    """
    with _VALIDATION_LOCK:
        outer = bool(Distribution._validate_args)
        Distribution.set_default_validate_args(enabled)
        try:
            yield
        finally:
            Distribution.set_default_validate_args(outer)


def unwrap_independent(distribution: Distribution) -> Distribution:
    """The distribution of each target, where those of an example are independent.

    >>> unwrap_independent(distributions.Independent(distributions.Poisson(torch.ones(2, 3)), 1)).batch_shape
    torch.Size([2, 3])
    """
    while isinstance(distribution, distributions.Independent):
        distribution = distribution.base_dist
    return distribution


def get_support(distribution: Distribution) -> constraints.Constraint:
    """The set of the possible values.

    Raises:
        ValueError: The distribution has none.
    """
    support: constraints.Constraint | None = distribution.support
    if support is None:
        raise ValueError(f"{type(distribution).__name__} does not say which values are possible: define its support.")
    return support


def is_discrete(distribution: Distribution) -> bool:
    """Whether the values are whole numbers."""
    return bool(get_support(distribution).is_discrete)


def find_bounds(support: constraints.Constraint) -> tuple[Tensor | float, Tensor | float]:
    """Smallest and largest value of a support; infinite where there is none.

    >>> find_bounds(constraints.positive), find_bounds(constraints.unit_interval)
    ((0.0, inf), (0.0, 1.0))
    """
    inner = getattr(support, "base_constraint", support)
    low, high = getattr(inner, "lower_bound", -np.inf), getattr(inner, "upper_bound", np.inf)
    if inner is constraints.boolean:
        return 0.0, 1.0
    return (low if isinstance(low, Tensor) else float(low)), (high if isinstance(high, Tensor) else float(high))


def compute_moments(distribution: Distribution) -> tuple[Tensor, Tensor]:
    """Mean and variance, each of the batch and event shape; infinite or NaN where there is none.

    Raises:
        NotImplementedError: torch has none of this distribution.

    Examples:
        >>> compute_moments(distributions.StudentT(torch.tensor([3.0, 2.0, 1.0])))
        (tensor([0., 0., nan]), tensor([3., inf, nan]))
    """
    match distribution:
        case distributions.StudentT():  # that of torch selects rows by their values
            df, undefined = distribution.df, distribution.loc.new_full((), torch.nan)
            variance = torch.where(df > 2, distribution.scale.square() * df / (df - 2), torch.inf)
            return torch.where(df > 1, distribution.loc, undefined), torch.where(df > 1, variance, undefined)
        case _:
            return distribution.mean, distribution.variance


def compute_log_prob(distribution: Distribution, values: Tensor) -> Tensor:
    """Log density or probability; minus infinity outside of the support."""
    with set_validation(False):
        log_probs: Tensor = distribution.log_prob(values)
    is_inside = get_support(distribution).check(values)
    return torch.where(is_inside, log_probs, -torch.inf)


def compute_cdf(distribution: Distribution, values: Tensor) -> Tensor:
    """P(Y <= value) of each target, for values of the shape (..., *batch_shape).

    Raises:
        NotImplementedError: It is not known for this family.
    """
    match distribution:
        case ZeroInflated():
            base, zero_probs = compute_cdf(distribution.base, values), distribution.zero_probs
            return torch.where(values >= 0, zero_probs + (1 - zero_probs) * base, 0.0)
        case distributions.MixtureSameFamily():
            members = compute_cdf(distribution.component_distribution, values[..., None])
            return (distribution.mixture_distribution.probs * members).sum(-1)
        case distributions.Poisson():
            counts = values.floor().clamp_min(0)
            return _zero_below(values, _call_scipy("gammaincc", counts + 1, distribution.rate))
        case distributions.NegativeBinomial():
            counts, failures = values.floor().clamp_min(0), (-distribution.logits).sigmoid()
            return _zero_below(values, _call_scipy("betainc", distribution.total_count, counts + 1, failures))
        case distributions.Geometric():
            return _zero_below(values, 1 - (1 - distribution.probs) ** (values.floor().clamp_min(0) + 1))
        case distributions.Binomial():
            counts = torch.minimum(values.floor().clamp_min(0), distribution.total_count)
            rest = distribution.total_count - counts
            below = _call_scipy("betainc", rest.clamp_min(1), counts + 1, 1 - distribution.probs)
            return _zero_below(values, torch.where(rest > 0, below, 1.0))
        case distributions.StudentT():
            return _call_scipy("stdtr", distribution.df, (values - distribution.loc) / distribution.scale)
        case distributions.Gamma():
            return _call_scipy("gammainc", distribution.concentration, distribution.rate * values.clamp_min(0))
        case distributions.Beta():
            parameters = (distribution.concentration1, distribution.concentration0)
            return _call_scipy("betainc", *parameters, values.clamp(0, 1))
        case _:
            return _clamp_cdf(distribution, values)


def _clamp_cdf(distribution: Distribution, values: Tensor) -> Tensor:
    """The function of torch, and 0 below and 1 above the support, where it may not be defined."""
    low, high = find_bounds(get_support(distribution))
    is_below, is_above = values <= low, values >= high
    with set_validation(False):
        inner = distribution.cdf(torch.where(is_below | is_above, _find_inner(low, high, values), values))
    return torch.where(is_below, 0.0, torch.where(is_above, 1.0, inner))


def _find_inner(low: Tensor | float, high: Tensor | float, like: Tensor) -> Tensor:
    """Values inside of an interval, which may be infinite."""
    low, high = (torch.as_tensor(bound, dtype=like.dtype, device=like.device) for bound in (low, high))
    inner = torch.where(low.isfinite(), low + 1, torch.where(high.isfinite(), high - 1, torch.zeros_like(low)))
    return torch.where(low.isfinite() & high.isfinite(), (low + high) / 2, inner)


def _zero_below(values: Tensor, cdf: Tensor) -> Tensor:
    return torch.where(values >= 0, cdf, 0.0)


def _call_scipy(name: str, *arguments: Tensor) -> Tensor:
    """A special function of SciPy, in double precision on the CPU."""
    from scipy import special  # slow to import

    function: Callable[..., Any] = getattr(special, name)
    arrays = [np.asarray(argument.detach().cpu().double()) for argument in arguments]
    return torch.from_numpy(np.asarray(function(*arrays))).to(arguments[-1])
