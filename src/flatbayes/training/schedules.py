"""Learning rate schedules, and the steps at which snapshots are collected: pure functions of the step."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

MIN_SNAPSHOTS = 10
"""Number of snapshots that an automatic `snapshots_per_epoch` collects at least, in trainings of enough steps."""

MAX_SNAPSHOT_SPACING = 10**6
"""Largest number of epochs between two snapshots that a fraction of a snapshot per epoch stands for."""


class Schedule(ABC):
    """The learning rate over training, as a factor on the initial learning rate of the optimizer.

    Examples:
        >>> class Halves(Schedule):
        ...     num_cycles = 1
        ...
        ...     def factor(self, step, total_steps):
        ...         return 1.0 if step < total_steps / 2 else 0.5
        >>> fitted = fit(MLP, data, MAP(), config=config.with_options(schedule=Halves()))
    """

    @property
    @abstractmethod
    def num_cycles(self) -> int:
        """Number of cycles; snapshots are collected late in each."""

    @abstractmethod
    def factor(self, step: int, total_steps: int) -> float:
        """Factor at a step, counted from 0, of `total_steps`."""


@dataclass(frozen=True)
class Constant(Schedule):
    """The initial learning rate throughout.

    Attributes:
        warmup: Fraction of training over which the rate first rises linearly from zero.

    Examples:
        >>> Constant(warmup=0.1).factor(step=5, total_steps=100)
        0.6
    """

    warmup: float = 0.0

    def __post_init__(self) -> None:
        _check_fraction("warmup", self.warmup)

    num_cycles = 1

    def factor(self, step: int, total_steps: int) -> float:
        """1 after the warm-up."""
        return _warmup_factor(step, total_steps, self.warmup)


@dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine wave from the initial learning rate down to a final one (Loshchilov & Hutter, 2017).

    Attributes:
        end_factor: The factor at the end.
        warmup: Fraction of training over which the rate first rises linearly from zero.

    Examples:
        >>> [round(Cosine().factor(step, total_steps=100), 2) for step in (0, 50, 100)]
        [1.0, 0.5, 0.0]
    """

    end_factor: float = 0.0
    warmup: float = 0.0

    def __post_init__(self) -> None:
        _check_fraction("end_factor", self.end_factor)
        _check_fraction("warmup", self.warmup)

    num_cycles = 1

    def factor(self, step: int, total_steps: int) -> float:
        """The factor e + (1 - e) (1 + cos(pi t)) / 2, with e the `end_factor` and t the fraction of training done."""
        wave = (1 + math.cos(math.pi * step / total_steps)) / 2
        return (self.end_factor + (1 - self.end_factor) * wave) * _warmup_factor(step, total_steps, self.warmup)


@dataclass(frozen=True)
class SWALinear(Schedule):
    """The schedule of SWAG (Maddox et al., 2019): constant, then linearly down, then constant at a lower rate.

    Attributes:
        decay_start: Fraction of training at the initial learning rate.
        decay_end: Fraction of training after which the rate is constant; snapshots are collected from here on.
        end_factor: The factor from there on, large enough for the iterates to explore.
        warmup: Fraction of training over which the rate first rises linearly from zero.

    Examples:
        >>> [round(SWALinear().factor(step, total_steps=100), 2) for step in (0, 50, 70, 100)]
        [1.0, 0.7, 0.1, 0.1]
    """

    decay_start: float = 0.4
    decay_end: float = 0.7
    end_factor: float = 0.1
    warmup: float = 0.0

    def __post_init__(self) -> None:
        for name in ("decay_start", "decay_end", "end_factor", "warmup"):
            _check_fraction(name, getattr(self, name))
        if self.decay_start > self.decay_end:
            raise ValueError(
                f"decay_start ({self.decay_start}) must not come after decay_end ({self.decay_end}): the learning "
                "rate falls between the two."
            )

    num_cycles = 1

    def factor(self, step: int, total_steps: int) -> float:
        """1 until `decay_start`, `end_factor` from `decay_end`, linear in between."""
        done, factor = step / total_steps, 1.0
        if done >= self.decay_end:
            factor = self.end_factor
        elif done >= self.decay_start:
            factor -= (1 - self.end_factor) * (done - self.decay_start) / (self.decay_end - self.decay_start)
        return factor * _warmup_factor(step, total_steps, self.warmup)


@dataclass(frozen=True)
class Polynomial(Schedule):
    """The step size of stochastic gradient Langevin dynamics (Welling & Teh, 2011), (1 + step / offset)^-power.

    It is stretched over the run, and ends at (1 + 1 / offset)^-power of the initial rate for any number of steps.

    Attributes:
        power: Exponent of the decay.
        offset: Fraction of training after which the factor is 2^-power.

    Examples:
        >>> [round(Polynomial().factor(step, total_steps=100), 2) for step in (0, 50, 100)]
        [1.0, 0.37, 0.27]
    """

    power: float = 0.55
    offset: float = 0.1

    def __post_init__(self) -> None:
        if not 0.5 < self.power <= 1:
            raise ValueError(f"power must be above 0.5 and at most 1, as for Langevin dynamics; got {self.power}.")
        if not 0 < self.offset < math.inf:
            raise ValueError(f"offset must be positive and finite, got {self.offset}.")

    num_cycles = 1

    def factor(self, step: int, total_steps: int) -> float:
        """(1 + t / offset)^-power, with t the fraction of training done."""
        return float((1 + step / (total_steps * self.offset)) ** -self.power)


@dataclass(frozen=True)
class Cyclical(Schedule):
    """Cosine waves with restarts (Zhang et al., ICLR 2020): each finds another mode, which is sampled at its end.

    SGLD and SGHMC add noise throughout, in the size that belongs to the learning rate; Zhang et al. add none while
    the rate is high.

    Attributes:
        num_cycles: Number of waves.
        end_factor: The factor at the end of each.

    Examples:
        >>> schedule = Cyclical(num_cycles=2)
        >>> [round(schedule.factor(step, total_steps=100), 2) for step in (0, 25, 49, 50)]
        [1.0, 0.5, 0.0, 1.0]
    """

    num_cycles: int = 4
    end_factor: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.num_cycles <= 10**9:
            raise ValueError(f"num_cycles must be at least 1 and at most {10**9}, got {self.num_cycles}.")
        _check_fraction("end_factor", self.end_factor)

    def factor(self, step: int, total_steps: int) -> float:
        """The factor e + (1 - e) (1 + cos(pi t)) / 2, with e the `end_factor` and t the fraction of the wave done."""
        wave = (1 + math.cos(math.pi * (step * self.num_cycles / total_steps % 1))) / 2
        return self.end_factor + (1 - self.end_factor) * wave


def is_collection_step(
    step: int,
    steps_per_epoch: int,
    total_steps: int,
    start_fraction: float,
    snapshots_per_epoch: float,
    num_cycles: int = 1,
) -> bool:
    """Whether a snapshot is collected after a step.

    Args:
        step: The step, counted from 0.
        steps_per_epoch: Number of steps of an epoch.
        total_steps: Number of steps of the training.
        start_fraction: Fraction of training, or of each cycle, before the first snapshot.
        snapshots_per_epoch: Number of snapshots per epoch, evenly spaced, the last at its end; below 1 at the end of
            every few epochs, the last of which is the last epoch.
        num_cycles: Number of cycles of the learning rate; if there are several, each ends with a snapshot.
    """
    if num_cycles > 1 and step * num_cycles % total_steps + num_cycles >= total_steps:
        return True
    if step * num_cycles % total_steps + num_cycles <= round(start_fraction * total_steps, 6):
        return False
    snapshots, epochs = _to_ratio(snapshots_per_epoch)
    remaining = -(-total_steps // steps_per_epoch) * steps_per_epoch - step - 1  # to the end of the last epoch
    spacing = epochs * steps_per_epoch  # of that many snapshots
    return -(-(remaining + 1) * snapshots // spacing) > -(-remaining * snapshots // spacing)


@cache
def _to_ratio(snapshots_per_epoch: float) -> tuple[int, int]:
    return Fraction(snapshots_per_epoch).limit_denominator(MAX_SNAPSHOT_SPACING).as_integer_ratio()


def get_automatic_snapshots_per_epoch(epochs: float, start_fraction: float) -> int:
    """One snapshot per epoch, or in a short training as many as give `MIN_SNAPSHOTS` in total."""
    return max(1, math.ceil(round(MIN_SNAPSHOTS / (epochs * (1 - start_fraction)), 6)))  # 1 - 0.9 is below 0.1


def select_evenly_spaced_epochs(epochs: int, num_selected: int) -> set[int]:
    """Evenly spaced epochs, counted from 1 and ending with the last; all of them if there are fewer."""
    return {math.ceil(epochs * (k + 1) / num_selected) for k in range(num_selected)}


def _warmup_factor(step: int, total_steps: int, fraction: float) -> float:
    return min(1.0, (step + 1) / (fraction * total_steps)) if fraction > 0 else 1.0


def _check_fraction(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie between 0 and 1, got {value}.")
