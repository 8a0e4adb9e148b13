"""Predictive distribution of a classification: the mean of the networks' probabilities."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from flatbayes.core.names import format_count
from flatbayes.likelihoods.labels import encode_labels, to_tensor
from flatbayes.likelihoods.likelihood import Predictive

if TYPE_CHECKING:  # slow to import
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class ClassProbabilities(Predictive):
    """Probabilities of classes on the last axis, and what follows from them."""

    log_probs: Float[Tensor, "*shape classes"]
    expected_entropy: Float[Tensor, "*shape"]
    variance_of_probs: Float[Tensor, "*shape classes"]
    member_probs: Float[Tensor, "draws *shape classes"] | None = None

    @property
    def mean(self) -> Float[Tensor, "*shape classes"]:
        """Mean class probabilities of the networks."""
        return self.log_probs.exp()

    @property
    def variance(self) -> Float[Tensor, "*shape classes"]:
        """Variance over the networks of each class probability."""
        return self.variance_of_probs

    @property
    def entropy(self) -> Float[Tensor, "*shape"]:
        """Entropy of the mean probabilities in nats: H[mean p]."""
        return categorical_entropy(self.log_probs)

    @property
    def mutual_information(self) -> Float[Tensor, "*shape"]:
        """H[mean p] - mean H[p], at least zero."""
        return (self.entropy - self.expected_entropy).clamp_min(0.0)

    @property
    def top_class(self) -> Int[Tensor, "*shape"]:
        """Index of the most probable class."""
        return self.log_probs.argmax(-1)

    @property
    def confidence(self) -> Float[Tensor, "*shape"]:
        """Probability of the most probable class."""
        return self.log_probs.amax(-1).exp()

    def select(self, rows: Tensor) -> Self:
        """The predictions of some examples, by indices or a mask."""
        members = None if self.member_probs is None else self.member_probs[:, rows]
        return replace(
            self,
            log_probs=self.log_probs[rows],
            expected_entropy=self.expected_entropy[rows],
            variance_of_probs=self.variance_of_probs[rows],
            member_probs=members,
        )

    @classmethod
    def concatenate(cls, predictions: Sequence[Self]) -> Self:
        """Join predictions for several batches of examples, in order."""
        members = [p.member_probs for p in predictions if p.member_probs is not None]
        return replace(
            predictions[0],
            log_probs=torch.cat([p.log_probs for p in predictions]),
            expected_entropy=torch.cat([p.expected_entropy for p in predictions]),
            variance_of_probs=torch.cat([p.variance_of_probs for p in predictions]),
            member_probs=torch.cat(members, dim=1) if members else None,
        )


@dataclass(frozen=True, eq=False)
class CategoricalPredictive(ClassProbabilities):
    """Class probabilities and their uncertainty.

    Attributes:
        log_probs: Log of the averaged probabilities, float64; float32 on a device that has no float64.
        expected_entropy: Mean entropy of the networks' probabilities in nats: aleatoric uncertainty.
        variance_of_probs: Variance over the networks of each class probability.
        member_probs: Each network's probabilities, float32; None unless they are kept.
        abstain_below: Confidence below which the prediction abstains; None never abstains.

    Examples:
        >>> predictive = fitted.predict(inputs[:4])
        >>> predictive.mean.shape, predictive.top_class.shape
        (torch.Size([4, 10]), torch.Size([4]))
        >>> bool((predictive.mutual_information <= predictive.entropy).all())
        True
    """

    log_probs: Float[Tensor, "examples classes"]
    expected_entropy: Float[Tensor, " examples"]
    variance_of_probs: Float[Tensor, "examples classes"]
    member_probs: Float[Tensor, "draws examples classes"] | None = None
    abstain_below: float | None = None

    @property
    def abstained(self) -> Bool[Tensor, " examples"]:
        """Whether the confidence is below `abstain_below`."""
        confidence = self.confidence
        return confidence < (-torch.inf if self.abstain_below is None else self.abstain_below)

    def __repr__(self) -> str:
        num_examples, num_classes = self.log_probs.shape
        return f"<CategoricalPredictive: {format_count(num_examples, 'example')}, {num_classes} classes>"

    def plot(
        self,
        inputs: Any = None,
        targets: Any = None,
        *,
        names: Sequence[str] | None = None,
        num_examples: int = 8,
        ax: "Axes | None" = None,
    ) -> "Axes":
        """Draw the most uncertain examples: probabilities of their likeliest classes, and the examples if images.

        Args:
            inputs: The examples that were predicted; of shape (examples, channels, height, width) they are drawn.
            targets: Class of each example, as an index or, with `names`, as a name; the right class is blue.
            names: Names of the classes; None numbers them.
            num_examples: Largest number of examples.
            ax: Where to draw; by default new axes.

        Raises:
            ImportError: matplotlib is not installed.
            ValueError: A target is not one of the names.
        """
        from flatbayes.plotting.predictions import plot_uncertain

        names = [str(k) for k in range(self.log_probs.shape[1])] if names is None else list(map(str, names))

        return plot_uncertain(
            self.mean.cpu().numpy(),
            self.entropy.cpu().numpy(),
            names,
            None if inputs is None else to_tensor(inputs).cpu().numpy(),
            None if targets is None else encode_labels(targets, names).tolist(),
            ax,
            num_examples=num_examples,
        )

    def columns(self, names: Sequence[str] | None = None) -> Mapping[str, NDArray[np.generic]]:
        """`class`, `confidence`, `entropy`, `mutual_information`, and `probability_<name>` for every class.

        With `abstain_below` also `abstained`.

        Args:
            names: Names of the classes; None numbers them.
        """
        probs = self.mean.cpu().numpy()
        names = [str(k) for k in range(probs.shape[1])] if names is None else names
        top = self.top_class.cpu().numpy()
        abstained = {} if self.abstain_below is None else {"abstained": self.abstained.cpu().numpy()}
        return {
            "class": np.asarray(names)[top],
            **abstained,
            "confidence": self.confidence.cpu().numpy(),
            "entropy": self.entropy.cpu().numpy(),
            "mutual_information": self.mutual_information.cpu().numpy(),
            **{f"probability_{name}": probs[:, k] for k, name in enumerate(names)},
        }


def set_abstention(predictive: Predictive, abstain_below: float) -> CategoricalPredictive:
    """The predictions with a confidence below which they abstain.

    Infinity abstains always.

    Raises:
        TypeError: The predictions are not of classes.
        ValueError: The confidence is not a probability.
    """
    if not isinstance(predictive, CategoricalPredictive):
        raise TypeError(
            f"abstain_below is a confidence of one class of each example, got a {type(predictive).__name__}. Compare "
            f"predictive.{'std' if hasattr(predictive, 'std') else 'entropy'} with a threshold of your own."
        )
    if not (0 <= abstain_below <= 1 + 1e-6 or abstain_below == math.inf):  # rounding
        raise ValueError(
            f"abstain_below is a confidence from 0 to 1 (infinity abstains always), got {abstain_below:g}."
        )
    return replace(predictive, abstain_below=abstain_below)


def categorical_entropy(
    log_probs: Float[Tensor, "*batch classes"], probs: Float[Tensor, "*batch classes"] | None = None
) -> Float[Tensor, "*batch"]:
    """-sum_c p_c log p_c in nats, with 0 log 0 = 0."""
    probs = log_probs.exp() if probs is None else probs
    return -(probs * log_probs.clamp_min(torch.finfo(log_probs.dtype).min)).sum(-1)
