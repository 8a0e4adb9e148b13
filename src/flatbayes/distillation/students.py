"""What one network must say to stand for a posterior: the mean, and how much of the uncertainty is the networks' own.

The mean is learnt as in distillation (Hinton, Vinyals & Dean, arXiv:1503.02531; for posteriors Balan et al., NeurIPS
2015), and uncertainty is learnt by further outputs of the same network (as in DUDES, Landgraf et al.,
arXiv:2303.09843). Here one output gives the *share* of the uncertainty that is epistemic, between 0 and 1: so no
answer says that the networks disagree on more than there is. A Dirichlet over class probabilities (Malinin et al.,
ICLR 2020) would say both by one set of outputs, but needs the digamma function, which ONNX has not.
"""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from flatbayes.likelihoods import (
    Categorical,
    CategoricalPredictive,
    Custom,
    Gaussian,
    GaussianPredictive,
    Likelihood,
    Predictive,
)
from flatbayes.likelihoods.categorical import categorical_entropy
from flatbayes.prediction.outputs import PredictiveSummary, SummaryTensors, promote_to_float32, rescale_moments


class Student(PredictiveSummary):
    """Reads the outputs of a network that learns from a posterior's predictions."""

    @property
    @abstractmethod
    def num_outputs(self) -> int:
        """Numbers that the network must give for each example."""

    @abstractmethod
    def make_targets(self, predictive: Predictive) -> Float[Tensor, "examples columns"]:
        """What is to be learnt from the posterior's predictions."""

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """How far outputs are from the lesson, averaged over the examples: at least zero, and zero at its minimum."""


class CategoricalStudent(Student):
    """Outputs are a logit for each class and one for the share that the mutual information has of the entropy.

    Args:
        num_classes: Classes.
    """

    output_names = ("mean", "entropy", "mutual_information")

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    @property
    def num_outputs(self) -> int:
        """A logit for each class, and one more."""
        return self.num_classes + 1

    def make_targets(self, predictive: Predictive) -> Float[Tensor, "examples columns"]:
        """Averaged probabilities, then the share."""
        if not isinstance(predictive, CategoricalPredictive):
            raise TypeError(f"A student of classes cannot learn from a {type(predictive).__name__}.")
        share = predictive.mutual_information / predictive.entropy.clamp_min(torch.finfo(torch.float32).tiny)
        return torch.cat([predictive.mean, share.clamp(0, 1).unsqueeze(-1)], dim=-1).float()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """KL(mean || student) + H[mean] KL(share || student's share), the mean over the examples, in nats.

        The entropy weighs the second term, since shares of nothing do not matter.
        """
        logits, raw = promote_to_float32(outputs).split([self.num_classes, 1], dim=-1)
        probs, share = targets.split([self.num_classes, 1], dim=-1)
        total: Tensor = torch.special.entr(probs).sum(-1)
        of_mean = -(probs * F.log_softmax(logits, -1)).sum(-1) - total
        loss: Tensor = (of_mean + total * bernoulli_kl(share, raw).squeeze(-1)).mean()
        return loss

    def forward(self, outputs: Sequence[Tensor]) -> SummaryTensors:
        """The student's own entropy, and its share."""
        (only,) = outputs
        logits, raw = promote_to_float32(only).split([self.num_classes, 1], dim=-1)
        log_probs = F.log_softmax(logits, -1)
        total = categorical_entropy(log_probs)
        return {
            "mean": log_probs.exp(),
            "entropy": total,
            "mutual_information": total * raw.squeeze(-1).sigmoid(),
        }


class GaussianStudent(Student):
    """Outputs are those that the likelihood reads, then one for the epistemic share of each variance.

    Args:
        likelihood: That of the posterior, which has the unit of the targets.
    """

    output_names = ("mean", "std", "epistemic_std")
    location: Tensor
    scale: Tensor

    def __init__(self, likelihood: Gaussian) -> None:
        super().__init__()
        self.likelihood = likelihood
        self.register_buffer("location", torch.tensor(likelihood.location))
        self.register_buffer("scale", torch.tensor(likelihood.scale))

    @property
    def num_outputs(self) -> int:
        """A mean, a raw scale and a raw share for each target."""
        return 3 * self.likelihood.num_targets

    def make_targets(self, predictive: Predictive) -> Float[Tensor, "examples columns"]:
        """Means, total variances and shares, of standardised targets."""
        if not isinstance(predictive, GaussianPredictive):
            raise TypeError(f"A student of numbers cannot learn from a {type(predictive).__name__}.")
        rows, scale = len(predictive.mean), self.scale.to(predictive.mean)
        mean = (predictive.mean.reshape(rows, -1) - self.location.to(predictive.mean)) / scale
        variance, epistemic = (v.reshape(rows, -1) for v in (predictive.variance, predictive.epistemic))
        return torch.cat([mean, variance / scale.square(), epistemic / variance], dim=-1).float()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """KL(N(mean, variance) || student) + KL(share || student's share), summed over targets, in nats.

        Up to a constant the first term is the KL divergence from the mixture itself, which is least for the normal
        distribution that has its mean and variance.
        """
        mean, std, raw = self._split_outputs(outputs)
        wanted, variance, share = targets.chunk(3, dim=-1)
        ratio = (variance + (wanted - mean).square()) / std.square()
        of_moments = std.log() - 0.5 * variance.log() + 0.5 * (ratio - 1)
        return (of_moments + bernoulli_kl(share, raw)).sum(-1).mean()

    def forward(self, outputs: Sequence[Tensor]) -> SummaryTensors:
        """Mean, and both standard deviations."""
        (only,) = outputs
        mean, std, raw = self._split_outputs(only)
        variance = std.square()
        return rescale_moments(mean, variance, variance * raw.sigmoid(), self.location, self.scale)

    def _split_outputs(self, outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        targets = self.likelihood.num_targets
        of_likelihood, raw = promote_to_float32(outputs).split([2 * targets, targets], dim=-1)
        return (*self.likelihood.split_outputs(of_likelihood), raw)


def bernoulli_kl(probability: Tensor, logit: Tensor) -> Tensor:
    """KL divergence of coins that fall with probability sigmoid(raw) from those that do with probability share."""
    least: Tensor = torch.special.entr(probability) + torch.special.entr(1 - probability)
    return F.binary_cross_entropy_with_logits(logit, probability, reduction="none") - least


def make_student(likelihood: Likelihood) -> Student:
    """The student for a posterior with this likelihood.

    Raises:
        TypeError: It is one of the user's own.
    """
    match likelihood:
        case Custom():
            return make_student(likelihood.output_likelihood)
        case Categorical():
            return CategoricalStudent(likelihood.num_classes)
        case Gaussian():
            return GaussianStudent(likelihood)
        case _:
            raise TypeError(
                f"What a network should learn of a {type(likelihood).__name__} is not known: only posteriors over "
                "classes (Categorical) and numbers (Gaussian) can be distilled."
            )
