"""Zero-inflated counts: some of the zeros are no counts, such as those of days on which a shop is closed."""

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.nn.functional import logsigmoid


class ZeroInflated(Distribution):
    """A distribution of counts, mixed with zeros: P(0) = pi + (1 - pi) base(0), P(k) = (1 - pi) base(k).

    Args:
        base: Distribution of counts.
        logits: Log odds of the probability pi of an additional zero, of the batch shape of `base`.
        validate_args: As for every distribution of torch.

    Examples:
        >>> from torch.distributions import Poisson
        >>> distribution = ZeroInflated(Poisson(torch.tensor([4.0])), logits=torch.zeros(1))
        >>> distribution.mean, distribution.variance
        (tensor([2.]), tensor([6.]))
    """

    arg_constraints = {"logits": constraints.real}  # noqa: RUF012

    def __init__(self, base: Distribution, logits: Tensor, validate_args: bool | None = None) -> None:
        self.base, self.logits = base, logits
        super().__init__(base.batch_shape, base.event_shape, validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        """The support of the base."""
        support = self.base.support
        assert support is not None
        return support

    @property
    def zero_probs(self) -> Tensor:
        """Probability of an additional zero."""
        return self.logits.sigmoid()

    @property
    def mean(self) -> Tensor:
        """(1 - pi) E[base]."""
        return (1 - self.zero_probs) * self.base.mean

    @property
    def variance(self) -> Tensor:
        """(1 - pi) (Var[base] + pi E[base]²)."""
        probs = self.zero_probs
        return (1 - probs) * (self.base.variance + probs * self.base.mean.square())

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability of counts.

        Args:
            value: The counts.
        """
        log_base = logsigmoid(-self.logits) + self.base.log_prob(value)
        return torch.where(value == 0, torch.logaddexp(logsigmoid(self.logits), log_base), log_base)

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = torch.Size()) -> Tensor:
        """Draw counts.

        Args:
            sample_shape: Shape of independent draws.
        """
        counts = self.base.sample(torch.Size(sample_shape))
        return torch.where(torch.rand_like(counts) < self.zero_probs, 0.0, counts)
