"""What is to be decided before the data are seen: the split, the probabilities of failure, the priors."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class CertificationConfig:
    """How a certificate is made. The choice must not depend on the examples it is for.

    Attributes:
        prior_fraction: Share of the training part that the prior network is trained on; the bound is for the others.
            More makes a better network, and leaves less to prove it with.
        delta: Probability over the examples of the bound that a certificate fails.
        delta_mc: Probability over the draws that it fails.
        num_draws: Networks drawn from the posterior, each measured on all examples of the bound.
        prior_stds: Standard deviations of the Gaussian prior around the prior network, such as [0.01, 0.03]. Each is
            tried; the best is kept, and K of them cost log K nats.
        kl_weight: Weight of the KL divergence while the posterior is fitted. It decides how good a certificate is,
            not whether it holds.
        epochs: Passes over the examples of the bound to fit the posterior, for each prior.
        lr: Learning rate of Adam, which fits it.
        batch_size: Examples per step of that, of which a forward pass elsewhere takes four times as many.
        num_trial_draws: Networks drawn to choose among the priors; they are not used for anything else.
        num_test_draws: Networks drawn for the estimates on the test part.
        min_probability: The cross entropy is cut off at -log of this, and divided by it, to lie between 0 and 1.
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

    def __post_init__(self) -> None:
        for name in ("prior_fraction", "delta", "delta_mc", "min_probability"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must lie strictly between 0 and 1, got {getattr(self, name)}.")
        if self.delta + self.delta_mc >= 1:
            raise ValueError(
                f"delta + delta_mc must be below 1, got {self.delta} + {self.delta_mc}: nothing would be promised."
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
            raise ValueError(f"prior_stds must differ, since each is paid for; got {list(self.prior_stds)}.")
