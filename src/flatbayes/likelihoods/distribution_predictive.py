"""Predictive distribution of a `DistributionLikelihood`: the mixture of the networks' distributions."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution

from flatbayes.core.devices import is_accelerator
from flatbayes.core.names import format_count
from flatbayes.core.randomness import Stream, make_generator, spawn_seed
from flatbayes.likelihoods.distribution_functions import find_bounds, get_support
from flatbayes.likelihoods.distribution_mixture import (
    NUM_SAMPLES,
    DistributionMixture,
    mixture_cdf,
    mixture_entropies,
    mixture_log_prob,
    mixture_quantiles,
    sample_crps,
)
from flatbayes.likelihoods.number_predictive import DEFAULT_INTERVAL_LEVEL, NumberPredictive, check_interval_level

MAX_BLOCK_VALUES = 2**22
"""Largest number of values of all samples and networks that are in memory at a time."""


@dataclass(frozen=True, eq=False)
class DistributionPredictive(NumberPredictive):
    """Equal mixtures of any distributions, in the unit of the targets.

    Mean and variance are exact where torch has those of the distribution; they are infinite or NaN where the
    distribution has none, such as a Cauchy distribution. Densities are exact. Intervals are exact where the
    distribution function is known, and otherwise of samples; those of counts are whole numbers. What is computed of
    samples is the same in every call.

    Attributes:
        member_outputs: Outputs of each network, float64; float32 on a device that has no float64.
        make_distribution: The distribution of targets given outputs, shape (batch, outputs).
        has_finite_mean: Whether a mean that is not finite is an overflow, and not a property of the distribution.

    Examples:
        >>> predictive = DistributionLikelihood("Poisson").predictive([torch.zeros(2, 1), torch.ones(2, 1)])
        >>> predictive.mean  # (1 + e) / 2
        tensor([1.8591, 1.8591], dtype=torch.float64)
        >>> predictive.interval(0.9)[1]
        tensor([5., 5.], dtype=torch.float64)
    """

    member_outputs: Float[Tensor, "draws examples outputs"]
    make_distribution: Callable[[Tensor], Distribution]
    has_finite_mean: bool = True

    @cached_property
    def _moments(self) -> tuple[Tensor, Tensor]:
        means, variances = zip(*(mix.compute_moments(seed) for _, mix, seed in self._iter_blocks(1)), strict=True)
        return torch.cat(means, 1), torch.cat(variances, 1)

    @property
    def member_means(self) -> Float[Tensor, "draws examples ..."]:  # type: ignore[override]
        """Predicted mean of each network."""
        return self._moments[0]

    @property
    def member_variances(self) -> Float[Tensor, "draws examples ..."]:
        """Predicted variance of each network."""
        return self._moments[1]

    @property
    def aleatoric(self) -> Float[Tensor, "examples ..."]:
        """Mean variance of the networks' distributions, which more data would not reduce."""
        return self.member_variances.mean(0)

    @property
    def is_discrete(self) -> bool:
        """Whether the targets are whole numbers."""
        return self._mix(slice(0, 1)).is_discrete

    @property
    def entropy(self) -> Float[Tensor, " examples"]:
        """Entropy of the mixture in nats, jointly for all targets: a sum over counts, or of samples."""
        return self._entropies[0]

    @property
    def mutual_information(self) -> Float[Tensor, " examples"]:
        """Entropy of the mixture minus mean entropy of the networks, at least zero, computed as `entropy`."""
        return self._entropies[1]

    @cached_property
    def _entropies(self) -> tuple[Tensor, Tensor]:
        blocks = self._iter_blocks(self.num_networks)
        entropies, information = zip(*(mixture_entropies(mix, seed) for _, mix, seed in blocks), strict=True)
        return torch.cat(entropies), torch.cat(information)

    @property
    def num_networks(self) -> int:
        """Number of networks."""
        return len(self.member_outputs)

    def quantile(self, probability: float) -> Float[Tensor, "examples ..."]:
        """The smallest value that the target is at most with this probability, separately for each target.

        Args:
            probability: Strictly between 0 and 1.

        Raises:
            ValueError: The probability is not strictly between 0 and 1.
        """
        if not 0 < probability < 1:
            raise ValueError(f"The probability of a quantile lies strictly between 0 and 1, got {probability}.")
        return self._compute_quantiles(probability)[0]

    def _compute_quantiles(self, *probabilities: float) -> list[Tensor]:
        blocks = self._iter_blocks(self.num_networks)
        parts = [mixture_quantiles(mix, probabilities, seed) for _, mix, seed in blocks]
        return [torch.cat(values) for values in zip(*parts, strict=True)]

    def interval(
        self, level: float = DEFAULT_INTERVAL_LEVEL
    ) -> tuple[Float[Tensor, "examples ..."], Float[Tensor, "examples ..."]]:
        """Quantiles at (1 - level) / 2 and (1 + level) / 2; counts have whole numbers, which both belong to it.

        Args:
            level: Probability of the interval, at least.

        Raises:
            ValueError: The level is not strictly between 0 and 1.
        """
        check_interval_level(level)
        lower, upper = self._compute_quantiles((1 - level) / 2, (1 + level) / 2)
        return lower, upper

    def cdf(self, targets: Float[Tensor, "examples ..."]) -> Float[Tensor, "examples ..."]:
        """P(Y <= target), separately for each target.

        Args:
            targets: Of the shape of the predictions, in their unit.

        Raises:
            ValueError: The targets have another shape than the predictions.
        """
        targets = self.match_targets(targets)
        return torch.cat([mixture_cdf(mix, targets[rows], seed) for rows, mix, seed in self._iter_blocks(1)])

    def probability_integral_transform(self, targets: Float[Tensor, "examples ..."]) -> Float[Tensor, "examples ..."]:
        """P(Y < target) + u P(Y = target) with uniform random numbers u that are the same in every call.

        It is uniform between 0 and 1 where predictions are calibrated, for counts too (Smith, J. Forecasting 1985).

        Args:
            targets: As for `cdf`.
        """
        targets = self.match_targets(targets)
        generator = make_generator(Stream.PREDICTIVE_SAMPLES, len(targets))
        uniforms = torch.rand(targets.shape, generator=generator, dtype=torch.float64).to(targets)
        blocks = self._iter_blocks(1)
        return torch.cat([mixture_cdf(mix, targets[rows], seed, uniforms[rows]) for rows, mix, seed in blocks])

    def log_prob(self, targets: Float[Tensor, "examples ..."]) -> Float[Tensor, " examples"]:
        """Log density or log probability of the mixture, jointly for all targets of an example.

        Args:
            targets: Of the shape of the predictions, in their unit.

        Returns:
            Minus infinity for a target outside of the support.

        Raises:
            ValueError: The targets have another shape than the predictions.
        """
        targets = self.match_targets(targets)
        return torch.cat([mixture_log_prob(mix, targets[rows]) for rows, mix, _ in self._iter_blocks(1)])

    def crps(self, targets: Float[Tensor, "examples ..."]) -> Float[Tensor, "examples ..."]:
        """Continuous ranked probability score of each target, of samples.

        Args:
            targets: As for `cdf`.
        """
        targets, blocks = self.match_targets(targets), self._iter_blocks(1)
        return torch.cat([sample_crps(mix.sample(NUM_SAMPLES, seed), targets[rows]) for rows, mix, seed in blocks])

    def sample(self, num_samples: int, seed: int = 0) -> Float[Tensor, "samples examples ..."]:
        """Draw targets from the mixture: the networks take turns, and give one target for each example.

        Args:
            num_samples: Number of targets of each example.
            seed: The same seed draws the same targets.
        """
        samples = self._mix(slice(None)).sample(num_samples, spawn_seed(Stream.PREDICTIVE_SAMPLES, seed))
        return samples[:num_samples]

    def restrict(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """The smallest interval with the same possible targets: of whole numbers for counts, within the support.

        Args:
            lower: Lower ends, of the shape of the predictions.
            upper: Upper ends.
        """
        low, high = find_bounds(get_support(self._mix(slice(0, 1)).distribution))
        if self.is_discrete:
            lower, upper = lower.ceil() + 0.0, upper.floor() + 0.0  # without a negative zero
        lower = lower if isinstance(low, Tensor) else lower.clamp_min(low)
        return lower, upper if isinstance(high, Tensor) else upper.clamp_max(high)

    def __repr__(self) -> str:
        mixture = self._mix(slice(0, 1))
        name = type(mixture.distribution).__name__
        shape = mixture.target_shape
        targets = f" with {format_count(shape[0], 'target')}" if shape else ""
        examples = format_count(self.member_outputs.shape[1], "example")
        return f"<DistributionPredictive: {name}, {examples}{targets}, {format_count(self.num_networks, 'network')}>"

    def select(self, rows: Tensor) -> Self:
        """The predictions of some examples, by indices or a mask."""
        return replace(self, member_outputs=self.member_outputs[:, rows])

    @classmethod
    def concatenate(cls, predictions: Sequence[Self]) -> Self:
        """Join predictions for several batches of examples, in order."""
        return replace(predictions[0], member_outputs=torch.cat([p.member_outputs for p in predictions], dim=1))

    def _mix(self, rows: slice) -> DistributionMixture:
        outputs = self.member_outputs[:, rows]
        return DistributionMixture(self.make_distribution(outputs.flatten(0, 1)), len(outputs))

    def _iter_blocks(self, num_values: int) -> Iterator[tuple[slice, DistributionMixture, int]]:
        """Rows, mixture and seed of blocks of examples; `num_values` numbers for each sample are in memory."""
        num_examples = self.member_outputs.shape[1]
        size = max(1, MAX_BLOCK_VALUES // (num_values * max(NUM_SAMPLES, self.num_networks)))
        if is_accelerator(self.member_outputs):  # several blocks would launch more kernels
            size *= 16
        for start in range(0, max(1, num_examples), size):
            rows = slice(start, min(start + size, num_examples))
            yield rows, self._mix(rows), spawn_seed(Stream.PREDICTIVE_SAMPLES, start)
