"""Gaussian likelihood for regression: a network outputs the mean and the standard deviation of a normal distribution.

The noise may depend on the input (Nix & Weigend, ICNN 1994); a network with constant raw scales makes it
homoscedastic (`MLP(constant_scale=True)`). The Bayesian model average is the mixture of the networks' normal
distributions, without moment matching.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from flatbayes.core.devices import is_accelerator, to_double, widest_float_dtype
from flatbayes.likelihoods import mixture
from flatbayes.likelihoods.likelihood import Likelihood, Predictive

DEFAULT_INTERVAL_LEVEL = 0.95


@dataclass(frozen=True, eq=False)
class GaussianPredictive(Predictive):
    """Equal mixtures of normal distributions, in the unit of the targets.

    With one target there is no axis of targets, so that predictions have the shape of the targets. Memory grows
    with the number of draws, since quantiles need all of them.

    Attributes:
        member_means: Predicted mean of each network, float64; float32 on a device that has no float64.
        member_stds: Predicted standard deviation of the noise of each network, in the same dtype.
    """

    member_means: Float[Tensor, "draws examples ..."]
    member_stds: Float[Tensor, "draws examples ..."]

    @property
    def mean(self) -> Float[Tensor, "examples ..."]:
        """Expected target."""
        return self.member_means.mean(0)

    @property
    def variance(self) -> Float[Tensor, "examples ..."]:
        """Variance of the target: aleatoric + epistemic."""
        return self.aleatoric + self.epistemic

    @property
    def std(self) -> Float[Tensor, "examples ..."]:
        """Square root of the variance."""
        return self.variance.sqrt()

    @property
    def aleatoric(self) -> Float[Tensor, "examples ..."]:
        """Mean variance of the noise, which more data would not reduce."""
        return self.member_stds.square().mean(0)

    @property
    def epistemic(self) -> Float[Tensor, "examples ..."]:
        """Variance of the networks' means, with the number of networks as divisor."""
        return self.member_means.var(0, correction=0)

    @property
    def entropy(self) -> Float[Tensor, " examples"]:
        """Entropy of the mixture in nats, integrated numerically; for several targets, the sum, an upper bound."""
        return _sum_targets(mixture.mixture_entropy(self.member_means, self.member_stds))

    @property
    def mutual_information(self) -> Float[Tensor, " examples"]:
        """Entropy of the mixture minus mean entropy of the networks, at least zero; summed over the targets."""
        noise = mixture.normal_entropy(self.member_stds).mean(0)
        return _sum_targets((mixture.mixture_entropy(self.member_means, self.member_stds) - noise).clamp_min(0.0))

    def interval(
        self, level: float = DEFAULT_INTERVAL_LEVEL
    ) -> tuple[Float[Tensor, "examples ..."], Float[Tensor, "examples ..."]]:
        """Ends of the central interval: the target is below, and above it, with probability (1 - level) / 2.

        Args:
            level: Probability of the interval.

        Raises:
            ValueError: The level is not strictly between 0 and 1.
        """
        if not 0 < level < 1:
            raise ValueError(f"The level of an interval lies strictly between 0 and 1, got {level}.")
        low, high = (
            mixture.mixture_quantile(probability, self.member_means, self.member_stds)
            for probability in ((1 - level) / 2, (1 + level) / 2)
        )
        return low, high

    def cdf(self, targets: Float[Tensor, "examples ..."]) -> Float[Tensor, "examples ..."]:
        """P(Y <= target), separately for each target.

        Args:
            targets: Of the shape of the predictions, in their unit.

        Raises:
            ValueError: The targets have another shape than the predictions.
        """
        return mixture.mixture_cdf(self._prepare_targets(targets), self.member_means, self.member_stds)

    def log_prob(self, targets: Float[Tensor, "examples ..."]) -> Float[Tensor, " examples"]:
        """Log density of the mixture, jointly for all targets of an example, per unit of the targets.

        Args:
            targets: Of the shape of the predictions, in their unit.

        Raises:
            ValueError: The targets have another shape than the predictions.
        """
        log_densities = mixture.normal_log_density(
            self._prepare_targets(targets), self.member_means, self.member_stds
        )
        return mixture.log_mean_density(log_densities if log_densities.ndim == 2 else log_densities.sum(-1))

    def columns(self, names: Sequence[str] | None = None) -> Mapping[str, NDArray[np.generic]]:
        """`mean`, `std`, `lower` and `upper` end of the 95 % interval, `aleatoric`, `epistemic`, `epistemic_std`.

        Args:
            names: Names of the targets; None numbers them. With several targets each column is `<quantity>_<name>`.
        """
        lower, upper = self.interval()
        quantities = {
            "mean": self.mean,
            "std": self.std,
            "lower": lower,
            "upper": upper,
            "aleatoric": self.aleatoric,
            "epistemic": self.epistemic,
            "epistemic_std": self.epistemic.sqrt(),
        }
        if self.member_means.ndim == 2:
            return {name: values.cpu().numpy() for name, values in quantities.items()}
        names = [str(k) for k in range(self.member_means.shape[2])] if names is None else names
        return {
            f"{name}_{target}": values[:, k].cpu().numpy()
            for k, target in enumerate(names)
            for name, values in quantities.items()
        }

    @classmethod
    def concatenate(cls, predictions: Sequence[Self]) -> Self:
        """Join predictions for several batches of examples, in order."""
        return cls(
            torch.cat([p.member_means for p in predictions], dim=1),
            torch.cat([p.member_stds for p in predictions], dim=1),
        )

    def _prepare_targets(self, targets: Tensor) -> Tensor:
        shape = self.member_means.shape[1:]
        if targets.shape != shape:
            raise ValueError(
                f"The predictions have the shape {tuple(shape)}, and the targets {tuple(targets.shape)}. Give one "
                "target for each prediction, in the same order."
            )
        return targets.to(self.member_means)


@dataclass(frozen=True)
class Gaussian(Likelihood):
    """Targets are numbers; outputs are the means, then the raw scales, of standardised targets.

    target = location + scale * (mean + std * noise) with std = floor + softplus(raw scale). With the location and
    scale of the training targets (`Gaussian.fit`), training does not depend on their unit; losses and predictions are
    in the unit of the targets.

    Attributes:
        num_targets: Number of targets of each example; a network has twice as many outputs.
        location: Subtracted from each target in standardisation, one number per target; () for zeros.
        scale: Divisor of each target in standardisation, one number per target; () for ones.
        floor: Smallest standard deviation of the noise, as a fraction of the scale. It bounds the density, and so the
            gradient, where a network fits some targets exactly.
    """

    num_targets: int = 1
    location: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
    floor: float = 0.01

    def __post_init__(self) -> None:
        if self.num_targets < 1:
            raise ValueError(f"Regression needs at least 1 target, got num_targets={self.num_targets}.")
        for name, default in (("location", 0.0), ("scale", 1.0)):
            values = tuple(float(value) for value in getattr(self, name)) or (default,) * self.num_targets
            if len(values) != self.num_targets or not all(map(math.isfinite, values)):
                raise ValueError(
                    f"{name} must be {self.num_targets} finite numbers, one for each target, got {values}. "
                    "Gaussian.fit computes them from training targets."
                )
            object.__setattr__(self, name, values)
        if min(self.scale) <= 0:
            raise ValueError(f"scale must be positive, got {self.scale}: a constant target cannot be standardised.")
        if not 0 < self.floor < math.inf:
            raise ValueError(f"floor must be positive and finite, got {self.floor}.")

    @staticmethod
    def fit(targets: Float[Tensor, "examples ..."], floor: float = 0.01) -> "Gaussian":
        """Make the likelihood that standardises by the mean and standard deviation of these targets.

        Args:
            targets: Training targets, shape (examples,) or (examples, targets).
            floor: See `Gaussian`.

        Raises:
            ValueError: There are none, some are not finite, or one of them is constant.
        """
        if targets.ndim not in (1, 2) or not len(targets):
            raise ValueError(
                f"Expected targets of the shape (examples,) or (examples, targets), at least one, got "
                f"{tuple(targets.shape)}."
            )
        rows = to_double(targets.detach()).reshape(len(targets), -1)
        if not rows.isfinite().all():
            raise ValueError(
                f"{int((~rows.isfinite()).sum())} training targets are missing or not finite. Leave them out."
            )
        constant = (rows == rows[0]).all(0).nonzero().flatten().tolist()
        if constant:
            raise ValueError(
                f"Target {constant[0]} is {float(rows[0, constant[0]]):g} in all {len(rows)} training examples, so "
                "there is nothing to learn and no scale to measure errors by. Check that it is read from the right "
                "column, or give more examples."
            )
        mean, std = rows.mean(0), rows.std(0, correction=0)
        return Gaussian(rows.shape[1], tuple(mean.tolist()), tuple(std.tolist()), floor)

    @property
    def num_outputs(self) -> int:
        """A mean and a raw scale for each target."""
        return 2 * self.num_targets

    def prepare_targets(self, targets: Tensor) -> Tensor:
        """Numbers of shape (batch, num_targets), or (batch,) for one target.

        Raises:
            ValueError: They have another shape, or are missing or not finite.
        """
        allowed = {(len(targets), self.num_targets), (len(targets), *self._target_shape)} if targets.ndim else set()
        if tuple(targets.shape) not in allowed or targets.is_complex():
            raise ValueError(
                f"Each example must have {self.num_targets} targets, shape (examples, {self.num_targets}); "
                f"got {targets.dtype} of shape {tuple(targets.shape)}. Gaussian.fit(targets) makes the likelihood of "
                "such targets."
            )
        if not is_accelerator(targets) and targets.is_floating_point():
            is_wrong = ~targets.isfinite()
            if is_wrong.any():
                raise ValueError(
                    f"{int(is_wrong.sum())} targets are missing or not finite; the first is in row "
                    f"{int(is_wrong.nonzero()[0, 0])} of its batch (counted from 0). Leave these examples out."
                )
        return targets

    def loss(self, outputs: Float[Tensor, "batch outputs"], targets: Float[Tensor, "batch ..."]) -> Float[Tensor, ""]:
        """Mean negative log density, summed over the targets of an example, per unit of the targets.

        Args:
            outputs: Means, then raw scales, of standardised targets, shape (batch, 2 * num_targets).
            targets: In their own unit, shape (batch, num_targets), or (batch,) for one target.

        Raises:
            ValueError: The outputs are not a mean and a raw scale for each target, or the targets have no such shape.
        """
        mean, std = self.split_outputs(outputs if outputs.dtype == torch.float64 else outputs.float())
        dtype = widest_float_dtype(mean)  # equal numbers in float32 and float64
        location, scale = _location_scale_tensors(self.location, self.scale, dtype, mean.device)
        if targets.shape != outputs.shape[:1] + self._target_shape and targets.shape != mean.shape:
            raise ValueError(
                f"Expected targets of the shape {(len(outputs), *self._target_shape)}, got {tuple(targets.shape)}."
            )
        standardized = ((targets.reshape(mean.shape).to(dtype) - location) / scale).to(mean.dtype)
        return sum(map(math.log, self.scale)) - mixture.normal_log_density(standardized, mean, std).sum(-1).mean()

    def predictive(
        self, outputs: Iterable[Float[Tensor, "batch outputs"]], *, keep_members: bool = False
    ) -> GaussianPredictive:
        """The mixture of the networks' normal distributions.

        Args:
            outputs: Outputs of each network for the same examples. Iterated once.
            keep_members: Has no effect, since members are always kept.

        Raises:
            ValueError: The outputs are not a mean and a raw scale for each target, or there are none.
        """
        means, stds = [], []
        for member_outputs in outputs:
            mean, std = self.split_outputs(to_double(member_outputs))
            location, scale = _location_scale_tensors(self.location, self.scale, mean.dtype, mean.device)
            means.append((location + scale * mean).reshape(len(mean), *self._target_shape))
            stds.append((scale * std).reshape(len(mean), *self._target_shape))
        if not means:
            raise ValueError("There is no prediction without networks: ask for at least 1 draw.")
        return GaussianPredictive(torch.stack(means), torch.stack(stds))

    def split_outputs(self, outputs: Float[Tensor, "batch outputs"]) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of standardised targets, each of shape (batch, targets).

        Args:
            outputs: Outputs of a network, shape (batch, 2 * num_targets).

        Raises:
            ValueError: The outputs are not a mean and a raw scale for each target.
        """
        if outputs.ndim != 2 or outputs.shape[1] != self.num_outputs:
            count = "1 target" if self.num_targets == 1 else f"{self.num_targets} targets"
            raise ValueError(
                f"The model gives outputs of shape {tuple(outputs.shape)}, but there is a mean and a raw scale to "
                f"predict for {count}: expected (batch, {self.num_outputs}). Change the size of its last layer, or "
                "the data."
            )
        mean, raw = outputs.chunk(2, dim=1)
        return mean, self.floor + F.softplus(raw)

    @property
    def _target_shape(self) -> tuple[int, ...]:
        return () if self.num_targets == 1 else (self.num_targets,)


@lru_cache(maxsize=16)
def _location_scale_tensors(
    location: tuple[float, ...], scale: tuple[float, ...], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    return torch.tensor(location, dtype=dtype, device=device), torch.tensor(scale, dtype=dtype, device=device)


def _sum_targets(values: Float[Tensor, "examples ..."]) -> Float[Tensor, " examples"]:
    return values if values.ndim == 1 else values.sum(-1)
