"""Any flatness at some steps, and plain training at the others: a share of the cost, for most of the gain.

`Periodic` runs it each so many steps, `Delayed` in the last part of training, which is when SWAG collects its
snapshots and
when the optimiser settles for the region that it stays in. Zhou et al. (ICLR 2025) find a few epochs at the end to do
about as well as the whole of training. Before it, `Delayed` trains plainly or with a cheaper flatness.
"""

from dataclasses import dataclass
from math import inf

from torch import nn

from flatbayes.core import Closure, TrainingProgress
from flatbayes.flatness.flatness import Flatness, require_progress, require_training_fraction
from flatbayes.flatness.plain import Plain
from flatbayes.flatness.sam import SAM


@dataclass(frozen=True)
class Periodic(Flatness):
    """Another flatness at one step in so many, the first of them included; plain steps between.

    Attributes:
        flatness: The one whose turn it then is.
        period: Steps from one turn to the next.
    """

    flatness: Flatness = SAM()
    period: int = 5

    def __post_init__(self) -> None:
        if self.period < 1:
            raise ValueError(f"period must be at least 1, got {self.period}.")

    @property
    def gradients_per_step(self) -> float:
        """One, and the others of the flatness in its turns."""
        return 1 + (self.flatness.gradients_per_step - 1) / self.period

    @property
    def stationary_after(self) -> float:
        """Never, since its gradients are by turns those of two losses; unless it is always the turn of one."""
        return self.flatness.stationary_after if self.period == 1 else inf

    def __call__(self, closure: Closure, model: nn.Module, progress: TrainingProgress | None = None) -> Closure:
        """The flat closure if it is its turn, else the closure as it is.

        Raises:
            ValueError: No course is given.
        """
        known = require_progress(progress, self)
        return self.flatness(closure, model, known) if known.step % self.period == 0 else closure


@dataclass(frozen=True)
class Delayed(Flatness):
    """Another flatness in the last part of training, and plain training before.

    Attributes:
        flatness: The one that training ends with.
        start: Share of training after which it begins.
        before: What training begins with: plain, or a flatness that costs less.
    """

    flatness: Flatness = SAM()
    start: float = 0.7
    before: Flatness = Plain()

    def __post_init__(self) -> None:
        if not 0 <= self.start < 1:
            raise ValueError(f"start is a share of training, at least 0 and below 1; got {self.start}.")

    @property
    def gradients_per_step(self) -> float:
        """Those of each, by their shares of training."""
        return self.start * self.before.gradients_per_step + (1 - self.start) * self.flatness.gradients_per_step

    @property
    def stationary_after(self) -> float:
        """The start, if the flatness follows a loss by then."""
        return max(self.start, self.flatness.stationary_after)

    def __call__(self, closure: Closure, model: nn.Module, progress: TrainingProgress | None = None) -> Closure:
        """That of the flatness whose time it is.

        Raises:
            ValueError: No course is given, or one that does not know how long training takes.
        """
        now = self.flatness if require_training_fraction(progress, self) >= self.start else self.before
        return now(closure, model, progress)
