"""What every flatness is: a map from closures to closures."""

from abc import ABC, abstractmethod

from torch import nn

from flatbayes.core import Closure


class Flatness(ABC):
    """Decides where in weight space a closure is asked for its gradient.

    Calling the new closure returns the loss at the current weights and leaves the sharpness-aware gradient in
    `.grad`. Weights, buffers, training flags and random state are then as one call of the given closure would
    leave them.
    """

    @property
    @abstractmethod
    def gradients(self) -> int:
        """Calls of the given closure that one call of the new one makes."""

    @abstractmethod
    def __call__(self, closure: Closure, model: nn.Module) -> Closure:
        """The sharpness-aware counterpart of a closure.

        Args:
            closure: Zeroes the gradients, computes the mean negative log likelihood, backpropagates, returns it.
            model: The module whose trainable parameters the closure depends on.
        """
