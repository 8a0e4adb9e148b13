"""Result of a certification: certified bounds, test estimates, and the certificate as a sentence."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from flatbayes.core.names import format_count
from flatbayes.theory import Certificate

ASSUMPTIONS = (
    "Assumptions: the examples of the bound set are independent and distributed like new examples, and nothing was "
    "chosen with them: not the model, the flatness, the training or certification configuration, or the seed."
)
LIMITATIONS = (
    "The certificate does not cover any single network or the average of the networks' predictions; the numbers on "
    "the test split are estimates."
)


@dataclass(frozen=True)
class ErrorEstimates:
    """Error rates on the test split: estimates, not certified.

    Attributes:
        num_data: Number of test examples.
        gibbs_error: Mean error rate of networks drawn from the posterior.
        ensemble_error: Error rate of the average of their probabilities.
        prior_error: Error rate of the prior network.

    Examples:
        >>> settings = CertificationConfig(prior_stds=(0.03,), epochs=1, num_draws=9, num_test_draws=9)
        >>> certify(MLP, data, SAM(rho=0.05), config, settings).test.num_data
        100
    """

    num_data: int
    gibbs_error: float
    ensemble_error: float
    prior_error: float


@dataclass(frozen=True)
class CertificationResult:
    """Certificates of a posterior, and values to compare them with.

    Attributes:
        flatness: Flatness with which the prior network was trained, as a short name.
        num_prior_examples: Number of examples in the prior set.
        num_weights: Number of weights that have a distribution.
        prior_std: Standard deviation of the selected prior.
        kl: KL(Q || P) in nats, without the cost of selecting the prior.
        error: Certificate of the error rate of networks drawn from the posterior.
        cross_entropy: Certificate of their truncated cross entropy.
        prior_error: Error rate of the prior network on the bound set.
        holdout_bound: Held-out bound on the error rate of the prior network alone, from the bound set and with the
            same confidence.
        test: Estimates on the test split.

    Examples:
        >>> settings = CertificationConfig(prior_stds=(0.03,), epochs=1, num_draws=9, num_test_draws=9)
        >>> result = certify(MLP, data, SAM(rho=0.05), config, settings)
        >>> result.test.gibbs_error < result.error.bound
        True
    """

    flatness: str
    num_prior_examples: int
    num_weights: int
    prior_std: float
    kl: float
    error: Certificate
    cross_entropy: Certificate
    prior_error: float
    holdout_bound: float
    test: ErrorEstimates

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as in `certificate.json`."""
        return asdict(self)


def format_statement(result: CertificationResult) -> str:
    """The certified statement, its assumptions and its limitations, as one paragraph.

    Examples:
        >>> settings = CertificationConfig(prior_stds=(0.03,), epochs=1, num_draws=9, num_test_draws=9)
        >>> format_statement(certify(MLP, data, SAM(rho=0.05), config, settings))[:60]
        'With probability at least 96.5%, over the 100 examples of th'
    """
    error = result.error
    joint_confidence = max(0.0, 2 * error.confidence - 1)
    vacuous = "" if error.bound < 1 else " This bound is vacuous: no error rate exceeds 1."
    return (
        f"With probability at least {format_confidence(error.confidence)}, over the "
        f"{format_count(error.num_data, 'example')} of the bound set and the "
        f"{format_count(error.num_draws, 'network')} drawn: if every new example is classified by a network freshly "
        f"drawn from the posterior, the expected error rate is at most {format_upper_bound(error.bound)}.{vacuous} "
        "The cross entropy of these networks, truncated and scaled to [0, 1], is at most "
        f"{format_upper_bound(result.cross_entropy.bound)} with the same probability; both bounds hold together with "
        f"probability at least {format_confidence(joint_confidence)}. {ASSUMPTIONS} {LIMITATIONS}"
    )


def format_upper_bound(bound: float) -> str:
    """An upper bound with four decimals, rounded up, so that it remains an upper bound.

    >>> format_upper_bound(0.12341)
    '0.1235'
    """
    return f"{min(1.0, math.ceil(bound * 1e4 - 1e-9) / 1e4):.4f}"


def format_confidence(probability: float) -> str:
    """A probability in per cent with one decimal, rounded down.

    >>> format_confidence(0.9659), format_confidence(0.965)
    ('96.5%', '96.5%')
    """
    return f"{math.floor(probability * 1e3 + 1e-9) / 1e3:.1%}"
