"""Student losses and outputs: the mean of a posterior predictive, and the epistemic fraction of its uncertainty.

The mean is learnt by distillation (Hinton, Vinyals & Dean, arXiv:1503.02531; for posteriors Balan et al., NeurIPS
2015), and the uncertainty by further outputs of the same network (as in DUDES, Landgraf et al., arXiv:2303.09843).
Here one output is the *fraction* of the uncertainty that is epistemic, between 0 and 1, so the epistemic uncertainty
never exceeds the total. A Dirichlet distribution over class probabilities (Malinin et al., ICLR 2020) would give both
from one set of outputs, but needs the digamma function, which ONNX lacks.
"""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from flatbayes.core.names import format_count
from flatbayes.likelihoods import (
    Bernoulli,
    BernoulliPredictive,
    Categorical,
    CategoricalPredictive,
    Custom,
    DistributionLikelihood,
    Gaussian,
    Likelihood,
    NumberPredictive,
    Predictive,
)
from flatbayes.likelihoods.categorical_predictive import categorical_entropy
from flatbayes.likelihoods.families import TargetKind
from flatbayes.likelihoods.gaussian import location_scale_tensors
from flatbayes.prediction.outputs import (
    NUMBER_NAMES,
    PredictiveSummary,
    SummaryTensors,
    promote_to_float32,
    rescale_moments,
    summarize_labels,
)


class Student(PredictiveSummary):
    """Loss and summary of a network that is trained on the predictions of a posterior."""

    @property
    @abstractmethod
    def num_outputs(self) -> int:
        """Number of outputs of the network for each example."""

    @abstractmethod
    def make_targets(self, predictive: Predictive) -> Float[Tensor, "examples columns"]:
        """Training targets from the posterior's predictions."""

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Divergence of the outputs from the targets, averaged over the examples; its minimum is 0."""


class CategoricalStudent(Student):
    """Outputs are a logit for each class and one for the fraction mutual information / entropy.

    Args:
        num_classes: Number of classes.
    """

    output_names = ("mean", "entropy", "mutual_information")

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    @property
    def num_outputs(self) -> int:
        """A logit for each class, and one for the epistemic fraction."""
        return self.num_classes + 1

    def make_targets(self, predictive: Predictive) -> Float[Tensor, "examples columns"]:
        """Averaged probabilities, then the epistemic fraction."""
        if not isinstance(predictive, CategoricalPredictive):
            raise TypeError(f"A student for classification cannot learn from a {type(predictive).__name__}.")
        fraction = predictive.mutual_information / predictive.entropy.clamp_min(torch.finfo(torch.float32).tiny)
        return torch.cat([predictive.mean, fraction.clamp(0, 1).unsqueeze(-1)], dim=-1).float()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """KL(mean || student) + H[mean] KL(fraction || student's fraction), averaged over the examples, in nats.

        The entropy is the weight of the second term, because the fraction of a small entropy matters little.
        """
        logits, fraction_logit = promote_to_float32(outputs).split([self.num_classes, 1], dim=-1)
        probs, fraction = targets.split([self.num_classes, 1], dim=-1)
        entropy: Tensor = torch.special.entr(probs).sum(-1)
        mean_kl = -(probs * F.log_softmax(logits, -1)).sum(-1) - entropy
        loss: Tensor = (mean_kl + entropy * bernoulli_kl(fraction, fraction_logit).squeeze(-1)).mean()
        return loss

    def forward(self, outputs: Sequence[Tensor]) -> SummaryTensors:
        """Probabilities, their entropy, and the epistemic fraction of it."""
        (student_outputs,) = outputs
        logits, fraction_logit = promote_to_float32(student_outputs).split([self.num_classes, 1], dim=-1)
        log_probs = F.log_softmax(logits, -1)
        entropy = categorical_entropy(log_probs)
        return {
            "mean": log_probs.exp(),
            "entropy": entropy,
            "mutual_information": entropy * fraction_logit.squeeze(-1).sigmoid(),
        }


class BernoulliStudent(Student):
    """Outputs are a logit for each label, then one for the fraction mutual information / entropy of each.

    Args:
        num_labels: Number of labels.
    """

    output_names = ("mean", "entropy", "mutual_information")

    def __init__(self, num_labels: int) -> None:
        super().__init__()
        self.num_labels = num_labels

    @property
    def num_outputs(self) -> int:
        """Two logits for each label."""
        return 2 * self.num_labels

    def make_targets(self, predictive: Predictive) -> Float[Tensor, "examples columns"]:
        """Averaged probabilities, then the epistemic fractions."""
        if not isinstance(predictive, BernoulliPredictive):
            raise TypeError(f"A student for several labels cannot learn from a {type(predictive).__name__}.")
        entropies = predictive.label_entropies
        information = entropies - predictive.expected_entropies
        fractions = information / entropies.clamp_min(torch.finfo(torch.float32).tiny)
        return torch.cat([predictive.mean, fractions.clamp(0, 1)], dim=-1).float()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """KL(mean || student) + H[mean] KL(fraction || student's fraction), summed over the labels, in nats."""
        logits, fraction_logits = promote_to_float32(outputs).chunk(2, dim=-1)
        probs, fractions = targets.chunk(2, dim=-1)
        entropies: Tensor = torch.special.entr(probs) + torch.special.entr(1 - probs)
        losses = bernoulli_kl(probs, logits) + entropies * bernoulli_kl(fractions, fraction_logits)
        return losses.sum(-1).mean()

    def forward(self, outputs: Sequence[Tensor]) -> SummaryTensors:
        """Probabilities, the sum of their entropies, and that of the epistemic fractions of these."""
        (student_outputs,) = outputs
        logits, fraction_logits = promote_to_float32(student_outputs).chunk(2, dim=-1)
        log_probs = torch.stack([F.logsigmoid(-logits), F.logsigmoid(logits)], -1)
        return summarize_labels(log_probs, categorical_entropy(log_probs) * fraction_logits.sigmoid())


class NumberStudent(Student):
    """Outputs are a location and a raw scale for each target, then the logit of each epistemic fraction.

    With outputs o1 and o2, and m, s the location and scale of the likelihood, mean and standard deviation are those
    of the likelihood for a `Gaussian`, and for the targets of a `DistributionLikelihood`

        numbers                      m + s o1,      s (0.01 + softplus(o2))
        counts, positive numbers     s exp(o1),     s exp(o2)
        fractions                    sigmoid(o1),   sqrt(mean (1 - mean)) sigmoid(o2)

    m and s of a function of the user's are medians of the predictions that the student is given.

    Args:
        likelihood: Likelihood of the posterior.
    """

    output_names = NUMBER_NAMES

    def __init__(self, likelihood: Gaussian | DistributionLikelihood) -> None:
        super().__init__()
        self.num_targets = likelihood.num_targets
        self.location, self.scale = likelihood.location, likelihood.scale
        self.kind = "numbers" if isinstance(likelihood, Gaussian) else likelihood.target_kind
        if self.scale and self.kind != "numbers":  # of which the family takes no location, and fractions no scale
            self.location = (0.0,) * self.num_targets
            self.scale = (1.0,) * self.num_targets if self.kind == "fractions" else self.scale
        self.gaussian = likelihood if isinstance(likelihood, Gaussian) else Gaussian(self.num_targets)

    @property
    def num_outputs(self) -> int:
        """Three for each target."""
        return 3 * self.num_targets

    def make_targets(self, predictive: Predictive) -> Float[Tensor, "examples columns"]:
        """Means, total variances and epistemic fractions of standardised targets.

        Raises:
            TypeError: The predictions are none of numbers.
            ValueError: Some have no finite mean and variance.
        """
        if not isinstance(predictive, NumberPredictive):
            raise TypeError(f"A student for regression cannot learn from a {type(predictive).__name__}.")
        moments = (predictive.mean, predictive.variance, predictive.epistemic)
        mean, variance, epistemic = (values.reshape(len(values), -1) for values in moments)
        if not self.scale:
            self.location, self.scale = _find_unit(self.kind, mean, variance)
        location, scale = location_scale_tensors(self.location, self.scale, mean.dtype, mean.device)
        smallest = torch.finfo(torch.float32).tiny
        columns = [(mean - location) / scale, (variance / scale.square()).clamp_min(smallest)]
        columns.append(epistemic / variance.clamp_min(smallest))
        targets = torch.cat(columns, dim=-1).float()
        wrong_rows = (~targets.isfinite()).any(-1).nonzero().flatten()
        if len(wrong_rows):
            raise ValueError(
                f"The posterior predicts no finite mean and variance for {format_count(len(wrong_rows), 'example')}, "
                f"the first in row {int(wrong_rows[0])} (counted from 0), and a student learns these. Leave such "
                "inputs out, or choose a distribution with a finite variance."
            )
        return targets

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """KL(N(mean, variance) || student) + KL(fraction || student's fraction), summed over targets, in nats.

        Up to a constant the first term is the KL divergence from the mixture itself to a normal distribution, which
        is minimal for that with the mean and variance of the mixture.
        """
        mean, std, fraction_logit = self._split_outputs(outputs)
        target_mean, variance, fraction = targets.chunk(3, dim=-1)
        ratio = (variance + (target_mean - mean).square()) / std.square()
        normal_kl = std.log() - 0.5 * variance.log() + 0.5 * (ratio - 1)
        return (normal_kl + bernoulli_kl(fraction, fraction_logit)).sum(-1).mean()

    def forward(self, outputs: Sequence[Tensor]) -> SummaryTensors:
        """Mean, total and epistemic standard deviation."""
        (student_outputs,) = outputs
        mean, std, fraction_logit = self._split_outputs(student_outputs)
        variance = std.square()
        return rescale_moments(mean, variance, variance * fraction_logit.sigmoid(), self.location, self.scale)

    def _split_outputs(self, outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Means and standard deviations of standardised targets, and logits of the epistemic fraction."""
        moments, fraction_logit = promote_to_float32(outputs).split([2 * self.num_targets, self.num_targets], dim=-1)
        match self.kind:
            case "numbers":
                return (*self.gaussian.split_outputs(moments), fraction_logit)
            case "fractions":
                location, raw_scale = moments.chunk(2, dim=-1)
                largest_std = (0.5 * (F.logsigmoid(location) + F.logsigmoid(-location))).exp()
                return location.sigmoid(), largest_std * raw_scale.sigmoid(), fraction_logit
            case _:
                return (*moments.exp().chunk(2, dim=-1), fraction_logit)


def _find_unit(kind: TargetKind, mean: Tensor, variance: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Location and scale of each target, by medians over finite predictions of the shape (examples, targets)."""
    is_finite = mean.isfinite() & variance.isfinite()
    mean, variance = (torch.where(is_finite, values, torch.nan) for values in (mean, variance))
    location, scale = torch.zeros_like(mean[0]), torch.ones_like(mean[0])
    if kind == "numbers":
        location = mean.nanmedian(0).values
        scale = (variance + (mean - location).square()).nanmedian(0).values.sqrt()
    elif kind != "fractions":
        scale = mean.nanmedian(0).values
    scale = torch.where(scale > 0, scale, 1.0)
    return tuple(location.tolist()), tuple(scale.tolist())


def bernoulli_kl(probability: Tensor, logit: Tensor) -> Tensor:
    """KL(Bernoulli(probability) || Bernoulli(sigmoid(logit))), elementwise."""
    entropy: Tensor = torch.special.entr(probability) + torch.special.entr(1 - probability)
    return F.binary_cross_entropy_with_logits(logit, probability, reduction="none") - entropy


def make_student(likelihood: Likelihood) -> Student:
    """Build the student for a posterior with this likelihood.

    Raises:
        TypeError: The likelihood is user-defined.
    """
    match likelihood:
        case Custom():
            return make_student(likelihood.output_likelihood)
        case Categorical():
            return CategoricalStudent(likelihood.num_classes)
        case Bernoulli():
            return BernoulliStudent(likelihood.num_labels)
        case Gaussian() | DistributionLikelihood():
            return NumberStudent(likelihood)
        case _:
            raise TypeError(
                f"There is no student for a {type(likelihood).__name__}: only posteriors with a Categorical, "
                "Bernoulli, Gaussian or DistributionLikelihood can be distilled."
            )
