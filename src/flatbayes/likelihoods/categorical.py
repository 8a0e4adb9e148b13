"""Categorical likelihood for classification: a softmax over the outputs of a network, or a sigmoid of its one output.

The Bayesian model average is the mean of the networks' probabilities, not of their logits (`categorical_sums.py`).
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from flatbayes.core import LossFn
from flatbayes.core.devices import is_accelerator, to_double
from flatbayes.core.input_trees import IGNORE_INDEX
from flatbayes.likelihoods.categorical_predictive import CategoricalPredictive
from flatbayes.likelihoods.categorical_sums import CategoricalSums
from flatbayes.likelihoods.labels import to_class_indices
from flatbayes.likelihoods.likelihood import Likelihood, format_wrong_outputs


@dataclass(frozen=True)
class Categorical(Likelihood):
    """Targets are class indices, or class probabilities; outputs are logits.

    Attributes:
        num_classes: Number of classes.
        ignore_index: Label of examples without a label. They do not contribute to losses, metrics and `num_data`.
            None if every example has a label, which makes a loss of few examples faster.
        single_logit: Whether a network has one output, the logit of class 1 of two; the logit of class 0 is 0. The
            loss is then that of `torch.nn.BCEWithLogitsLoss`. By default a network has one output for each class.

    Examples:
        >>> likelihood = Categorical(num_classes=3)
        >>> logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
        >>> likelihood.loss(logits, torch.tensor([0, -100]))  # of the one example with a label
        tensor(0.2395)
        >>> likelihood.predictive([logits, -logits]).mean  # of two networks
        tensor([[0.4252, 0.2874, 0.2874],
                [0.3171, 0.3657, 0.3171]], dtype=torch.float64)
        >>> binary = Categorical(num_classes=2, single_logit=True)
        >>> logit, labels = torch.tensor([[2.0], [-1.0]]), torch.tensor([1, 1])
        >>> binary.loss(logit, labels), nn.BCEWithLogitsLoss()(logit, labels[:, None].float())
        (tensor(0.7201), tensor(0.7201))
    """

    num_classes: int
    ignore_index: int | None = IGNORE_INDEX
    single_logit: bool = False

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise ValueError(f"Classification needs at least 2 classes, got {self.num_classes}.")
        if self.ignore_index is not None and 0 <= self.ignore_index < self.num_classes:
            raise ValueError(
                f"ignore_index must be no index of the {self.num_classes} classes, got {self.ignore_index}."
            )
        if self.single_logit and self.num_classes != 2:
            raise ValueError(
                f"single_logit is for 2 classes, got num_classes={self.num_classes}: for more classes a network has "
                "one output for each."
            )

    @property
    def num_outputs(self) -> int:
        """One logit for each class; one for two classes with `single_logit`."""
        return 1 if self.single_logit else self.num_classes

    def to_logits(self, outputs: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch classes"]:
        """One logit for each class, from the outputs of a network.

        Args:
            outputs: Logits, shape (batch, num_outputs); with `single_logit` also (batch,).

        Raises:
            ValueError: They have another shape.
        """
        self.check_outputs(outputs)
        return pad_logit(outputs.reshape(len(outputs))) if self.single_logit else outputs

    def prepare_targets(self, targets: Tensor) -> Tensor:
        """Class indices, int64, shape (batch,); or class probabilities, shape (batch, classes).

        Args:
            targets: Class indices of any dtype, shape (batch,) or (batch, 1); one-hot rows, or class probabilities.

        Raises:
            ValueError: They are neither.
        """
        can_read_values = not is_accelerator(targets)
        return to_class_indices(targets, self.num_classes, self.ignore_index, check_values=can_read_values)

    def find_labelled(self, targets: Tensor) -> Tensor | None:
        """Where the label is not `ignore_index`; None for class probabilities."""
        return targets != self.ignore_index if self.ignore_index is not None and targets.ndim == 1 else None

    def loss(self, outputs: Float[Tensor, "batch ..."], targets: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
        """Mean cross entropy over the examples with a label; zero if there are none.

        Args:
            outputs: Logits, as for `to_logits`.
            targets: Class indices, or class probabilities.

        Raises:
            ValueError: The outputs are not such logits.
        """
        return self.make_smoothed_loss(0.0)(outputs, targets)

    def make_smoothed_loss(self, label_smoothing: float) -> LossFn:
        """Make the mean cross entropy with label smoothing (Szegedy et al., 2016).

        (1 - label_smoothing) CE(target) + label_smoothing / num_classes * (sum of CE(class) over all classes). For
        training only, since it is not the likelihood of the data.

        Args:
            label_smoothing: Probability that is spread evenly over all classes, at least 0 and below 1.
        """

        def loss(outputs: Tensor, targets: Tensor) -> Tensor:
            logits = self.to_logits(outputs if outputs.dtype == torch.float64 else outputs.float())
            if targets.is_floating_point():
                return F.cross_entropy(logits, targets.to(logits.dtype), label_smoothing=label_smoothing)
            if self.ignore_index is None:
                return F.cross_entropy(logits, targets, label_smoothing=label_smoothing)
            mean = F.cross_entropy(logits, targets, label_smoothing=label_smoothing, ignore_index=self.ignore_index)
            return torch.where((targets != self.ignore_index).any(), mean, 0.0)  # torch: NaN if there are none

        return loss

    def predictive(
        self, outputs: Iterable[Float[Tensor, "batch ..."]], *, keep_members: bool = False
    ) -> CategoricalPredictive:
        """Mean of the networks' probabilities.

        Args:
            outputs: Logits of each network for the same examples, as for `to_logits`. Iterated once.
            keep_members: Also keep the probabilities of each network.

        Raises:
            ValueError: The outputs are not such logits, or there are none.
        """
        sums, members = CategoricalSums(), list[Tensor]()
        if isinstance(outputs, Tensor) and len(outputs) and not keep_members:
            self.check_outputs(outputs[0])
            sums.add_stacked(pad_logit(outputs.flatten(1)) if self.single_logit else outputs)
            outputs = ()
        for network_outputs in outputs:
            logits = self.to_logits(network_outputs)
            sums.add(logits)
            if keep_members:
                members.append(to_double(logits).softmax(-1).float())
        if not sums.count:
            raise ValueError("There is no prediction without networks: ask for at least 1 draw.")
        return CategoricalPredictive(*sums.compute_means(), torch.stack(members) if keep_members else None)

    def count_predictive_bytes(self, num_networks: int) -> int:
        """Bytes of the sums and logits of an example, whatever the number of networks."""
        return 64 * self.num_classes

    def check_outputs(self, outputs: Tensor) -> None:
        """Check that there is one logit for each class, or one for two classes with `single_logit`.

        Args:
            outputs: Outputs of a network for a batch.

        Raises:
            ValueError: They have another shape.
        """
        shape = tuple(outputs.shape[1:])
        if outputs.ndim and (shape == (self.num_outputs,) or (self.single_logit and not shape)):
            return
        need = "there is one logit for two classes" if self.single_logit else f"there are {self.num_classes} classes"
        message = format_wrong_outputs(outputs, need, self.num_outputs)
        if self.num_classes == 2 and not self.single_logit and outputs.ndim and shape in ((), (1,)):
            message += " If the output is the logit of class 1, pass likelihood=Categorical(2, single_logit=True)."
        raise ValueError(message)


def pad_logit(logit: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape classes"]:
    """Logits of two classes whose softmax is that of a sigmoid: 0, and the given one.

    >>> pad_logit(torch.tensor([1.5])).softmax(-1)[:, 1] == torch.tensor([1.5]).sigmoid()
    tensor([True])
    """
    return torch.stack([torch.zeros_like(logit), logit], -1)
