"""Predictive distribution of a regression: the mixture of the networks' normal distributions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from flatbayes.core.names import format_count
from flatbayes.likelihoods import mixture
from flatbayes.likelihoods.labels import to_tensor
from flatbayes.likelihoods.number_predictive import DEFAULT_INTERVAL_LEVEL, NumberPredictive, check_interval_level

if TYPE_CHECKING:  # slow to import
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class GaussianPredictive(NumberPredictive):
    """Equal mixtures of normal distributions, in the unit of the targets.

    With one target there is no axis of targets, so that predictions have the shape of the targets. Memory grows
    with the number of draws, since quantiles need all of them.

    Attributes:
        member_means: Predicted mean of each network, float64; float32 on a device that has no float64.
        member_stds: Predicted standard deviation of the noise of each network, in the same dtype.

    Examples:
        >>> outputs = torch.tensor([[[0.0, 0.0]], [[2.0, 0.0]]])
        >>> predictive = Gaussian().predictive(outputs)  # of two networks: mean, raw scale
        >>> predictive.mean, predictive.epistemic
        (tensor([1.], dtype=torch.float64), tensor([1.], dtype=torch.float64))
        >>> lower, upper = predictive.interval(0.95)
        >>> bool(lower < predictive.mean < upper)
        True
    """

    member_means: Float[Tensor, "draws examples ..."]
    member_stds: Float[Tensor, "draws examples ..."]

    @property
    def aleatoric(self) -> Float[Tensor, "examples ..."]:
        """Mean variance of the noise, which more data would not reduce."""
        return self.member_stds.square().mean(0)

    @property
    def entropy(self) -> Float[Tensor, " examples"]:
        """Entropy of the mixture in nats, integrated numerically; for several targets, the sum, an upper bound."""
        return _sum_targets(mixture.mixture_entropy(self.member_means, self.member_stds))

    @property
    def mutual_information(self) -> Float[Tensor, " examples"]:
        """Entropy of the mixture minus mean entropy of the networks, at least zero; summed over the targets."""
        noise = mixture.normal_entropy(self.member_stds).mean(0)
        return _sum_targets((mixture.mixture_entropy(self.member_means, self.member_stds) - noise).clamp_min(0.0))

    def interval(
        self, level: float = DEFAULT_INTERVAL_LEVEL
    ) -> tuple[Float[Tensor, "examples ..."], Float[Tensor, "examples ..."]]:
        """Ends of the central interval: the target is below, and above it, with probability (1 - level) / 2.

        Args:
            level: Probability of the interval.

        Raises:
            ValueError: The level is not strictly between 0 and 1.
        """
        check_interval_level(level)
        low, high = (
            mixture.mixture_quantile(probability, self.member_means, self.member_stds)
            for probability in ((1 - level) / 2, (1 + level) / 2)
        )
        return low, high

    def cdf(self, targets: Float[Tensor, "examples ..."]) -> Float[Tensor, "examples ..."]:
        """P(Y <= target), separately for each target.

        Args:
            targets: Of the shape of the predictions, in their unit.

        Raises:
            ValueError: The targets have another shape than the predictions.
        """
        return mixture.mixture_cdf(self.match_targets(targets), self.member_means, self.member_stds)

    def log_prob(self, targets: Float[Tensor, "examples ..."]) -> Float[Tensor, " examples"]:
        """Log density of the mixture, jointly for all targets of an example, per unit of the targets.

        Args:
            targets: Of the shape of the predictions, in their unit.

        Raises:
            ValueError: The targets have another shape than the predictions.
        """
        log_densities = mixture.normal_log_density(self.match_targets(targets), self.member_means, self.member_stds)
        return mixture.log_mean_density(log_densities if log_densities.ndim == 2 else log_densities.sum(-1))

    def __repr__(self) -> str:
        num_networks, *shape = self.member_means.shape
        targets = "" if len(shape) == 1 else f" with {format_count(shape[1], 'target')}"
        examples, networks = format_count(shape[0], "example"), format_count(num_networks, "network")
        return f"<GaussianPredictive: {examples}{targets}, {networks}>"

    def plot(
        self,
        x: Any = None,
        targets: Any = None,
        *,
        target: int = 0,
        name: str = "target",
        ax: "Axes | None" = None,
    ) -> "Axes":
        """Draw the predictions with two 95 % bands: for the noise alone, and with the uncertainty about the network.

        Args:
            x: Horizontal coordinates, shape (examples,); by default examples are ordered by their predicted mean.
            targets: Observed targets, drawn as dots.
            target: Number of the target to draw, of several.
            name: Label of the vertical axis.
            ax: Where to draw; by default new axes.

        Raises:
            ImportError: matplotlib is not installed.
            ValueError: The coordinates are not one for each example.
        """
        from flatbayes.plotting.predictions import plot_band

        if x is not None and to_tensor(x).numel() != len(self.mean):
            raise ValueError(
                f"x has one horizontal coordinate for each of {format_count(len(self.mean), 'example')}, got the "
                f"shape {tuple(to_tensor(x).shape)}. Targets are the second argument: plot(targets=targets)."
            )

        def select(values: Tensor) -> NDArray[np.floating[Any]]:
            return values.detach().cpu().double().reshape(len(values), -1)[:, target].numpy()

        return plot_band(
            select(self.mean),
            select(self.aleatoric.sqrt()),
            select(self.std),
            None if x is None else to_tensor(x).cpu().double().reshape(-1).numpy(),
            None if targets is None else select(to_tensor(targets)),
            ax,
            target_name=name,
        )

    def select(self, rows: Tensor) -> Self:
        """The predictions of some examples, by indices or a mask."""
        return type(self)(self.member_means[:, rows], self.member_stds[:, rows])

    @classmethod
    def concatenate(cls, predictions: Sequence[Self]) -> Self:
        """Join predictions for several batches of examples, in order."""
        return cls(
            torch.cat([p.member_means for p in predictions], dim=1),
            torch.cat([p.member_stds for p in predictions], dim=1),
        )


def _sum_targets(values: Float[Tensor, "examples ..."]) -> Float[Tensor, " examples"]:
    return values if values.ndim == 1 else values.sum(-1)
