"""Predictive distribution of a class for each position of an example: a pixel of an image, a token of a text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from flatbayes.core.input_trees import IGNORE_INDEX
from flatbayes.core.names import format_count
from flatbayes.likelihoods.categorical_predictive import CategoricalPredictive, ClassProbabilities
from flatbayes.likelihoods.labels import to_tensor

if TYPE_CHECKING:  # slow to import
    from matplotlib.axes import Axes

MAX_SHARES = 1000
"""Largest number of classes with a column in a table."""


@dataclass(frozen=True, eq=False)
class DenseCategoricalPredictive(ClassProbabilities):
    """Class probabilities of each position and their uncertainty.

    `entropy`, `mutual_information`, `top_class` and `confidence` have the shape (examples, *positions), `mean` and
    `variance` (examples, *positions, classes). Examples of different sizes are padded with NaN to the largest one,
    and `top_class` is -100 there.

    Attributes:
        log_probs: Log of the averaged probabilities, float64; float32 on a device that has no float64.
        expected_entropy: Mean entropy of the networks' probabilities in nats: aleatoric uncertainty.
        variance_of_probs: Variance over the networks of each class probability.
        member_probs: Each network's probabilities, float32; None unless they are kept.
        num_skipped: Number of first positions without a prediction, where all values are NaN and `top_class` is
            -100: 1 for the tokens of causal language models.

    Examples:
        >>> logits = torch.randn(2, 3, 4, 4)  # 2 images of 4 x 4 pixels, 3 classes
        >>> predictive = DenseCategorical(num_classes=3).predictive([logits, logits + 1])
        >>> predictive.mean.shape, predictive.entropy.shape
        (torch.Size([2, 4, 4, 3]), torch.Size([2, 4, 4]))
        >>> flat, labels = predictive.select_labelled(torch.zeros(2, 4, 4).long())
        >>> flat, labels.shape
        (<CategoricalPredictive: 32 examples, 3 classes>, torch.Size([32]))
    """

    log_probs: Float[Tensor, "examples *positions classes"]
    expected_entropy: Float[Tensor, "examples ..."]
    variance_of_probs: Float[Tensor, "examples *positions classes"]
    member_probs: Float[Tensor, "draws examples *positions classes"] | None = None
    num_skipped: int = 0

    @property
    def top_class(self) -> Int[Tensor, "examples ..."]:
        """Index of the most probable class; -100 where an example is padded."""
        return super().top_class.masked_fill(self.log_probs[..., 0].isnan(), IGNORE_INDEX)

    def __repr__(self) -> str:
        num_examples, *positions, num_classes = self.log_probs.shape
        shape = " x ".join(map(str, positions))
        return (
            f"<DenseCategoricalPredictive: {format_count(num_examples, 'example')} of {shape} positions, "
            f"{num_classes} classes>"
        )

    def plot(
        self, inputs: Any = None, targets: Any = None, *, num_examples: int = 4, ax: "Axes | None" = None
    ) -> "Axes":
        """Draw the most uncertain examples: the most probable class and the entropy of each position.

        Args:
            inputs: The examples that were predicted; of shape (examples, channels, height, width) they are drawn.
            targets: Class of each position, drawn beside the most probable one.
            num_examples: Largest number of examples.
            ax: Where to draw; by default new axes.

        Raises:
            ImportError: matplotlib is not installed.
            ValueError: Positions are neither in a line nor in an image.
        """
        from flatbayes.plotting.positions import plot_positions

        return plot_positions(
            self.top_class.cpu().numpy(),
            self.entropy.cpu().numpy(),
            self.log_probs.shape[-1],
            None if inputs is None else to_tensor(inputs).cpu().numpy(),
            None if targets is None else to_tensor(targets).cpu().numpy(),
            ax,
            num_examples=num_examples,
        )

    def columns(self, names: Sequence[str] | None = None) -> Mapping[str, NDArray[np.generic]]:
        """Means over the positions of an example, and `share_<name>`, the share of positions with this top class.

        The means are `confidence`, `entropy` and `mutual_information`. There are no shares for more than 1,000
        classes, such as the tokens of a vocabulary.

        Args:
            names: Names of the classes; None numbers them.
        """
        top = self.top_class.flatten(1)
        has_prediction = top != IGNORE_INDEX
        count = has_prediction.sum(1).to(self.log_probs.dtype)
        means = {
            name: values.flatten(1).nan_to_num(0.0).sum(1) / count
            for name, values in {
                "confidence": self.confidence,
                "entropy": self.entropy,
                "mutual_information": self.mutual_information,
            }.items()
        }
        num_classes = self.log_probs.shape[-1]
        if num_classes > MAX_SHARES:
            names = ()
        names = [str(k) for k in range(num_classes)] if names is None else names
        shares = {f"share_{name}": (top == k).sum(1) / count for k, name in enumerate(names)}
        return {name: values.cpu().numpy() for name, values in {**means, **shares}.items()}

    def select_uncertain(self) -> CategoricalPredictive:
        """The prediction of one position of each example, that of the largest entropy."""
        num_examples, num_positions = len(self.log_probs), self.log_probs.shape[1:-1].numel()
        position = self.entropy.flatten(1).nan_to_num(-1.0).argmax(1)
        return self._join_positions().select(num_positions * torch.arange(num_examples).to(position) + position)

    def flatten(self) -> CategoricalPredictive:
        """The predictions of all positions, one after the other, without those by which examples are padded."""
        flat = self._join_positions()
        has_prediction = ~flat.expected_entropy.isnan()
        return flat if bool(has_prediction.all()) else flat.select(has_prediction)

    def _join_positions(self) -> CategoricalPredictive:
        num_classes = self.log_probs.shape[-1]
        members = self.member_probs
        return CategoricalPredictive(
            self.log_probs.reshape(-1, num_classes),
            self.expected_entropy.reshape(-1),
            self.variance_of_probs.reshape(-1, num_classes),
            None if members is None else members.reshape(len(members), -1, num_classes),
        )

    def select_labelled(
        self, targets: Int[Tensor, "examples ..."], ignore_index: int = IGNORE_INDEX
    ) -> tuple[CategoricalPredictive, Int[Tensor, " labels"]]:
        """Predictions and labels of the positions that have a label, for the metrics of a classification.

        Args:
            targets: Class indices.
            ignore_index: Label of positions without a label.

        Raises:
            ValueError: The targets have another shape.
        """
        if targets.shape != self.log_probs.shape[:-1]:
            raise ValueError(
                f"There are predictions of the shape {tuple(self.log_probs.shape[:-1])}, and targets of the shape "
                f"{tuple(targets.shape)}. Give one class index for each position, in the same order."
            )
        labels = targets.reshape(-1)
        is_labelled = targets != ignore_index
        is_labelled[..., : self.num_skipped] = False
        is_labelled = is_labelled.reshape(-1)
        if bool(is_labelled.all()):
            return self._join_positions(), labels
        return self._join_positions().select(is_labelled.to(self.log_probs.device)), labels[is_labelled]

    @classmethod
    def concatenate(cls, predictions: Sequence[Self]) -> Self:
        """Join predictions for several batches of examples, in order; smaller ones are padded with NaN."""
        shapes = [p.log_probs.shape[1:-1] for p in predictions]
        if len({len(shape) for shape in shapes}) == 1 and len(set(shapes)) > 1:
            largest = [max(sizes) for sizes in zip(*shapes, strict=True)]
            predictions = [p._pad(largest) for p in predictions]
        return super().concatenate(predictions)

    def skip_first(self) -> Self:
        """The predictions moved by one position, along one axis of these, after a first one without a prediction."""
        return replace(self._pad([self.log_probs.shape[1] + 1], at_end=False), num_skipped=self.num_skipped + 1)

    def _pad(self, positions: Sequence[int], *, at_end: bool = True) -> Self:
        members, pad = self.member_probs, partial(pad_positions, positions=positions, fill=torch.nan, at_end=at_end)
        return replace(
            self,
            log_probs=pad(self.log_probs),
            expected_entropy=pad(self.expected_entropy),
            variance_of_probs=pad(self.variance_of_probs),
            member_probs=None if members is None else pad(members, axis=2),
        )


def pad_positions(
    values: Tensor, positions: Sequence[int], fill: float, axis: int = 1, *, at_end: bool = True
) -> Tensor:
    """Values with more positions.

    They have the shape (..., *positions, ...), with `axis` the first one of positions.

    >>> pad_positions(torch.tensor([[1, 2]]), [3], -100)
    tensor([[   1,    2, -100]])
    """
    end = axis + len(positions)
    padded = values.new_full((*values.shape[:axis], *positions, *values.shape[end:]), fill)
    kept = [
        slice(size) if at_end else slice(total - size, total)
        for size, total in zip(values.shape[axis:end], positions, strict=True)
    ]
    padded[(slice(None),) * axis + tuple(kept)] = values
    return padded
