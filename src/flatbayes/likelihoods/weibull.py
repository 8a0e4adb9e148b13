"""Weibull distribution whose density does not overflow on the way to its logarithm."""

from torch import Tensor, distributions


class Weibull(distributions.Weibull):
    """The Weibull distribution of torch, with a log density that is computed from logarithms.

    log p(y) = log k - log s + (k - 1) z - exp(k z), with z = log y - log s, shape k and scale s.

    Examples:
        >>> import torch
        >>> Weibull(torch.tensor(3e3), torch.tensor(9.0)).log_prob(torch.tensor(1e-3)).isfinite()
        tensor(True)
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of positive numbers.

        Args:
            value: The numbers.
        """
        log_scale, shape = self.scale.log(), self.concentration
        distance = value.log() - log_scale
        return shape.log() - log_scale + (shape - 1) * distance - (shape * distance).exp()
