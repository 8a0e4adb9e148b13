"""What a deployed module answers with: a few tensors by name, from the outputs of its networks.

The same quantities as those of a `Predictive`, in the precision of the networks (single, where `predict` works in
double) and in operations that `torch.export` and ONNX know.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flatbayes.likelihoods import Categorical, Custom, Gaussian, Likelihood
from flatbayes.likelihoods.categorical import categorical_entropy

SummaryTensors = dict[str, Tensor]
"""For classes `mean` (examples, classes), `entropy` and `mutual_information` (examples,), in nats; for numbers
`mean`, `std` and `epistemic_std`, each of the shape and in the unit of the targets."""


class PredictiveSummary(nn.Module, ABC):
    """Makes an answer out of what networks give for the same examples.

    Attributes:
        output_names: Names of what the answer holds, in order.
    """

    output_names: tuple[str, ...]

    @abstractmethod
    def forward(self, outputs: Sequence[Tensor]) -> SummaryTensors:
        """The answer.

        Args:
            outputs: Those of each network, shape (examples, outputs).
        """


class CategoricalSummary(PredictiveSummary):
    """The average of probabilities, and how uncertain it is."""

    output_names = ("mean", "entropy", "mutual_information")

    def forward(self, outputs: Sequence[Tensor]) -> SummaryTensors:
        """H[mean p] is the entropy, H[mean p] - mean H[p] the mutual information."""
        log_probs = torch.stack([F.log_softmax(promote_to_float32(one), -1) for one in outputs])
        mean = log_probs.exp().mean(0)
        total = categorical_entropy(mean.log(), mean)
        return {
            "mean": mean,
            "entropy": total,
            "mutual_information": (total - categorical_entropy(log_probs).mean(0)).clamp_min(0.0),
        }


class GaussianSummary(PredictiveSummary):
    """Moments of a mixture of normal distributions.

    Args:
        likelihood: What the networks were trained with.
    """

    output_names = ("mean", "std", "epistemic_std")
    location: Tensor
    scale: Tensor

    def __init__(self, likelihood: Gaussian) -> None:
        super().__init__()
        self.likelihood = likelihood
        self.register_buffer("location", torch.tensor(likelihood.location))
        self.register_buffer("scale", torch.tensor(likelihood.scale))

    def forward(self, outputs: Sequence[Tensor]) -> SummaryTensors:
        """The total variance is the mean of the variances and the variance of the means."""
        found = [self.likelihood.split_outputs(promote_to_float32(one)) for one in outputs]
        means, stds = (torch.stack(some) for some in zip(*found, strict=True))
        epistemic = means.var(0, correction=0)
        return rescale_moments(means.mean(0), stds.square().mean(0) + epistemic, epistemic, self.location, self.scale)


def rescale_moments(
    mean: Tensor, variance: Tensor, epistemic: Tensor, location: Tensor, scale: Tensor
) -> SummaryTensors:
    """Moments of standardised targets, shape (examples, targets), as an answer in the unit of the targets."""
    found = {
        "mean": location + scale * mean,
        "std": scale * variance.sqrt(),
        "epistemic_std": scale * epistemic.sqrt(),
    }
    return {name: values.squeeze(-1) for name, values in found.items()} if mean.shape[-1] == 1 else found


def promote_to_float32(outputs: Tensor) -> Tensor:
    """Outputs in double precision as they are, others in single."""
    return outputs if outputs.dtype == torch.float64 else outputs.float()


def make_summary(likelihood: Likelihood) -> PredictiveSummary:
    """What summarises the outputs that this likelihood reads.

    Raises:
        TypeError: It is one of the user's own.
    """
    match likelihood:
        case Custom():
            return make_summary(likelihood.output_likelihood)
        case Categorical():
            return CategoricalSummary()
        case Gaussian():
            return GaussianSummary(likelihood)
        case _:
            raise TypeError(
                f"Which tensors a module with a {type(likelihood).__name__} should answer with is not known. Build "
                "CompiledPosterior with a PredictiveSummary of your own."
            )
