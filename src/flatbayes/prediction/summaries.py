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
from flatbayes.likelihoods.categorical import entropy

Answer = dict[str, Tensor]
"""For classes `mean` (examples, classes), `entropy` and `mutual_information` (examples,), in nats; for numbers
`mean`, `std` and `epistemic_std`, each of the shape and in the unit of the targets."""


class Summary(nn.Module, ABC):
    """Makes an answer out of what networks give for the same examples.

    Attributes:
        fields: Names of what the answer holds, in order.
    """

    fields: tuple[str, ...]

    @abstractmethod
    def forward(self, outputs: Sequence[Tensor]) -> Answer:
        """The answer.

        Args:
            outputs: Those of each network, shape (examples, outputs).
        """


class ClassSummary(Summary):
    """The average of probabilities, and how uncertain it is."""

    fields = ("mean", "entropy", "mutual_information")

    def forward(self, outputs: Sequence[Tensor]) -> Answer:
        """H[mean p] is the entropy, H[mean p] - mean H[p] the mutual information."""
        log_probs = torch.stack([F.log_softmax(at_least_single(one), -1) for one in outputs])
        mean = log_probs.exp().mean(0)
        total = entropy(mean.log(), mean)
        return {
            "mean": mean,
            "entropy": total,
            "mutual_information": (total - entropy(log_probs).mean(0)).clamp_min(0.0),
        }


class NumberSummary(Summary):
    """Moments of a mixture of normal distributions.

    Args:
        likelihood: What the networks were trained with.
    """

    fields = ("mean", "std", "epistemic_std")
    location: Tensor
    scale: Tensor

    def __init__(self, likelihood: Gaussian) -> None:
        super().__init__()
        self.likelihood = likelihood
        self.register_buffer("location", torch.tensor(likelihood.location))
        self.register_buffer("scale", torch.tensor(likelihood.scale))

    def forward(self, outputs: Sequence[Tensor]) -> Answer:
        """The total variance is the mean of the variances and the variance of the means."""
        found = [self.likelihood.standardised(at_least_single(one)) for one in outputs]
        means, stds = (torch.stack(some) for some in zip(*found, strict=True))
        epistemic = means.var(0, correction=0)
        return in_units(means.mean(0), stds.square().mean(0) + epistemic, epistemic, self.location, self.scale)


def in_units(mean: Tensor, variance: Tensor, epistemic: Tensor, location: Tensor, scale: Tensor) -> Answer:
    """Moments of standardised targets, shape (examples, targets), as an answer in the unit of the targets."""
    found = {
        "mean": location + scale * mean,
        "std": scale * variance.sqrt(),
        "epistemic_std": scale * epistemic.sqrt(),
    }
    return {name: values.squeeze(-1) for name, values in found.items()} if mean.shape[-1] == 1 else found


def at_least_single(outputs: Tensor) -> Tensor:
    """Outputs in double precision as they are, others in single."""
    return outputs if outputs.dtype == torch.float64 else outputs.float()


def summary_of(likelihood: Likelihood) -> Summary:
    """What summarises the outputs that this likelihood reads.

    Raises:
        TypeError: It is one of the user's own.
    """
    match likelihood:
        case Custom():
            return summary_of(likelihood.reads)
        case Categorical():
            return ClassSummary()
        case Gaussian():
            return NumberSummary(likelihood)
        case _:
            raise TypeError(
                f"Which tensors a module with a {type(likelihood).__name__} should answer with is not known. Build "
                "CompiledPosterior with a Summary of your own."
            )
