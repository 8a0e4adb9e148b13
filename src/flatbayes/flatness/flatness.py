"""What every flatness is: a map from closures to closures."""

from abc import ABC, abstractmethod

from torch import nn

from flatbayes.core import Closure, Course


class Flatness(ABC):
    """Decides where in weight space a closure is asked for its gradient.

    Calling the new closure returns a loss and leaves the sharpness-aware gradient in `.grad`. Weights, training
    flags and random state are then as one call of the given closure would leave them, and buffers have moved once.
    The loss, and the pass that moves the buffers, are those at the current weights where the whole batch is seen
    there; otherwise they are those at the displaced weights.
    """

    @property
    @abstractmethod
    def gradients(self) -> float:
        """Gradients that one call of the new closure costs, on average over training."""

    @property
    @abstractmethod
    def one_loss_from(self) -> float:
        """Share of training from which on its gradients estimate that of one fixed loss function of the weights.

        0 for all of training; infinity for never. Samplers and variational objectives are right for a loss only.
        """

    @abstractmethod
    def __call__(self, closure: Closure, model: nn.Module, course: Course | None = None) -> Closure:
        """The sharpness-aware counterpart of a closure.

        Args:
            closure: Zeroes the gradients, computes the mean negative log likelihood, backpropagates, returns it.
            model: The module whose trainable parameters the closure depends on.
            course: How far training has come, and what is kept between its steps.

        Raises:
            ValueError: The course is needed, and not given.
        """


def needed(course: Course | None, flatness: Flatness) -> Course:
    """The course, for those that cannot do without.

    Raises:
        ValueError: There is none.
    """
    if course is None:
        raise ValueError(
            f"{type(flatness).__name__} needs to know how far training has come: write "
            "`course = Course(total_steps=...)` before the loop, `flatness(closure, model, course)()` in it, and "
            "`course.advance()` after each optimizer.step()."
        )
    return course


def progress(course: Course | None, flatness: Flatness) -> float:
    """Share of training that is done.

    Raises:
        ValueError: There is no course, or it does not say how many steps there will be.
    """
    known = needed(course, flatness)
    if known.total_steps is None:
        raise ValueError(
            f"{type(flatness).__name__} needs the number of steps of the whole training: write "
            "`course = Course(total_steps=...)`."
        )
    return known.step / known.total_steps if known.total_steps > 0 else 1.0
