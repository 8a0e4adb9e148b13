"""Categorical likelihood of a class for each position of an example: a pixel of an image, a token of a text.

Every position is predicted as an example of `Categorical` is. The loss is the mean over the labelled positions of a
batch, so that an example counts as one observation beside the prior, however many positions it has. Labels of
neighbouring positions depend on each other, and are no independent observations.

A causal language model predicts at each position the token at the next one, and its labels are the tokens themselves:
`shift_labels` compares the outputs at a position with the label of the next, as the losses of transformers do.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from flatbayes.core import LossFn
from flatbayes.core.devices import is_accelerator
from flatbayes.core.input_trees import IGNORE_INDEX
from flatbayes.core.names import format_count
from flatbayes.likelihoods.categorical import Categorical
from flatbayes.likelihoods.dense_categorical_predictive import DenseCategoricalPredictive
from flatbayes.likelihoods.labels import to_class_indices
from flatbayes.likelihoods.likelihood import Likelihood


@dataclass(frozen=True)
class DenseCategorical(Likelihood):
    """Targets are a class index for each position of an example; outputs are logits of each.

    For semantic segmentation, the tagging of tokens and language models. The loss is the mean of
    `torch.nn.functional.cross_entropy` over the labelled positions of a batch.

    Attributes:
        num_classes: Number of classes.
        class_dim: Axis of the classes in the outputs of a network: 1 for (batch, classes, *positions), as of
            convolutional networks; -1 for (batch, *positions, classes), as of token classifiers.
        ignore_index: Label of positions without a label, such as padding. They do not contribute to losses and
            metrics.
        single_logit: Whether a network has one output at each position, the logit of class 1 of two, on the axis
            `class_dim`: (batch, 1, *positions), or (batch, *positions, 1).
        shift_labels: Whether the outputs at a position predict the label of the next one, as those of causal language
            models whose labels are their input tokens. Predictions are at the positions of the labels: that of a
            token follows from the tokens before it, and the first one has none.

    Examples:
        >>> likelihood = DenseCategorical(num_classes=3)
        >>> logits = torch.randn(2, 3, 4, 4)  # 2 images of 4 x 4 pixels
        >>> masks = torch.randint(3, (2, 4, 4))
        >>> bool(likelihood.loss(logits, masks).isclose(nn.functional.cross_entropy(logits, masks)))
        True
        >>> tagger = DenseCategorical(num_classes=3, class_dim=-1)
        >>> tagger.predictive([torch.randn(2, 7, 3)]).top_class.shape  # 2 texts of 7 tokens
        torch.Size([2, 7])
        >>> language_model = DenseCategorical(num_classes=50, class_dim=-1, shift_labels=True)
        >>> logits, tokens = torch.randn(2, 7, 50), torch.randint(50, (2, 7))
        >>> expected = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        >>> bool(language_model.loss(logits, tokens).isclose(expected))
        True
    """

    has_positions = True

    num_classes: int
    class_dim: int = 1
    ignore_index: int = IGNORE_INDEX
    single_logit: bool = False
    shift_labels: bool = False

    def __post_init__(self) -> None:
        if self.class_dim not in (1, -1):
            raise ValueError(
                f"class_dim must be 1, for outputs (batch, classes, *positions), or -1, for (batch, *positions, "
                f"classes); got {self.class_dim}."
            )
        _ = self.categorical  # checks the other values

    @cached_property
    def categorical(self) -> Categorical:
        """The likelihood of a single position."""
        return Categorical(self.num_classes, self.ignore_index, self.single_logit)

    @property
    def num_outputs(self) -> int:
        """One logit for each class at every position; one for two classes with `single_logit`."""
        return self.categorical.num_outputs

    def to_logits(self, outputs: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ... classes"]:
        """One logit for each class on the last axis, from the outputs of a network.

        Args:
            outputs: Logits, with those of a position on the axis `class_dim`.

        Returns:
            Those at the position of each label; with `shift_labels` they are 0 at the first position.

        Raises:
            ValueError: They have another shape.
        """
        rows = self._move_axis(outputs)
        logits = self.categorical.to_logits(rows.flatten(0, -2)).reshape(*rows.shape[:-1], self.num_classes)
        return F.pad(logits[..., :-1, :], (0, 0, 1, 0)) if self.shift_labels else logits

    def align(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs and targets without the last and first position with `shift_labels`; else as they are.

        Args:
            outputs: Outputs of a network.
            targets: Class indices.
        """
        if not self.shift_labels:
            return outputs, targets
        return outputs.narrow(2 if self.class_dim == 1 else 1, 0, targets.shape[-1] - 1), targets[..., 1:]

    def _move_axis(self, outputs: Tensor) -> Tensor:
        """The outputs with those of a position on the last axis."""
        count = self.num_outputs
        if outputs.ndim > 2 and outputs.shape[self.class_dim] == count:
            return outputs.movedim(self.class_dim, -1)
        shape = f"(batch, {count}, *positions)" if self.class_dim == 1 else f"(batch, *positions, {count})"
        wrong_axis = outputs.ndim > 2 and outputs.shape[-self.class_dim] == count
        advice = f"Pass class_dim={-self.class_dim}" if wrong_axis else "Change the last layer of the network"
        if (
            self.num_classes == 2
            and not self.single_logit
            and outputs.ndim > 2
            and outputs.shape[self.class_dim] == 1
        ):
            advice = "If the output is the logit of class 1, pass single_logit=True"
        raise ValueError(
            f"The model gives outputs of shape {tuple(outputs.shape)}, and {shape} is expected for one of "
            f"{self.num_classes} classes at each position. {advice}, or another DenseCategorical."
        )

    def prepare_targets(self, targets: Tensor) -> Tensor:
        """Class indices, int64, shape (batch, *positions).

        Args:
            targets: Class indices of any dtype, and `ignore_index` at positions without a label.

        Raises:
            ValueError: They have another shape, or other values.
        """
        if targets.ndim < 2:
            raise ValueError(
                "Targets must be one class index for each position of an example, shape (examples, *positions), got "
                f"the shape {tuple(targets.shape)}. For one class of each example use "
                f"Categorical({self.num_classes})."
            )
        if self.shift_labels and targets.ndim > 2:
            raise ValueError(
                "With shift_labels=True targets are the tokens of texts, shape (examples, tokens), got the shape "
                f"{tuple(targets.shape)}: leave shift_labels out."
            )
        check_values = not is_accelerator(targets)
        labels = to_class_indices(targets.reshape(-1), self.num_classes, self.ignore_index, check_values=check_values)
        return labels.reshape(targets.shape)

    def check_outputs(self, outputs: Tensor) -> None:
        """Check that there are the logits of a class at each position.

        Args:
            outputs: Outputs of a network for a batch.

        Raises:
            ValueError: They have another shape.
        """
        self._move_axis(outputs)

    def find_labelled(self, targets: Tensor) -> Tensor:
        """Where at least one position has a label."""
        return self.find_targets(targets).flatten(1).any(1)

    def find_targets(self, targets: Tensor) -> Tensor:
        """Where a position has a label, in the shape of the targets.

        Args:
            targets: From `prepare_targets`.
        """
        is_labelled = targets != self.ignore_index
        if self.shift_labels:
            is_labelled = is_labelled & (torch.arange(targets.shape[-1], device=targets.device) > 0)
        return is_labelled

    def count_targets(self, targets: Tensor) -> int:
        """Number of labelled positions."""
        return int(self.find_targets(targets).sum())

    def loss(self, outputs: Float[Tensor, "batch ..."], targets: Int[Tensor, "batch ..."]) -> Float[Tensor, ""]:
        """Mean cross entropy over the labelled positions of all examples; zero if there are none.

        Args:
            outputs: Logits, as for `to_logits`.
            targets: From `prepare_targets`.

        Raises:
            ValueError: The outputs are not such logits, or have other positions than the targets.
        """
        return self.make_smoothed_loss(0.0)(outputs, targets)

    def make_smoothed_loss(self, label_smoothing: float) -> LossFn:
        """Make the mean cross entropy with label smoothing, as `Categorical.make_smoothed_loss` does.

        Args:
            label_smoothing: Probability that is spread evenly over all classes, at least 0 and below 1.
        """
        position_loss = self.categorical.make_smoothed_loss(label_smoothing)

        def loss(outputs: Tensor, targets: Tensor) -> Tensor:
            rows = self._move_axis(outputs)
            if rows.shape[:-1] != targets.shape:
                raise ValueError(
                    f"The model gives outputs of shape {tuple(outputs.shape)}, those of the positions "
                    f"{tuple(rows.shape[1:-1])} of {format_count(len(rows), 'example')}, and the targets have the "
                    f"shape {tuple(targets.shape)}. Give one class index for each position of the outputs: resize "
                    "outputs or targets, or remove an axis of size 1 of the targets by squeeze(1)."
                )
            if self.shift_labels:
                rows, targets = rows[..., :-1, :], targets[..., 1:]
            return position_loss(rows.flatten(0, -2), targets.flatten())

        return loss

    def predictive(
        self, outputs: Iterable[Float[Tensor, "batch ..."]], *, keep_members: bool = False
    ) -> DenseCategoricalPredictive:
        """Mean of the networks' probabilities at each position.

        Args:
            outputs: Logits of each network for the same examples, as for `to_logits`. Iterated once.
            keep_members: Also keep the probabilities of each network.

        Raises:
            ValueError: The outputs are not such logits, or there are none.
        """
        shape: list[int] = []

        def flatten(network_outputs: Tensor) -> Tensor:
            rows = self._move_axis(network_outputs)
            rows = rows[..., :-1, :] if self.shift_labels else rows
            shape[:] = rows.shape[:-1]
            return rows.flatten(0, -2)

        flat = self.categorical.predictive(map(flatten, outputs), keep_members=keep_members)
        members = flat.member_probs
        predictive = DenseCategoricalPredictive(
            flat.log_probs.unflatten(0, shape),
            flat.expected_entropy.unflatten(0, shape),
            flat.variance_of_probs.unflatten(0, shape),
            None if members is None else members.unflatten(1, shape),
        )
        return predictive.skip_first() if self.shift_labels else predictive

    def count_predictive_bytes(self, num_networks: int) -> int:
        """Bytes of the sums and logits of a position, whatever the number of networks."""
        return self.categorical.count_predictive_bytes(num_networks)
