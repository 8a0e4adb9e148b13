"""No flatness: the closure as it is, the baseline that every comparison needs."""

from dataclasses import dataclass

from torch import nn

from flatbayes.core import Closure, Course
from flatbayes.flatness.flatness import Flatness


@dataclass(frozen=True)
class Plain(Flatness):
    """The identity: ordinary training, the baseline twin of every flat one."""

    @property
    def gradients(self) -> int:
        """One: the closure itself."""
        return 1

    one_loss_from = 0.0  # the loss itself

    def __call__(self, closure: Closure, model: nn.Module, course: Course | None = None) -> Closure:
        """The closure, untouched."""
        return closure
