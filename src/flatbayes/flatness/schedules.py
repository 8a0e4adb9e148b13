"""Schedules: a flatness that runs periodically, or in the last part of training only.

    Periodic(flatness, period):        flatness in every period-th step, plain steps between
    Delayed(flatness, start, before):  `before` until the fraction `start` of training, flatness from then on

    flat, progress = Delayed(SAM(), start=0.7), TrainingProgress(total_steps=1000)
    loss = flat(closure, model, progress)()
    optimizer.step(); progress.advance()

The last part of training is when SWAG collects its snapshots and when the optimiser settles in a region. Zhou et al.
(ICLR 2025) report that a few epochs of SAM at the end do about as well as SAM in the whole of training.
"""

from dataclasses import dataclass
from math import inf

from torch import nn

from flatbayes.core import Closure, TrainingProgress
from flatbayes.core.components import resolve_component
from flatbayes.flatness.flatness import Flatness, FlatnessWrapper, Plain, require_progress, require_training_fraction
from flatbayes.flatness.sam import SAM


@dataclass(frozen=True)
class Periodic(FlatnessWrapper):
    """Another flatness in every `period`-th step, plain steps between.

    Use it to take the second gradient in some steps only.

    Attributes:
        flatness: The flatness that runs periodically.
        period: Number of steps from one of its steps to the next.

    Examples:
        >>> flatness = Periodic(SAM(rho=0.1), period=4)
        >>> fitted = fit(MLP, data, SWAG(rank=2), flatness, config)
        >>> progress = TrainingProgress(total_steps=100)  # of a loop of your own
        >>> loss = flatness(closure, network, progress)()
        >>> flatness.gradients_per_step
        1.25
    """

    flatness: Flatness = SAM()
    period: int = 5

    def __post_init__(self) -> None:
        object.__setattr__(self, "flatness", resolve_component(self.flatness, Flatness, "flatness"))
        if self.period < 1:
            raise ValueError(f"period must be at least 1, got {self.period}.")

    @property
    def gradients_per_step(self) -> float:
        """One, and the further ones of the flatness in its steps."""
        return 1 + (self.flatness.gradients_per_step - 1) / self.period

    @property
    def stationary_after(self) -> float:
        """Infinity, since the gradients alternate between two losses; with a period of 1, that of the flatness."""
        return self.flatness.stationary_after if self.period == 1 else inf

    def __call__(self, closure: Closure, model: nn.Module, progress: TrainingProgress | None = None) -> Closure:
        """Make the flat closure in every `period`-th step, and return the closure unchanged in the others.

        Raises:
            ValueError: The progress of training is not given.
        """
        progress = require_progress(progress, self)
        if progress.step % self.period != 0:
            return closure
        return self.flatness(closure, model, progress.scope("flatness"))


@dataclass(frozen=True)
class Delayed(FlatnessWrapper):
    """Another flatness in the last part of training only.

    Use it to save time: most of the gain of its flatness at 1.3 gradients a step.

    Attributes:
        flatness: The flatness of the last part.
        start: Fraction of training after which it begins.
        before: The flatness until then. It shares no state with the other one.

    Examples:
        >>> flatness = Delayed(SAM(rho=0.1), start=0.5)
        >>> fitted = fit(MLP, data, SWAG(rank=2), flatness, config)
        >>> progress = TrainingProgress(total_steps=100)  # of a loop of your own
        >>> loss = flatness(closure, network, progress)()
        >>> flatness.gradients_per_step
        1.5
    """

    flatness: Flatness = SAM()
    start: float = 0.7
    before: Flatness = Plain()

    def __post_init__(self) -> None:
        for name in ("flatness", "before"):
            object.__setattr__(self, name, resolve_component(getattr(self, name), Flatness, "flatness", name))
        if self.before.radius == "auto":
            raise ValueError(f"Only the radius of `flatness` can be auto, and not that of `before`, {self.before}.")
        if not 0 <= self.start < 1:
            raise ValueError(f"start is a fraction of training, at least 0 and below 1; got {self.start}.")

    @property
    def gradients_per_step(self) -> float:
        """The mean of both, weighted by their fractions of training."""
        return self.start * self.before.gradients_per_step + (1 - self.start) * self.flatness.gradients_per_step

    @property
    def stationary_after(self) -> float:
        """The start, if the gradients of the flatness are stationary by then."""
        return max(self.start, self.flatness.stationary_after)

    @property
    def depends_on_loss_scale(self) -> bool:
        """Whether either part does."""
        return self.flatness.depends_on_loss_scale or self.before.depends_on_loss_scale

    @property
    def needs_weight_distribution(self) -> bool:
        """Whether either part needs it."""
        return self.flatness.needs_weight_distribution or self.before.needs_weight_distribution

    def __call__(self, closure: Closure, model: nn.Module, progress: TrainingProgress | None = None) -> Closure:
        """Make the closure of the flatness that this step belongs to.

        Raises:
            ValueError: The progress of training is not given, or has no total_steps.
        """
        has_started = require_training_fraction(progress, self) >= self.start
        progress = require_progress(progress, self)
        if has_started:
            return self.flatness(closure, model, progress.scope("flatness"))
        return self.before(closure, model, progress.scope("before"))
