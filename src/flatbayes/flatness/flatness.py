"""What every flatness is: a map from closures to closures."""

from abc import ABC, abstractmethod

from torch import nn

from flatbayes.core import Closure, TrainingProgress


class Flatness(ABC):
    """Decides where in weight space a closure is asked for its gradient.

    Calling the new closure returns a loss and leaves the sharpness-aware gradient in `.grad`. Weights, training
    flags and random state are then as one call of the given closure would leave them, and buffers have moved once.
    The loss, and the pass that moves the buffers, are those at the current weights where the whole batch is seen
    there; otherwise they are those at the displaced weights.
    """

    @property
    @abstractmethod
    def gradients_per_step(self) -> float:
        """Gradients that one call of the new closure costs, on average over training."""

    @property
    @abstractmethod
    def stationary_after(self) -> float:
        """Share of training from which on its gradients estimate that of one fixed loss function of the weights.

        0 for all of training; infinity for never. Samplers and variational objectives are right for a loss only.
        """

    @abstractmethod
    def __call__(self, closure: Closure, model: nn.Module, progress: TrainingProgress | None = None) -> Closure:
        """The sharpness-aware counterpart of a closure.

        Args:
            closure: Zeroes the gradients, computes the mean negative log likelihood, backpropagates, returns it.
            model: The module whose trainable parameters the closure depends on.
            progress: How far training has come, and what is kept between its steps.

        Raises:
            ValueError: The course is needed, and not given.
        """


def require_progress(progress: TrainingProgress | None, flatness: Flatness) -> TrainingProgress:
    """The course, for those that cannot do without.

    Raises:
        ValueError: There is none.
    """
    if progress is None:
        raise ValueError(
            f"{type(flatness).__name__} needs to know how far training has come: write "
            "`progress = TrainingProgress(total_steps=...)` before the loop, `flatness(closure, model, progress)()` in it, and "
            "`progress.advance()` after each optimizer.step()."
        )
    return progress


def require_training_fraction(progress: TrainingProgress | None, flatness: Flatness) -> float:
    """Share of training that is done.

    Raises:
        ValueError: There is no course, or it does not say how many steps there will be.
    """
    known = require_progress(progress, flatness)
    if known.total_steps is None:
        raise ValueError(
            f"{type(flatness).__name__} needs the number of steps of the whole training: write "
            "`progress = TrainingProgress(total_steps=...)`."
        )
    return known.step / known.total_steps if known.total_steps > 0 else 1.0
