"""Predictive distribution of several labels: the mean of the networks' probabilities of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from flatbayes.core.names import format_count
from flatbayes.likelihoods.categorical_predictive import categorical_entropy
from flatbayes.likelihoods.labels import to_tensor
from flatbayes.likelihoods.likelihood import Predictive

if TYPE_CHECKING:  # slow to import
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class BernoulliPredictive(Predictive):
    """Probabilities of labels and their uncertainty.

    Labels are predicted one by one: entropies and mutual information are sums over them.

    Attributes:
        log_probs: Log of the averaged probabilities that a label is 0, and that it is 1, float64; float32 on a device
            that has no float64.
        expected_entropies: Mean entropy of the networks' probabilities of each label in nats: aleatoric uncertainty.
        variance_of_probs: Variance over the networks of the probability of each label.
        member_probs: Each network's probabilities, float32; None unless they are kept.

    Examples:
        >>> logits = torch.tensor([[2.0, 0.0, -1.0]])
        >>> predictive = Bernoulli(num_labels=3).predictive([logits, logits + 1])
        >>> predictive.mean
        tensor([[0.9167, 0.6155, 0.3845]], dtype=torch.float64)
        >>> predictive.labels, bool((predictive.mutual_information <= predictive.entropy).all())
        (tensor([[ True,  True, False]]), True)
    """

    log_probs: Float[Tensor, "examples labels 2"]
    expected_entropies: Float[Tensor, "examples labels"]
    variance_of_probs: Float[Tensor, "examples labels"]
    member_probs: Float[Tensor, "draws examples labels"] | None = None

    def plot(
        self,
        inputs: Any = None,
        targets: Any = None,
        *,
        names: Sequence[str] | None = None,
        num_examples: int = 8,
        ax: "Axes | None" = None,
    ) -> "Axes":
        """Draw the most uncertain examples: the probability of each label, and the examples if they are images.

        Args:
            inputs: The examples that were predicted; of shape (examples, channels, height, width) they are drawn.
            targets: Rows of 0 and 1; the labels that are there have a frame.
            names: Names of the labels; None numbers them.
            num_examples: Largest number of examples.
            ax: Where to draw; by default new axes.

        Raises:
            ImportError: matplotlib is not installed.
        """
        from flatbayes.plotting.predictions import plot_label_probabilities

        return plot_label_probabilities(
            self.mean.cpu().numpy(),
            self.entropy.cpu().numpy(),
            list(map(str, range(self.log_probs.shape[1]) if names is None else names)),
            None if inputs is None else to_tensor(inputs).cpu().numpy(),
            None if targets is None else to_tensor(targets).reshape(self.log_probs.shape[:2]).cpu().numpy(),
            ax,
            num_examples=num_examples,
        )

    @property
    def mean(self) -> Float[Tensor, "examples labels"]:
        """Mean probability of each label."""
        return self.log_probs[..., 1].exp()

    @property
    def variance(self) -> Float[Tensor, "examples labels"]:
        """Variance over the networks of the probability of each label."""
        return self.variance_of_probs

    @property
    def labels(self) -> Bool[Tensor, "examples labels"]:
        """Which labels are more probable than not."""
        return self.log_probs[..., 1] > self.log_probs[..., 0]

    @property
    def label_entropies(self) -> Float[Tensor, "examples labels"]:
        """Entropy of the mean probability of each label in nats: H[mean p]."""
        return categorical_entropy(self.log_probs)

    @property
    def entropy(self) -> Float[Tensor, " examples"]:
        """Sum of the entropies of the labels in nats, an upper bound of that of all labels together."""
        return self.label_entropies.sum(-1)

    @property
    def mutual_information(self) -> Float[Tensor, " examples"]:
        """H[mean p] - mean H[p] of each label, at least zero, summed over the labels."""
        return (self.label_entropies - self.expected_entropies).clamp_min(0.0).sum(-1)

    def __repr__(self) -> str:
        num_examples, num_labels = self.log_probs.shape[:2]
        return f"<BernoulliPredictive: {format_count(num_examples, 'example')}, {format_count(num_labels, 'label')}>"

    def columns(self, names: Sequence[str] | None = None) -> Mapping[str, NDArray[np.generic]]:
        """`entropy`, `mutual_information`, and `probability_<name>` for every label.

        Args:
            names: Names of the labels; None numbers them.
        """
        probs = self.mean.cpu().numpy()
        names = [str(k) for k in range(probs.shape[1])] if names is None else names
        return {
            "entropy": self.entropy.cpu().numpy(),
            "mutual_information": self.mutual_information.cpu().numpy(),
            **{f"probability_{name}": probs[:, k] for k, name in enumerate(names)},
        }

    def select(self, rows: Tensor) -> Self:
        """The predictions of some examples, by indices or a mask."""
        members = None if self.member_probs is None else self.member_probs[:, rows]
        return type(self)(self.log_probs[rows], self.expected_entropies[rows], self.variance_of_probs[rows], members)

    @classmethod
    def concatenate(cls, predictions: Sequence[Self]) -> Self:
        """Join predictions for several batches of examples, in order."""
        members = [p.member_probs for p in predictions if p.member_probs is not None]
        return cls(
            torch.cat([p.log_probs for p in predictions]),
            torch.cat([p.expected_entropies for p in predictions]),
            torch.cat([p.variance_of_probs for p in predictions]),
            torch.cat(members, dim=1) if members else None,
        )
