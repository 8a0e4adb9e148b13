"""No flatness: the closure as it is, the baseline that every comparison needs."""

from dataclasses import dataclass

from torch import nn

from flatbayes.core import Closure, TrainingProgress
from flatbayes.flatness.flatness import Flatness


@dataclass(frozen=True)
class Plain(Flatness):
    """The identity: ordinary training, the baseline twin of every flat one."""

    @property
    def gradients_per_step(self) -> int:
        """One: the closure itself."""
        return 1

    stationary_after = 0.0  # the loss itself

    def __call__(self, closure: Closure, model: nn.Module, progress: TrainingProgress | None = None) -> Closure:
        """The closure, untouched."""
        return closure
