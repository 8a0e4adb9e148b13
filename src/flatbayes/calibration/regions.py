"""Prediction regions: sets of classes, and intervals of numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from flatbayes.core.names import format_count
from flatbayes.likelihoods import PredictionTable


@dataclass(frozen=True, eq=False)
class PredictionSets(PredictionTable):
    """A set of classes for each example, which may be empty.

    Attributes:
        members: Whether each class is in the set.
        top_class: The most probable class, in the set or not.

    Examples:
        >>> sets = PredictionSets(
        ...     torch.tensor([[True, True, False], [False, False, True]]), torch.tensor([0, 2])
        ... )
        >>> sets.to_lists(("cat", "dog", "owl"))
        [['cat', 'dog'], ['owl']]
        >>> sets.size, sets.contains(torch.tensor([1, 1]))
        (tensor([2, 1]), tensor([ True, False]))
    """

    members: Bool[Tensor, "examples classes"]
    top_class: Int[Tensor, " examples"]

    def __repr__(self) -> str:
        num_examples, num_classes = self.members.shape
        mean = float(self.size.double().mean()) if num_examples else 0.0
        size = f"on average {mean:.4g} of {num_classes} classes"
        return f"<PredictionSets: {format_count(num_examples, 'example')}, {size}>"

    @property
    def size(self) -> Int[Tensor, " examples"]:
        """Number of classes in each set."""
        return self.members.sum(1)

    def contains(self, targets: Int[Tensor, " examples"]) -> Bool[Tensor, " examples"]:
        """Whether each set has a class.

        Args:
            targets: Index of one class for each example.
        """
        return self.members.gather(1, targets.to(self.members.device).long()[:, None]).squeeze(1)

    def fill_empty(self) -> "PredictionSets":
        """The sets with the most probable class in those that are empty: sets grow, and so does the coverage."""
        members = self.members.clone()
        is_empty = ~members.any(1)
        members[is_empty, self.top_class[is_empty]] = True
        return PredictionSets(members, self.top_class)

    def to_lists(self, names: Sequence[str] | None = None) -> list[list[Any]]:
        """The classes of each set.

        Args:
            names: Names of the classes; None gives indices.
        """
        rows = [row.nonzero()[0].tolist() for row in self.members.cpu().numpy()]
        return rows if names is None else [[names[k] for k in row] for row in rows]

    def columns(self, names: Sequence[str] | None = None) -> Mapping[str, NDArray[np.generic]]:
        """`set`, the classes separated by spaces; `set_size`; and `in_set_<name>` for every class.

        Args:
            names: Names of the classes; None numbers them.
        """
        members = self.members.cpu().numpy()
        names = [str(k) for k in range(members.shape[1])] if names is None else list(map(str, names))
        return {
            "set": np.asarray([" ".join(row) for row in self.to_lists(names)]),
            "set_size": self.size.cpu().numpy(),
            **{f"in_set_{name}": members[:, k] for k, name in enumerate(names)},
        }


@dataclass(frozen=True, eq=False)
class PredictionIntervals(PredictionTable):
    """An interval for each number, infinite where there were too few calibration examples.

    Attributes:
        lower: Lower ends.
        upper: Upper ends; below the lower end where the interval is empty.

    Examples:
        >>> intervals = PredictionIntervals(torch.tensor([0.0, 1.0]), torch.tensor([2.0, 5.0]))
        >>> intervals.size, intervals.contains(torch.tensor([1.0, 0.0]))
        (tensor([2., 4.]), tensor([ True, False]))
    """

    lower: Float[Tensor, "examples ..."]
    upper: Float[Tensor, "examples ..."]

    def __repr__(self) -> str:
        width = float(self.size.double().mean()) if self.size.numel() else 0.0
        return f"<PredictionIntervals: {format_count(len(self.lower), 'example')}, mean width {width:.4g}>"

    @property
    def size(self) -> Float[Tensor, "examples ..."]:
        """Width of each interval; 0 for an empty one."""
        return (self.upper - self.lower).clamp_min(0.0)

    def contains(self, targets: Float[Tensor, "examples ..."]) -> Bool[Tensor, "examples ..."]:
        """Whether each interval has a number.

        Args:
            targets: One number for each interval.
        """
        targets = targets.to(self.lower)
        return (self.lower <= targets) & (targets <= self.upper)

    def columns(self, names: Sequence[str] | None = None) -> Mapping[str, NDArray[np.generic]]:
        """`conformal_lower` and `conformal_upper`; with several targets `conformal_lower_<name>` and so on.

        Args:
            names: Names of the targets; None numbers them.
        """
        ends = {"conformal_lower": self.lower.cpu().numpy(), "conformal_upper": self.upper.cpu().numpy()}
        if self.lower.ndim == 1:
            return ends
        names = [str(k) for k in range(self.lower.shape[1])] if names is None else names
        return {f"{end}_{name}": values[:, k] for k, name in enumerate(names) for end, values in ends.items()}
