"""Predictive summaries for deployment: mean and uncertainty tensors from the outputs of several networks.

They are the quantities of a `Predictive`, in the precision of the networks (`predict` returns double) and with
operations that `torch.export` and ONNX support.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flatbayes.calibration import CalibrationMap
from flatbayes.calibration.maps import transform_label_log_probs, transform_log_probs
from flatbayes.core.devices import widest_float_dtype
from flatbayes.likelihoods import (
    Bernoulli,
    Categorical,
    Custom,
    DenseCategorical,
    DistributionLikelihood,
    Gaussian,
    Likelihood,
)
from flatbayes.likelihoods.categorical import pad_logit
from flatbayes.likelihoods.categorical_predictive import categorical_entropy
from flatbayes.likelihoods.distribution_likelihood import PROBE
from flatbayes.likelihoods.gaussian import location_scale_tensors

SummaryTensors = dict[str, Tensor]
"""For classes `mean` (examples, classes), `entropy` and `mutual_information` (examples,), in nats, and likewise for
several labels, with `mean` (examples, labels), and a class at each position, with `mean` (examples, *positions,
classes) and the others (examples, *positions); for numbers `mean`, `std` and `epistemic_std`, each with the shape and
unit of the targets."""
NUMBER_NAMES = ("mean", "std", "epistemic_std")
"""Names of the summary tensors of numbers."""


class PredictiveSummary(nn.Module, ABC):
    """Computes summary tensors from the outputs of several networks for the same examples.

    Attributes:
        output_names: Names of the summary tensors, in order.
    """

    output_names: tuple[str, ...]

    @abstractmethod
    def forward(self, outputs: Sequence[Tensor]) -> SummaryTensors:
        """Summarise the outputs of each network, shape (examples, outputs)."""


class CategoricalSummary(PredictiveSummary):
    """Mean probabilities, their entropy, and the mutual information between class and network.

    Args:
        single_logit: As for `Categorical`.
        class_dim: Axis of the classes in the outputs; the tensors have them on the last axis.
        shift_labels: As for `DenseCategorical`: the first position has no prediction, and is NaN.
    """

    output_names = ("mean", "entropy", "mutual_information")

    def __init__(self, *, single_logit: bool = False, class_dim: int = -1, shift_labels: bool = False) -> None:
        super().__init__()
        self.single_logit, self.class_dim, self.shift_labels = single_logit, class_dim, shift_labels

    def forward(self, outputs: Sequence[Tensor]) -> SummaryTensors:
        """For networks with probabilities p: entropy H[mean p], mutual information H[mean p] - mean H[p]."""
        logits = torch.stack([promote_to_float32(output).movedim(self.class_dim, -1) for output in outputs])
        if self.single_logit:
            logits = pad_logit(logits.flatten(1) if logits.ndim < 4 else logits.squeeze(-1))
        if self.shift_labels:
            logits = F.pad(logits[..., :-1, :], (0, 0, 1, 0), value=math.nan)
        log_probs = F.log_softmax(logits, -1)
        mean = log_probs.exp().mean(0)
        entropy = categorical_entropy(mean.log(), mean)
        return {
            "mean": mean,
            "entropy": entropy,
            "mutual_information": (entropy - categorical_entropy(log_probs).mean(0)).clamp_min(0.0),
        }


class BernoulliSummary(PredictiveSummary):
    """Mean probability of each label, and entropy and mutual information, summed over the labels."""

    output_names = ("mean", "entropy", "mutual_information")

    def forward(self, outputs: Sequence[Tensor]) -> SummaryTensors:
        """For each label entropy H[mean p] and mutual information H[mean p] - mean H[p] of the networks' p."""
        return summarize_labels(*self.average(outputs))

    def average(self, outputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Log of the mean probabilities that a label is 0, and that it is 1; and mutual information of each label.

        Logits of each network have the shape (examples, labels), or (examples,) for one label.
        """
        logits = torch.stack([promote_to_float32(output) for output in outputs])
        logits = logits[..., None] if logits.ndim == 2 else logits
        members = torch.stack([F.logsigmoid(-logits), F.logsigmoid(logits)], -1)
        log_probs = members.logsumexp(0) - math.log(len(outputs))
        information = categorical_entropy(log_probs) - categorical_entropy(members).mean(0)
        return log_probs, information.clamp_min(0.0)


def summarize_labels(log_probs: Tensor, information: Tensor) -> SummaryTensors:
    """Probability of each label, and entropy and mutual information, at most the entropy, summed over the labels.

    `log_probs` are those of the values 0 and 1, shape (examples, labels, 2); `information` is that of each label and
    network.
    """
    entropies = categorical_entropy(log_probs)
    return {
        "mean": log_probs[..., 1].exp(),
        "entropy": entropies.sum(-1),
        "mutual_information": torch.minimum(information, entropies).sum(-1),
    }


class GaussianSummary(PredictiveSummary):
    """Moments of an equal mixture of normal distributions.

    Args:
        likelihood: The likelihood with which the networks were trained.
    """

    output_names = NUMBER_NAMES

    def __init__(self, likelihood: Gaussian) -> None:
        super().__init__()
        self.likelihood = likelihood

    def forward(self, outputs: Sequence[Tensor]) -> SummaryTensors:
        """In the unit of the targets."""
        moments = [self.likelihood.split_outputs(promote_to_float32(output)) for output in outputs]
        means, stds = (torch.stack(values) for values in zip(*moments, strict=True))
        return mix_moments(means, stds.square(), self.likelihood.location, self.likelihood.scale)


class DistributionSummary(PredictiveSummary):
    """Moments of an equal mixture of distributions of any family.

    They are computed in double precision, since formulas of torch such as exp(s²) - 1 lose digits in single.

    Args:
        likelihood: The likelihood with which the networks were trained.

    Raises:
        ValueError: torch has no mean or variance of the distribution.
    """

    output_names = NUMBER_NAMES

    def __init__(self, likelihood: DistributionLikelihood) -> None:
        super().__init__()
        self.likelihood = likelihood
        try:
            likelihood.compute_moments(torch.full((2, likelihood.num_outputs), PROBE))
        except NotImplementedError as error:
            raise ValueError(
                "torch has no mean or no variance of the distribution that the function of the likelihood returns, "
                "and a compiled or exported posterior needs both: return a subclass of it that defines the "
                "properties mean and variance. Or distil the posterior, which takes those of samples: "
                "flatbayes.distill."
            ) from error

    def forward(self, outputs: Sequence[Tensor]) -> SummaryTensors:
        """As of a Gaussian; infinite or NaN where the distribution has no mean or variance."""
        moments = [self.likelihood.compute_moments(output.to(widest_float_dtype(output))) for output in outputs]
        means, variances = (torch.stack(values) for values in zip(*moments, strict=True))
        tensors = mix_moments(means, variances)
        dtype = promote_to_float32(outputs[0]).dtype
        return {name: values.to(dtype) for name, values in tensors.items()}


def mix_moments(
    means: Tensor, variances: Tensor, location: Sequence[float] = (), scale: Sequence[float] = ()
) -> SummaryTensors:
    """Moments of an equal mixture from those of its networks, shape (networks, examples, targets).

    The total variance is the mean of the variances plus the variance of the means. Location and scale are as for
    `rescale_moments`.
    """
    epistemic = means.var(0, correction=0)
    return rescale_moments(means.mean(0), variances.mean(0) + epistemic, epistemic, location, scale)


def rescale_moments(
    mean: Tensor, variance: Tensor, epistemic: Tensor, location: Sequence[float] = (), scale: Sequence[float] = ()
) -> SummaryTensors:
    """Convert moments of standardised targets, shape (examples, targets), to the unit of the targets.

    `epistemic` are variances of the networks' means; location and scale are one number for each target, () for those
    of moments in the unit of the targets.
    """
    std, epistemic_std = variance.sqrt(), epistemic.sqrt()
    if scale:
        center, unit = location_scale_tensors(tuple(location), tuple(scale), mean.dtype, mean.device)
        mean, std, epistemic_std = center + unit * mean, unit * std, unit * epistemic_std
    moments = dict(zip(NUMBER_NAMES, (mean, std, epistemic_std), strict=True))
    return {name: values.squeeze(-1) for name, values in moments.items()} if mean.shape[-1] == 1 else moments


def promote_to_float32(outputs: Tensor) -> Tensor:
    """Convert to single precision unless the outputs are in double."""
    return outputs if outputs.dtype == torch.float64 else outputs.float()


class CalibratedSummary(PredictiveSummary):
    """Summary tensors with a calibration.

    Args:
        summary: The summary of the outputs.
        calibration: The map of the predictions.

    Raises:
        ValueError: The map changes distribution functions, which the summary does not have.
    """

    weights: Tensor
    bias: Tensor

    def __init__(self, summary: PredictiveSummary, calibration: CalibrationMap) -> None:
        super().__init__()
        if calibration.method == "quantile":
            raise ValueError(
                "A calibration by 'quantile' changes distribution functions, and a compiled or exported posterior "
                "has mean and standard deviation only. Use flatbayes.calibrate(fitted, data, method='scale'), or "
                "flatbayes.prediction.replace_calibration(fitted, None) for the posterior without calibration."
            )
        self.summary, self.output_names = summary, summary.output_names
        weights, bias = calibration.get_parameters()
        self.register_buffer("weights", weights.float())
        self.register_buffer("bias", bias.float())

    def forward(self, outputs: Sequence[Tensor]) -> SummaryTensors:
        """As `CalibrationMap.apply`: probabilities and entropies by the map, standard deviations by its factors."""
        if isinstance(self.summary, BernoulliSummary):
            log_probs, information = self.summary.average(outputs)
            log_probs = transform_label_log_probs(log_probs, self.weights.to(log_probs), self.bias.to(log_probs))
            return summarize_labels(log_probs, information)
        tensors = self.summary(outputs)
        if "std" in tensors:
            return {name: values if name == "mean" else self._scale(values) for name, values in tensors.items()}
        mean = tensors["mean"]
        log_probs = transform_log_probs(mean.log(), self.weights.to(mean), self.bias.to(mean))
        entropy = categorical_entropy(log_probs)
        information = torch.minimum(tensors["mutual_information"], entropy)
        return {"mean": log_probs.exp(), "entropy": entropy, "mutual_information": information}

    def _scale(self, values: Tensor) -> Tensor:
        return values * (self.weights[0] if values.ndim == 1 else self.weights).to(values)


def make_summary(likelihood: Likelihood) -> PredictiveSummary:
    """Build the summary for a likelihood.

    Raises:
        TypeError: The likelihood is user-defined.
        ValueError: Its distribution has no mean and variance.
    """
    match likelihood:
        case Custom():
            return make_summary(likelihood.output_likelihood)
        case Categorical():
            return CategoricalSummary(single_logit=likelihood.single_logit)
        case DenseCategorical():
            return CategoricalSummary(
                single_logit=likelihood.single_logit,
                class_dim=likelihood.class_dim,
                shift_labels=likelihood.shift_labels,
            )
        case Bernoulli():
            return BernoulliSummary()
        case Gaussian():
            return GaussianSummary(likelihood)
        case DistributionLikelihood():
            return DistributionSummary(likelihood)
        case _:
            raise TypeError(
                f"There is no summary for a {type(likelihood).__name__}. Build CompiledPosterior with a "
                "PredictiveSummary of your own."
            )
