"""Interfaces of likelihoods and of the predictive distributions that they make out of many networks."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flatbayes.core.devices import move_tensor
from flatbayes.core.display import format_entries, format_html_table, make_data_frame
from flatbayes.core.input_trees import DENSE_ADVICE
from flatbayes.likelihoods.labels import NEW_HEAD_ADVICE

if TYPE_CHECKING:
    import pandas as pd  # an optional package


class PredictionTable(ABC):
    """Predictions as a table: one row for each example, one column for each quantity.

    Examples:
        >>> predictive = fitted.predict(inputs[:2])
        >>> isinstance(predictive, PredictionTable), list(predictive.columns())[:2]
        (True, ['class', 'confidence'])
    """

    @abstractmethod
    def columns(self, names: Sequence[str] | None = None) -> Mapping[str, NDArray[np.generic]]:
        """One array of shape (examples,) for each quantity, as columns of a table.

        Args:
            names: Names of the targets or classes; None numbers them.
        """

    def to_dict(self, names: Sequence[str] | None = None) -> dict[str, list[Any]]:
        """The columns of `columns` as lists, ready for JSON.

        Args:
            names: Names of the targets or classes; None numbers them.
        """
        return {name: column.tolist() for name, column in self.columns(names).items()}

    def to_pandas(self, names: Sequence[str] | None = None) -> "pd.DataFrame":
        """The columns of `columns` as a data frame, one row for each example.

        Args:
            names: Names of the targets or classes; None numbers them.

        Raises:
            ImportError: pandas is not installed.
        """
        return make_data_frame(dict(self.columns(names)))


class Predictive(PredictionTable):
    """The equal mixture of the predictions of a posterior's networks, for a number of examples.

    Its quantities are the columns of a `PredictionTable`: `to_dict` and `to_pandas` give them.

    Examples:
        >>> predictive = fitted.predict(inputs[:2])
        >>> list(predictive.to_dict())[:3]
        ['class', 'confidence', 'entropy']
        >>> type(predictive).concatenate([predictive, predictive]).mean.shape
        torch.Size([4, 10])
    """

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
        """Mutual information of target and network in nats: epistemic uncertainty, shape (examples,)."""

    def summary(self) -> str:
        """Number of examples, and mean, lowest and highest value of every quantity, as text."""
        lines = {
            name: f"mean {values.mean():.4g}, from {values.min():.4g} to {values.max():.4g}"
            for name, values in self._summary_columns().items()
        }
        return format_entries(repr(self), lines)

    def _repr_html_(self) -> str:
        rows = [
            (name, f"{values.mean():.4g}", f"{values.min():.4g}", f"{values.max():.4g}")
            for name, values in self._summary_columns().items()
        ]
        return format_html_table(repr(self), ("", "mean", "lowest", "highest"), rows)

    def _summary_columns(self) -> dict[str, NDArray[np.generic]]:
        """Columns of numbers, without those of single classes."""
        return {
            name: values
            for name, values in self.columns().items()
            if values.dtype.kind == "f" and not name.startswith("probability_")
        }

    def flatten(self) -> "Predictive":
        """The predictions of all positions, one after the other, where examples have positions; else the same."""
        return self

    def select(self, rows: Tensor) -> Self:
        """The predictions of some examples.

        Args:
            rows: Indices of the examples, or a mask.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot select examples.")

    @classmethod
    @abstractmethod
    def concatenate(cls, predictions: Sequence[Self]) -> Self:
        """Join predictions for several batches of examples, in order."""

    def to(self, device: torch.device | str) -> Self:
        """The predictions on another device, as float32 where that has no float64.

        Here the tensors of a dataclass are moved; another class is returned as it is.
        """
        if not is_dataclass(self):
            return self
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {name: move_tensor(value, device) for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **moved)


class Likelihood(ABC):
    """The distribution of targets given a network's outputs.

    Attributes:
        has_predictive: Whether `predictive` can be called; False for a loss that only trains.
        has_positions: Whether targets and predictions are those of each position of an example, such as a pixel.

    Examples:
        >>> class Laplacian(Likelihood):
        ...     num_outputs = 1
        ...
        ...     def loss(self, outputs, targets):
        ...         return (outputs.squeeze(1) - targets).abs().mean()
        ...
        ...     def predictive(self, outputs, *, keep_members=False):
        ...         raise NotImplementedError
        >>> Laplacian().loss(torch.zeros(2, 1), torch.tensor([1.0, -3.0]))
        tensor(2.)
    """

    has_predictive: ClassVar[bool] = True
    has_positions: ClassVar[bool] = False

    @property
    @abstractmethod
    def num_outputs(self) -> int:
        """Number of outputs that a network must have for each example."""

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean negative log likelihood over the batch, a differentiable scalar.

        Args:
            outputs: Outputs of a network, shape (batch, num_outputs).
            targets: Targets, one row per example.
        """

    def prepare_targets(self, targets: Tensor) -> Tensor:
        """Targets in the form that `loss` takes, converted where their meaning is clear; here they are unchanged.

        Values of targets on an accelerator are not checked, since that would wait for the device at every step.

        Args:
            targets: Targets of a batch, one row per example.

        Raises:
            ValueError: They are no targets of this likelihood.
        """
        return targets

    def check_outputs(self, outputs: Tensor) -> None:
        """Check the shape of the outputs of a network, which `loss` and `predictive` take; here nothing is checked.

        Args:
            outputs: Outputs of a network for a batch.

        Raises:
            ValueError: They have another shape.
        """
        return

    def find_labelled(self, targets: Tensor) -> Tensor | None:
        """Whether each example has a target, shape (batch,); None if all have one.

        Args:
            targets: From `prepare_targets`.
        """
        return None

    def find_targets(self, targets: Tensor) -> Tensor | None:
        """Which targets `loss` is the mean over: here of examples, see `find_labelled`; None for all.

        Args:
            targets: From `prepare_targets`.
        """
        return self.find_labelled(targets)

    def count_targets(self, targets: Tensor) -> int:
        """Number of targets over which `loss` is the mean: here of examples.

        Args:
            targets: From `prepare_targets`, of examples that have one.
        """
        return len(targets)

    @abstractmethod
    def predictive(self, outputs: Iterable[Tensor], *, keep_members: bool = False) -> Predictive:
        """The equal mixture over networks of their predictive distributions.

        Args:
            outputs: The outputs of each network for the same examples, shape (batch, num_outputs). Iterated once.
            keep_members: Also keep the predictions of each network.
        """

    def count_predictive_bytes(self, num_networks: int) -> int:
        """Bytes that `predictive` takes for an example, with intermediate results: here for all networks' outputs.

        Args:
            num_networks: Number of networks.
        """
        return 32 * self.num_outputs * num_networks


def format_wrong_outputs(outputs: Tensor, need: str, num_outputs: int, advice: str = DENSE_ADVICE) -> str:
    """Message for outputs of another shape than `need` takes, with `num_outputs` for each example.

    `advice`, after a space, says what to do about outputs of several axes.
    """
    head = f" ({NEW_HEAD_ADVICE})" if outputs.ndim == 2 else ""
    return (
        f"The model gives outputs of shape {tuple(outputs.shape)}, but {need}: expected (batch, {num_outputs}). "
        f"Change the size of its last layer{head}, the data, or the likelihood."
        f"{advice if outputs.ndim > 2 else ''}"
    )
