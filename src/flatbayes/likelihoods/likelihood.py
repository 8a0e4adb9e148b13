"""What every likelihood is: a loss to train with, and a way to make one prediction out of many networks."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


class Predictive(ABC):
    """The mixture of what the networks of a posterior predict, for a number of examples."""

    @property
    @abstractmethod
    def mean(self) -> Tensor:
        """Expected target of each example."""

    @property
    @abstractmethod
    def variance(self) -> Tensor:
        """Variance of a target that is a number; for classes, of their probabilities over the networks."""

    @property
    @abstractmethod
    def entropy(self) -> Tensor:
        """Entropy of the mixture in nats: total uncertainty, shape (examples,)."""

    @property
    @abstractmethod
    def mutual_information(self) -> Tensor:
        """Mutual information of target and network in nats: what the networks disagree on, shape (examples,)."""

    @abstractmethod
    def columns(self, names: Sequence[str] | None = None) -> Mapping[str, NDArray[np.generic]]:
        """One array of shape (examples,) for each quantity, to be written as a table.

        Args:
            names: Names of the targets (classes), where they have names.
        """

    @classmethod
    @abstractmethod
    def concatenate(cls, predictions: Sequence[Self]) -> Self:
        """Predictions for all examples of the parts, in order."""


class Likelihood(ABC):
    """How targets depend on a network's outputs."""

    @property
    @abstractmethod
    def num_outputs(self) -> int:
        """Numbers that a network must give for each example."""

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean negative log likelihood, a differentiable scalar."""

    @abstractmethod
    def predictive(self, outputs: Iterable[Tensor], *, keep_members: bool = False) -> Predictive:
        """The equal mixture over networks.

        Args:
            outputs: Each network's outputs for the same examples; consumed once, one held at a time.
            keep_members: Also keep what each network predicts.
        """
