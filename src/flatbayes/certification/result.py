"""What a certification ends in: numbers that are promised, and some that are only estimated."""

from dataclasses import asdict, dataclass
from typing import Any

from flatbayes.theory import Certificate


@dataclass(frozen=True)
class ErrorEstimates:
    """Error rates on the test part: estimates, no part of the promise.

    Attributes:
        num_data: Number of test examples.
        gibbs_error: Mean error of networks drawn from the posterior.
        ensemble_error: Error of the average of their probabilities.
        prior_error: Error of the prior network.
    """

    num_data: int
    gibbs_error: float
    ensemble_error: float
    prior_error: float


@dataclass(frozen=True)
class CertificationResult:
    """Certificates of a posterior, and what there is to compare them with.

    Attributes:
        flatness: How the prior network was trained.
        num_prior_examples: Examples that it was trained on.
        num_weights: Weights with a distribution.
        prior_std: Standard deviation of the prior around it.
        kl: KL(Q || P) in nats, without the cost of choosing the prior.
        error: Certificate of the error rate of the posterior's networks.
        cross_entropy: Certificate of their bounded cross entropy.
        prior_error: Error rate of the prior network on the examples of the bound.
        holdout_bound: What these examples prove about that network alone, with the same confidence.
        test: Estimates on the test part.
    """

    flatness: str
    num_prior_examples: int
    num_weights: int
    prior_std: float
    kl: float
    error: Certificate
    cross_entropy: Certificate
    prior_error: float
    held_out_bound: float
    test: ErrorEstimates

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)
