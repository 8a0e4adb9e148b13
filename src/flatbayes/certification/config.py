"""Settings of a certificate: data split, failure probabilities, priors and optimisation."""

import math
from dataclasses import dataclass

from flatbayes.core.display import format_fields


@dataclass(frozen=True)
class CertificationConfig:
    """How a certificate is computed. The settings must not depend on the bound set, the examples it is computed on.

    Attributes:
        prior_fraction: Fraction of the training split on which the prior network is trained; the rest is the bound
            set. A larger fraction gives a better network and fewer examples to prove it with.
        delta: Probability, over the bound set, that a certificate does not hold.
        delta_mc: Probability, over the draws from the posterior, that it does not hold.
        num_draws: Networks drawn from the posterior; each is evaluated on the whole bound set.
        prior_stds: Standard deviations of the Gaussian prior around the prior network, such as [0.01, 0.03]. A
            posterior is fitted for each, and the one with the smallest bound is certified; K values cost log K nats.
        kl_weight: Weight of the KL divergence while the posterior is fitted. It changes how tight a certificate is,
            not whether it is valid.
        epochs: Passes over the bound set to fit the posterior, for each prior.
        lr: Learning rate of Adam, which fits the posterior.
        batch_size: Examples per optimisation step; forward passes without gradients take four times as many.
        num_trial_draws: Networks drawn to select the prior; they are not used in the certificate.
        num_test_draws: Networks drawn for the estimates on the test split.
        min_probability: Probability s at which the cross entropy is truncated: min(-log p, log 1/s) / log 1/s lies
            in [0, 1].

    Examples:
        >>> settings = CertificationConfig(prior_stds=(0.01, 0.03), epochs=1, num_draws=9, num_test_draws=9)
        >>> result = certify(MLP, data, SAM(rho=0.05), config, settings)
        >>> result.prior_std in settings.prior_stds
        True
    """

    prior_fraction: float = 0.5
    delta: float = 0.025
    delta_mc: float = 0.01
    num_draws: int = 1000
    prior_stds: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03)
    kl_weight: float = 3.0
    epochs: int = 30
    lr: float = 1e-3
    batch_size: int = 64
    num_trial_draws: int = 50
    num_test_draws: int = 100
    min_probability: float = 1e-5

    __repr__ = format_fields

    def __post_init__(self) -> None:
        for name in ("prior_fraction", "delta", "delta_mc", "min_probability"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must lie strictly between 0 and 1, got {getattr(self, name)}.")
        if self.delta + self.delta_mc >= 1:
            raise ValueError(
                f"delta + delta_mc must be below 1, got {self.delta} + {self.delta_mc}: no certificate would hold."
            )
        for name in ("num_draws", "batch_size", "num_trial_draws", "num_test_draws"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.epochs < 0:
            raise ValueError(f"epochs must be at least 0 (the posterior is then the prior), got {self.epochs}.")
        for name in ("kl_weight", "lr"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}.")
        if not self.prior_stds or not all(1e-8 <= std < math.inf for std in self.prior_stds):
            raise ValueError(
                "prior_stds must be at least one finite standard deviation of 1e-8 or more, got "
                f"{list(self.prior_stds)}."
            )
        if len(set(self.prior_stds)) < len(self.prior_stds):
            raise ValueError(
                f"prior_stds must be distinct, since each one loosens the bound; got {list(self.prior_stds)}."
            )
