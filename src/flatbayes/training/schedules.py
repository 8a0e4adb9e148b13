"""When things happen during training: pure functions of the step."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass


class Schedule(ABC):
    """The learning rate over training, as a factor on the optimiser's own."""

    @property
    @abstractmethod
    def cycles(self) -> int:
        """Times that it begins; snapshots are collected late in each."""

    @abstractmethod
    def factor(self, step: int, total_steps: int) -> float:
        """Factor at a step, counted from 0."""


@dataclass(frozen=True)
class Constant(Schedule):
    """The optimiser's learning rate throughout.

    Attributes:
        warmup: Share of training over which the rate first rises linearly from zero.
    """

    warmup: float = 0.0

    def __post_init__(self) -> None:
        _check_share("warmup", self.warmup)

    cycles = 1

    def factor(self, step: int, total_steps: int) -> float:
        """One, after the warm-up."""
        return _warmup(step, total_steps, self.warmup)


@dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine wave from the optimiser's learning rate down to a last one.

    Attributes:
        last: The factor at the end.
        warmup: Share of training over which the rate first rises linearly from zero.
    """

    last: float = 0.0
    warmup: float = 0.0

    def __post_init__(self) -> None:
        _check_share("last", self.last)
        _check_share("warmup", self.warmup)

    cycles = 1

    def factor(self, step: int, total_steps: int) -> float:
        """Last + (1 - last) (1 + cos(pi t)) / 2, with t the share of training done."""
        wave = (1 + math.cos(math.pi * step / total_steps)) / 2
        return (self.last + (1 - self.last) * wave) * _warmup(step, total_steps, self.warmup)


@dataclass(frozen=True)
class SWALinear(Schedule):
    """SWAG's schedule (Maddox et al., 2019): high, then linearly down, then constant for collecting.

    Attributes:
        high_until: Share of training at the optimiser's learning rate.
        low_from: Share of training after which the rate is the low one; collect from here on.
        low: The low factor; large enough for the iterates to explore.
        warmup: Share of training over which the rate first rises linearly from zero.
    """

    high_until: float = 0.4
    low_from: float = 0.7
    low: float = 0.1
    warmup: float = 0.0

    def __post_init__(self) -> None:
        for name in ("high_until", "low_from", "low", "warmup"):
            _check_share(name, getattr(self, name))
        if self.high_until > self.low_from:
            raise ValueError(
                f"high_until ({self.high_until}) must not come after low_from ({self.low_from}): the learning rate "
                "falls between the two."
            )

    cycles = 1

    def factor(self, step: int, total_steps: int) -> float:
        """1 until `high_until`, `low` from `low_from`, linear between."""
        done = step / total_steps
        if done < self.high_until:
            return _warmup(step, total_steps, self.warmup)
        if done >= self.low_from:
            return self.low
        return 1 - (1 - self.low) * (done - self.high_until) / (self.low_from - self.high_until)


@dataclass(frozen=True)
class Polynomial(Schedule):
    """The step size of stochastic gradient Langevin dynamics (Welling & Teh, 2011), (1 + step / offset)^-power.

    The shape of that schedule, stretched over the run: it ends at (1 + 1 / offset)^-power of the rate, however long
    the run is.

    Attributes:
        power: How fast it falls.
        offset: Share of training after which it has fallen to 2^-power.
    """

    power: float = 0.55
    offset: float = 0.1

    def __post_init__(self) -> None:
        if not 0.5 < self.power <= 1:
            raise ValueError(f"power must be above 0.5 and at most 1, as for Langevin dynamics; got {self.power}.")
        if not 0 < self.offset < math.inf:
            raise ValueError(f"offset must be positive and finite, got {self.offset}.")

    cycles = 1

    def factor(self, step: int, total_steps: int) -> float:
        """(1 + t / offset)^-power, with t the share of training done."""
        return float((1 + step / (total_steps * self.offset)) ** -self.power)


@dataclass(frozen=True)
class Cyclical(Schedule):
    """Cosine waves that start over (Zhang et al., ICLR 2020): each finds another mode, and samples it at its end.

    With SGLD and SGHMC the noise is there all along, at its right size for the learning rate; Zhang et al. leave it
    out while the rate is high.

    Attributes:
        times: Number of waves.
        last: The factor at the end of each.
    """

    times: int = 4
    last: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.times <= 10**9:
            raise ValueError(f"times must be at least 1 and at most {10**9}, got {self.times}.")
        _check_share("last", self.last)

    @property
    def cycles(self) -> int:
        """One for each wave."""
        return self.times

    def factor(self, step: int, total_steps: int) -> float:
        """Last + (1 - last) (1 + cos(pi t)) / 2, with t the share of the wave done."""
        wave = (1 + math.cos(math.pi * (step * self.times / total_steps % 1))) / 2
        return self.last + (1 - self.last) * wave


def collects(
    step: int, steps_per_epoch: int, total_steps: int, collect_from: float, per_epoch: int, cycles: int = 1
) -> bool:
    """Whether a snapshot is taken after this step (counted from 0).

    Args:
        step: The step that has just been done.
        steps_per_epoch: Steps of an epoch.
        total_steps: Steps of the whole training.
        collect_from: Share of training, or of each of its cycles, before the first snapshot.
        per_epoch: Snapshots an epoch, evenly spaced, the last at its end.
        cycles: Times that the learning rate begins; if more than once, the end of each is a snapshot too.
    """
    if cycles > 1 and step * cycles % total_steps + cycles >= total_steps:
        return True
    if step * cycles % total_steps + cycles <= collect_from * total_steps:
        return False
    within = step % steps_per_epoch + 1
    return within * per_epoch // steps_per_epoch > (within - 1) * per_epoch // steps_per_epoch


def evenly(epochs: int, times: int) -> set[int]:
    """`times` epochs, evenly spaced and ending with the last (all of them if there are fewer)."""
    return {math.ceil(epochs * (k + 1) / times) for k in range(times)}


def _warmup(step: int, total_steps: int, share: float) -> float:
    return min(1.0, (step + 1) / (share * total_steps)) if share > 0 else 1.0


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie between 0 and 1, got {value}.")
