"""Any flatness at some steps, and plain training at the others: a share of the cost, for most of the gain.

`Every` runs it each so many steps, `Late` in the last part of training, which is when SWAG collects its snapshots and
when the optimiser settles for the region that it stays in. Zhou et al. (ICLR 2025) find a few epochs at the end to do
about as well as the whole of training. Before it, `Late` trains plainly or with a cheaper flatness.
"""

from dataclasses import dataclass
from math import inf

from torch import nn

from flatbayes.core import Closure, Course
from flatbayes.flatness.flatness import Flatness, needed, progress
from flatbayes.flatness.plain import Plain
from flatbayes.flatness.sam import SAM


@dataclass(frozen=True)
class Every(Flatness):
    """Another flatness at one step in so many, the first of them included; plain steps between.

    Attributes:
        flatness: The one whose turn it then is.
        steps: Steps from one turn to the next.
    """

    flatness: Flatness = SAM()
    steps: int = 5

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}.")

    @property
    def gradients(self) -> float:
        """One, and the others of the flatness in its turns."""
        return 1 + (self.flatness.gradients - 1) / self.steps

    @property
    def one_loss_from(self) -> float:
        """Never, since its gradients are by turns those of two losses; unless it is always the turn of one."""
        return self.flatness.one_loss_from if self.steps == 1 else inf

    def __call__(self, closure: Closure, model: nn.Module, course: Course | None = None) -> Closure:
        """The flat closure if it is its turn, else the closure as it is.

        Raises:
            ValueError: No course is given.
        """
        known = needed(course, self)
        return self.flatness(closure, model, known) if known.step % self.steps == 0 else closure


@dataclass(frozen=True)
class Late(Flatness):
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
    def gradients(self) -> float:
        """Those of each, by their shares of training."""
        return self.start * self.before.gradients + (1 - self.start) * self.flatness.gradients

    @property
    def one_loss_from(self) -> float:
        """The start, if the flatness follows a loss by then."""
        return max(self.start, self.flatness.one_loss_from)

    def __call__(self, closure: Closure, model: nn.Module, course: Course | None = None) -> Closure:
        """That of the flatness whose time it is.

        Raises:
            ValueError: No course is given, or one that does not know how long training takes.
        """
        now = self.flatness if progress(course, self) >= self.start else self.before
        return now(closure, model, course)
