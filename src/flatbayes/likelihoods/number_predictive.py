"""Predictive distributions of numbers: what those of a Gaussian and of any other distribution have in common."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from flatbayes.likelihoods.likelihood import Predictive

DEFAULT_INTERVAL_LEVEL = 0.95


class NumberPredictive(Predictive):
    """The equal mixture of the networks' distributions of one or several numbers.

    With one target there is no axis of targets, so that predictions have the shape of the targets.

    Attributes:
        member_means: Predicted mean of each network, shape (draws, examples, *targets).

    Examples:
        >>> predictive = Gaussian().predictive([torch.zeros(3, 2), torch.ones(3, 2)])
        >>> isinstance(predictive, NumberPredictive), predictive.mean.shape
        (True, torch.Size([3]))
    """

    member_means: Float[Tensor, "draws examples ..."]

    @property
    def mean(self) -> Float[Tensor, "examples ..."]:
        """Expected target."""
        return self.member_means.mean(0)

    @property
    def variance(self) -> Float[Tensor, "examples ..."]:
        """Variance of the target: aleatoric + epistemic."""
        return self.aleatoric + self.epistemic

    @property
    def std(self) -> Float[Tensor, "examples ..."]:
        """Square root of the variance."""
        return self.variance.sqrt()

    @property
    @abstractmethod
    def aleatoric(self) -> Float[Tensor, "examples ..."]:
        """Mean variance of the networks' distributions, which more data would not reduce."""

    @property
    def epistemic(self) -> Float[Tensor, "examples ..."]:
        """Variance of the networks' means, with the number of networks as divisor."""
        return self.member_means.var(0, correction=0)

    @abstractmethod
    def interval(
        self, level: float = DEFAULT_INTERVAL_LEVEL
    ) -> tuple[Float[Tensor, "examples ..."], Float[Tensor, "examples ..."]]:
        """Ends of the central interval.

        Args:
            level: Probability of the interval.

        Raises:
            ValueError: The level is not strictly between 0 and 1.
        """

    @abstractmethod
    def cdf(self, targets: Float[Tensor, "examples ..."]) -> Float[Tensor, "examples ..."]:
        """P(Y <= target), separately for each target.

        Args:
            targets: Of the shape of the predictions, in their unit.

        Raises:
            ValueError: The targets have another shape than the predictions.
        """

    def probability_integral_transform(self, targets: Float[Tensor, "examples ..."]) -> Float[Tensor, "examples ..."]:
        """Values that are uniform between 0 and 1 where predictions are calibrated; here those of `cdf`.

        Args:
            targets: As for `cdf`.
        """
        return self.cdf(targets)

    def restrict(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """The smallest interval with the same possible targets as another one; here the same.

        Args:
            lower: Lower ends, of the shape of the predictions.
            upper: Upper ends.
        """
        return lower, upper

    @abstractmethod
    def log_prob(self, targets: Float[Tensor, "examples ..."]) -> Float[Tensor, " examples"]:
        """Log density of the mixture, jointly for all targets of an example, per unit of the targets.

        Args:
            targets: Of the shape of the predictions, in their unit.

        Raises:
            ValueError: The targets have another shape than the predictions.
        """

    def columns(self, names: Sequence[str] | None = None) -> Mapping[str, NDArray[np.generic]]:
        """`mean`, `std`, `lower` and `upper` end of the 95 % interval, `aleatoric`, `epistemic`, `epistemic_std`.

        Args:
            names: Names of the targets; None numbers them. With several targets each column is `<quantity>_<name>`.
        """
        lower, upper = self.interval()
        quantities = {
            "mean": self.mean,
            "std": self.std,
            "lower": lower,
            "upper": upper,
            "aleatoric": self.aleatoric,
            "epistemic": self.epistemic,
            "epistemic_std": self.epistemic.sqrt(),
        }
        if self.member_means.ndim == 2:
            return {name: values.cpu().numpy() for name, values in quantities.items()}
        names = [str(k) for k in range(self.member_means.shape[2])] if names is None else names
        return {
            f"{name}_{target}": values[:, k].cpu().numpy()
            for k, target in enumerate(names)
            for name, values in quantities.items()
        }

    def match_targets(self, targets: Tensor) -> Tensor:
        """Targets on the device and in the dtype of the predictions.

        Args:
            targets: Of the shape of the predictions; an array, too.

        Raises:
            ValueError: They have another shape.
        """
        shape, targets = self.member_means.shape[1:], torch.as_tensor(targets)
        if targets.shape != shape:
            raise ValueError(
                f"The predictions have the shape {tuple(shape)}, and the targets {tuple(targets.shape)}. Give one "
                "target for each prediction, in the same order."
            )
        return targets.to(self.member_means)


def check_interval_level(level: float) -> None:
    """Check the probability of an interval.

    Raises:
        ValueError: It is not strictly between 0 and 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"The level of an interval lies strictly between 0 and 1, got {level}.")
