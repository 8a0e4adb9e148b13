"""Gaussian likelihood for regression: a network outputs the mean and the standard deviation of a normal distribution.

The noise may depend on the input (Nix & Weigend, ICNN 1994); a network with constant raw scales makes it
homoscedastic (`ConstantScale`). The Bayesian model average is the mixture of the networks' normal distributions,
without moment matching.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from flatbayes.core.devices import is_accelerator, to_double, widest_float_dtype
from flatbayes.core.display import format_fields
from flatbayes.core.gaussians import invert_softplus
from flatbayes.core.input_trees import FLATTEN_ADVICE
from flatbayes.core.names import format_count
from flatbayes.likelihoods import mixture
from flatbayes.likelihoods.gaussian_predictive import GaussianPredictive
from flatbayes.likelihoods.likelihood import Likelihood, format_wrong_outputs


@dataclass(frozen=True)
class Gaussian(Likelihood):
    """Targets are numbers; outputs are the means, then the raw scales, of standardised targets.

    target = location + scale * (mean + std * noise), std = noise_factor (floor + softplus(raw scale + offset)).
    With the location and scale of the training targets (`Gaussian.fit`), training does not depend on their unit;
    losses and predictions are in the unit of the targets.

    Attributes:
        num_targets: Number of targets of each example; a network has twice as many outputs.
        location: Subtracted from each target in standardisation, one number per target; () for zeros.
        scale: Divisor of each target in standardisation, one number per target; () for ones.
        floor: Smallest standard deviation of the noise, as a fraction of the scale. It bounds the density, and so the
            gradient, where a network fits some targets exactly.
        initial_std: Standard deviation of the noise at raw scale 0, as a fraction of the scale, one number per
            target, above the floor; it sets the offset. () is an offset of zero, a noise of 0.69 above the floor.
        noise_factor: Factor on the standard deviation of the noise, since a network that overfits learns too little
            noise. `auto`: 1 in training, and chosen on validation examples after it. None: `auto` where the number
            of epochs is automatic, otherwise 1.

    Examples:
        >>> likelihood = Gaussian.fit(torch.tensor([10.0, 20.0, 30.0]))
        >>> likelihood.location, likelihood.num_outputs
        ((20.0,), 2)
        >>> likelihood.predictive([torch.zeros(1, 2), torch.zeros(1, 2)]).mean
        tensor([20.], dtype=torch.float64)
    """

    num_targets: int = 1
    location: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
    floor: float = 0.01
    initial_std: tuple[float, ...] = ()
    noise_factor: float | Literal["auto"] | None = None

    __repr__ = format_fields

    def __post_init__(self) -> None:
        if self.num_targets < 1:
            raise ValueError(f"Regression needs at least 1 target, got num_targets={self.num_targets}.")
        for name, values in resolve_unit(self.location, self.scale, self.num_targets, "Gaussian").items():
            object.__setattr__(self, name, values)
        if not 0 < self.floor < math.inf:
            raise ValueError(f"floor must be positive and finite, got {self.floor}.")
        object.__setattr__(self, "initial_std", tuple(float(std) for std in self.initial_std))
        if self.initial_std and not (
            len(self.initial_std) == self.num_targets and self.floor < min(self.initial_std) < math.inf
        ):
            raise ValueError(
                f"initial_std must be one number for each of {format_count(self.num_targets, 'target')}, above the "
                f"floor {self.floor}; got {self.initial_std}."
            )
        factor = self.noise_factor
        if factor not in (None, "auto") and (isinstance(factor, str) or not 0 < factor < math.inf):
            raise ValueError(f"noise_factor must be positive and finite, or 'auto' or None; got {factor!r}.")

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
                f"{tuple(targets.shape)}.{f' {FLATTEN_ADVICE}' if targets.ndim > 2 else ''}"
            )
        rows = to_double(targets.detach()).reshape(len(targets), -1)
        if not rows.isfinite().all():
            raise ValueError(
                f"{format_count(int((~rows.isfinite()).sum()), 'training target is', 'training targets are')} "
                "missing or not finite. Leave such examples out."
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
            fit_advice = "Gaussian.fit(targets) makes the likelihood of such targets."
            raise ValueError(
                f"Each example must have {format_count(self.num_targets, 'target')}, shape (examples, "
                f"{self.num_targets}); got {targets.dtype} of shape {tuple(targets.shape)}. "
                f"{FLATTEN_ADVICE if targets.ndim > 2 else fit_advice}"
            )
        if not is_accelerator(targets) and targets.is_floating_point():
            is_wrong = ~targets.isfinite()
            if is_wrong.any():
                raise ValueError(
                    f"{format_count(int(is_wrong.sum()), 'target is', 'targets are')} missing or not finite; the "
                    f"first is in row {int(is_wrong.nonzero()[0, 0])} of its batch (counted from 0). Leave these "
                    "examples out."
                )
        return targets

    def check_outputs(self, outputs: Tensor) -> None:
        """Check that there is a mean and a raw scale for each target.

        Args:
            outputs: Outputs of a network for a batch.

        Raises:
            ValueError: They have another shape.
        """
        if outputs.ndim == 2 and outputs.shape[1] == self.num_outputs:
            return
        need = f"there is a mean and a raw scale to predict for {format_count(self.num_targets, 'target')}"
        message = format_wrong_outputs(outputs, need, self.num_outputs, f" {FLATTEN_ADVICE}")
        if outputs.shape[1:] in (self._target_shape, (self.num_targets,)):
            count = f", {self.num_targets}" if self.num_targets > 1 else ""
            message += f" A network of means, as for torch.nn.MSELoss, keeps them: ConstantScale(network{count})."
        raise ValueError(message)

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
        location, scale = location_scale_tensors(self.location, self.scale, dtype, mean.device)
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
        if isinstance(outputs, Tensor) and outputs.ndim == 3 and len(outputs):
            means, stds = self._predict_normal(outputs.flatten(0, 1))  # of all networks in a few operations
            shape = (*outputs.shape[:2], *self._target_shape)
            return GaussianPredictive(means.reshape(shape), stds.reshape(shape))
        members = [self._predict_normal(member_outputs) for member_outputs in outputs]
        if not members:
            raise ValueError("There is no prediction without networks: ask for at least 1 draw.")
        return GaussianPredictive(*(torch.stack(tensors) for tensors in zip(*members, strict=True)))

    def _predict_normal(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of a network's predictions in the unit of the targets."""
        mean, std = self.split_outputs(to_double(outputs))
        location, scale = location_scale_tensors(self.location, self.scale, mean.dtype, mean.device)
        shape = (len(mean), *self._target_shape)
        return (location + scale * mean).reshape(shape), (scale * std).reshape(shape)

    def split_outputs(self, outputs: Float[Tensor, "batch outputs"]) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of standardised targets, each of shape (batch, targets).

        Args:
            outputs: Outputs of a network, shape (batch, 2 * num_targets).

        Raises:
            ValueError: The outputs are not a mean and a raw scale for each target.
        """
        self.check_outputs(outputs)
        mean, raw = outputs.chunk(2, dim=1)
        if self.initial_std:
            raw = raw + raw.new_tensor([invert_softplus(std - self.floor) for std in self.initial_std])
        std = self.floor + F.softplus(raw)
        return mean, std if isinstance(self.noise_factor, str | None) else std * self.noise_factor

    @property
    def _target_shape(self) -> tuple[int, ...]:
        return () if self.num_targets == 1 else (self.num_targets,)


def resolve_unit(
    location: Sequence[float], scale: Sequence[float], num_targets: int, likelihood: str
) -> dict[str, tuple[float, ...]]:
    """Location and scale with one number for each target, by name: by default 0 and 1.

    Raises:
        ValueError: They are not finite numbers for each target, or a scale is not positive.
    """
    unit = {}
    for name, given, default in (("location", location, 0.0), ("scale", scale, 1.0)):
        values = unit[name] = tuple(map(float, given)) or (default,) * num_targets
        if len(values) != num_targets or not all(map(math.isfinite, values)):
            raise ValueError(
                f"{name} must be {format_count(num_targets, 'finite number')}, one for each target, got {values}. "
                f"{likelihood}.fit computes them from training targets."
            )
    if min(unit["scale"]) <= 0:
        raise ValueError(f"scale must be positive, got {unit['scale']}: a constant target cannot be standardised.")
    return unit


def location_scale_tensors(
    location: tuple[float, ...], scale: tuple[float, ...], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Location and scale on a device, copied there once."""
    if torch.compiler.is_compiling():  # a traced tensor must not be kept for calls outside of the trace
        return _make_location_scale(location, scale, dtype, device)
    return _cached_location_scale(location, scale, dtype, device)


def _make_location_scale(
    location: tuple[float, ...], scale: tuple[float, ...], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    return torch.tensor(location, dtype=dtype, device=device), torch.tensor(scale, dtype=dtype, device=device)


_cached_location_scale = lru_cache(maxsize=16)(_make_location_scale)
