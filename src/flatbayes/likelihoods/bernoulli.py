"""Bernoulli likelihood for several labels of an example, each with a probability of its own (multi-label).

A network has one logit for each label, as for `torch.nn.BCEWithLogitsLoss`. The Bayesian model average is the mean of
the networks' probabilities of each label.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from flatbayes.core.devices import is_accelerator, to_double
from flatbayes.core.input_trees import IGNORE_INDEX
from flatbayes.core.names import format_count
from flatbayes.likelihoods.bernoulli_predictive import BernoulliPredictive
from flatbayes.likelihoods.bernoulli_sums import BernoulliSums
from flatbayes.likelihoods.likelihood import Likelihood, format_wrong_outputs


@dataclass(frozen=True)
class Bernoulli(Likelihood):
    """Targets are rows of 0 and 1, one for each label; outputs are logits.

    The loss is a sum over the labels of an example: `num_labels` times the mean that `BCEWithLogitsLoss` takes.

    Attributes:
        num_labels: Number of labels, the size of a network's output. For a single one `Categorical` has more
            metrics, with `single_logit`.
        ignore_index: Target of a label that is not known, as NaN is. It does not contribute to losses and metrics.
            None allows NaN only.

    Examples:
        >>> likelihood = Bernoulli(num_labels=3)
        >>> logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
        >>> likelihood.loss(logits, torch.tensor([[1, 0, 0], [0, -100, 1]]))  # one label is not known
        tensor(1.2598)
        >>> likelihood.predictive([logits, logits + 1]).mean  # of two networks
        tensor([[0.9167, 0.6155, 0.3845],
                [0.6155, 0.8059, 0.6155]], dtype=torch.float64)
    """

    num_labels: int
    ignore_index: int | None = IGNORE_INDEX

    def __post_init__(self) -> None:
        if self.num_labels < 1:
            raise ValueError(f"There must be at least 1 label, got num_labels={self.num_labels}.")
        if self.ignore_index in (0, 1):
            raise ValueError(f"ignore_index must be neither 0 nor 1, the values of a label; got {self.ignore_index}.")

    @property
    def num_outputs(self) -> int:
        """One logit for each label."""
        return self.num_labels

    def prepare_targets(self, targets: Tensor) -> Tensor:
        """Rows of numbers, shape (batch, num_labels).

        Args:
            targets: 0, 1, or a probability for each label, of any dtype; `ignore_index` or NaN where it is not known.
                Shape (batch, num_labels), or (batch,) for one label.

        Raises:
            ValueError: They have another shape, or other values.
        """
        rows = targets[:, None] if targets.ndim == 1 and self.num_labels == 1 else targets
        if rows.ndim != 2 or rows.shape[1] != self.num_labels or rows.is_complex():
            raise ValueError(
                f"Each example must have {format_count(self.num_labels, 'label')}, shape (examples, "
                f"{self.num_labels}), got {targets.dtype} of shape {tuple(targets.shape)}."
            )
        rows = rows if rows.is_floating_point() else rows.long()  # -100 is no number of uint8
        if not is_accelerator(rows):
            values, is_known = self.split_targets(rows)
            is_wrong = is_known & ~((values >= 0) & (values <= 1))
            if is_wrong.any():
                row, label = is_wrong.nonzero()[0].tolist()
                unknown = "" if self.ignore_index is None else f" or {self.ignore_index}"
                raise ValueError(
                    f"Labels must be 0 or 1, or probabilities, and NaN{unknown} where they are not known; got "
                    f"{float(rows[row, label]):g} for label {label} of example {row} (counted from 0)."
                )
        return rows

    def check_outputs(self, outputs: Tensor) -> None:
        """Check that there is one logit for each label.

        Args:
            outputs: Outputs of a network for a batch.

        Raises:
            ValueError: They have another shape.
        """
        self._get_logits(outputs)

    def find_labelled(self, targets: Tensor) -> Tensor | None:
        """Where at least one label is known."""
        return self.split_targets(targets)[1].any(-1)

    def split_targets(self, targets: Float[Tensor, "batch labels"]) -> tuple[Tensor, Tensor]:
        """Values of the labels, 0 where they are not known, and whether they are known; both (batch, labels).

        Args:
            targets: From `prepare_targets`.
        """
        is_known = ~targets.isnan() if targets.is_floating_point() else torch.ones_like(targets, dtype=torch.bool)
        if self.ignore_index is not None:
            is_known = is_known & (targets != self.ignore_index)
        return torch.where(is_known, targets, torch.zeros_like(targets)), is_known

    def loss(
        self, outputs: Float[Tensor, "batch labels"], targets: Float[Tensor, "batch labels"]
    ) -> Float[Tensor, ""]:
        """Binary cross entropy, summed over the known labels of an example; mean over the examples that have some.

        It is 0 if no label is known.

        Args:
            outputs: Logits.
            targets: From `prepare_targets`.

        Raises:
            ValueError: The outputs are not one logit per label.
        """
        logits = self._get_logits(outputs)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        values, is_known = self.split_targets(targets.reshape(logits.shape))
        losses = F.binary_cross_entropy_with_logits(logits, values.to(logits.dtype), reduction="none")
        return (losses * is_known).sum() / is_known.any(-1).sum().clamp_min(1)

    def predictive(
        self, outputs: Iterable[Float[Tensor, "batch labels"]], *, keep_members: bool = False
    ) -> BernoulliPredictive:
        """Mean of the networks' probabilities of each label.

        Args:
            outputs: Logits of each network for the same examples. Iterated once.
            keep_members: Also keep the probabilities of each network.

        Raises:
            ValueError: The outputs are not one logit per label, or there are none.
        """
        sums, members = BernoulliSums(), list[Tensor]()
        for network_outputs in outputs:
            logits = self._get_logits(network_outputs)
            sums.add(logits)
            if keep_members:
                members.append(to_double(logits).sigmoid().float())
        if not sums.count:
            raise ValueError("There is no prediction without networks: ask for at least 1 draw.")
        return BernoulliPredictive(*sums.compute_means(), torch.stack(members) if keep_members else None)

    def count_predictive_bytes(self, num_networks: int) -> int:
        """Bytes of the sums and logits of an example, whatever the number of networks."""
        return 192 * self.num_labels

    def _get_logits(self, outputs: Tensor) -> Tensor:
        logits = outputs[:, None] if outputs.ndim == 1 and self.num_labels == 1 else outputs
        if logits.ndim != 2 or logits.shape[1] != self.num_labels:
            need = f"there {'is' if self.num_labels == 1 else 'are'} {format_count(self.num_labels, 'label')}"
            raise ValueError(format_wrong_outputs(outputs, need, self.num_labels))
        return logits
