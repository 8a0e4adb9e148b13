"""Equal mixtures of any distributions of torch: moments, densities, samples, quantiles, entropy and CRPS.

Distribution functions are exact where `compute_cdf` has them, and those of samples elsewhere. Entropies of counts are
sums over all counts where these are few, and otherwise means over samples of the mixture, which are the same in every
call. There are equally many samples of every network.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.distributions import Distribution

from flatbayes.core.devices import is_accelerator
from flatbayes.core.randomness import seeded_rng
from flatbayes.likelihoods.distribution_functions import compute_cdf, compute_log_prob, compute_moments, is_discrete
from flatbayes.likelihoods.mixture import ROOT_TOLERANCE, find_root, log_mean_density

NUM_SAMPLES, NUM_ENTROPY_SAMPLES, NUM_BRACKET_SAMPLES = 1000, 250, 64
"""Least number of samples of quantiles and scores, of entropies, and of a first estimate of quantiles."""
MAX_COUNTS = 2**7
"""Largest number of counts over which an entropy is summed."""
TAIL = 1e-7
"""Probability of the counts on each side that such a sum leaves out."""
SMALLEST_RATIO = 1e-9
"""Quantiles that are so much smaller than others, as of positive numbers near 0, are found to rounding too."""
MAX_DOUBLINGS = 100
"""Largest number of doublings of an interval in the search of a quantile."""


@dataclass(frozen=True, eq=False)
class DistributionMixture:
    """The distributions of several networks for the same examples.

    Attributes:
        distribution: Of the batch shape (draws * examples, *rest); batch and event shape together have one value for
            each target.
        num_members: Number of draws.
    """

    distribution: Distribution
    num_members: int

    @property
    def num_examples(self) -> int:
        """Number of examples."""
        return int(self.distribution.batch_shape[0]) // self.num_members

    @property
    def rest(self) -> tuple[int, ...]:
        """Shape of the targets of an example in the distribution."""
        return (*self.distribution.batch_shape[1:], *self.distribution.event_shape)

    @property
    def target_shape(self) -> tuple[int, ...]:
        """Shape of the targets of an example: () for one target."""
        return () if math.prod(self.rest) == 1 else self.rest

    @property
    def is_discrete(self) -> bool:
        """Whether the targets are whole numbers."""
        return is_discrete(self.distribution)

    def compute_moments(self, seed: int) -> tuple[Tensor, Tensor]:
        """Mean and variance of each network, shape (draws, examples, *targets); of samples where torch has none."""
        shape = (self.num_members, self.num_examples, *self.target_shape)
        try:
            mean, variance = compute_moments(self.distribution)
        except NotImplementedError:
            samples = self._sample_members(NUM_SAMPLES, seed)
            return samples.mean(0), samples.var(0)
        return mean.reshape(shape), variance.reshape(shape)

    def sample(self, num_samples: int, seed: int) -> Tensor:
        """At least so many samples of the mixture, shape (samples, examples, *targets).

        The networks take turns: all examples of a sample are of the same network.
        """
        return self._sample_members(-(-num_samples // self.num_members), seed).flatten(0, 1)

    def _sample_members(self, count: int, seed: int) -> Tensor:
        with seeded_rng(seed, None):
            samples = self.distribution.sample(torch.Size([count]))
        return samples.reshape(count, self.num_members, self.num_examples, *self.target_shape)

    def member_log_probs(self, values: Tensor) -> Tensor:
        """Joint log density of each network, shape (*samples, draws, examples).

        Args:
            values: Shape (*samples, examples, *targets).
        """
        log_probs = compute_log_prob(self.distribution, self._expand(values))
        samples = values.shape[: values.ndim - len(self.target_shape) - 1]
        log_probs = log_probs.reshape(*samples, self.num_members, self.num_examples, -1)
        return log_probs.sum(-1)

    def cdf(self, values: Tensor) -> Tensor:
        """P(Y <= value) of each target.

        Args:
            values: Shape (examples, *targets).

        Raises:
            NotImplementedError: It is not known for this family.
        """
        return self._join(compute_cdf(self.distribution, self._expand(values))).mean(0)

    def density(self, values: Tensor) -> Tensor:
        """Density of each of several independent targets; arguments as of `cdf`."""
        return self._join(compute_log_prob(self.distribution, self._expand(values))).exp().mean(0)

    def _expand(self, values: Tensor) -> Tensor:
        """Values of the shape (*samples, examples, *targets) for every network, as the distribution takes them."""
        axis = values.ndim - len(self.target_shape) - 1
        samples = values.shape[:axis]
        values = values.unsqueeze(axis).expand(*samples, self.num_members, *values.shape[axis:])
        return values.reshape(*samples, self.num_members * self.num_examples, *self.rest)

    def _join(self, values: Tensor) -> Tensor:
        return values.reshape(self.num_members, self.num_examples, *self.target_shape)

    @cached_property
    def has_cdf(self) -> bool:
        """Whether distribution functions are exact."""
        if self.distribution.event_shape:
            return False
        try:
            compute_cdf(self.distribution, self._sample_members(1, seed=0).reshape(self.distribution.batch_shape))
        except NotImplementedError:
            return False
        return True


def mixture_quantiles(mixture: DistributionMixture, probabilities: Sequence[float], seed: int) -> list[Tensor]:
    """The smallest y with P(Y <= y) >= probability, for each target; whole numbers for discrete families."""
    ordered = mixture.sample(NUM_BRACKET_SAMPLES if mixture.has_cdf else NUM_SAMPLES, seed).sort(0).values
    return [_find_quantile(mixture, probability, ordered) for probability in probabilities]


def _find_quantile(mixture: DistributionMixture, probability: float, ordered: Tensor) -> Tensor:
    """A quantile, from ordered samples."""
    position, last = probability * len(ordered), len(ordered) - 1
    if not mixture.has_cdf:
        return ordered[min(last, max(0, math.ceil(position) - 1))]
    spread = 2 * math.sqrt(position * (1 - probability)) + 1
    low, high = (ordered[min(last, max(0, round(position + offset)))] for offset in (-spread, spread))
    low, high = _widen(mixture, probability, low, high)
    if mixture.is_discrete:
        return _bisect_counts(mixture, probability, low, high)
    epsilon = torch.finfo(low.dtype).eps
    tolerance = SMALLEST_RATIO * epsilon * torch.maximum(low.abs(), high.abs())

    def evaluate(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        error, density = mixture.cdf(values) - probability, mixture.density(values)
        return error, density, epsilon * (8 * probability + ROOT_TOLERANCE * density * values.abs())

    return find_root(evaluate, torch.stack([low, high]), tolerance)


def _widen(mixture: DistributionMixture, probability: float, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Widen an interval until it holds the quantile: P(Y <= low) < probability <= P(Y <= high)."""
    step = (high - low).clamp_min(1.0 if mixture.is_discrete else 0.0)
    step = torch.where(step > 0, step, low.abs() * 1e-3 + 1e-12)
    low = low - step
    for _ in range(MAX_DOUBLINGS):
        is_above, is_below = mixture.cdf(low) >= probability, mixture.cdf(high) < probability
        if not is_accelerator(low) and not bool((is_above | is_below).any()):
            break
        low, high = torch.where(is_above, low - step, low), torch.where(is_below, high + step, high)
        step = torch.where(is_above | is_below, 2 * step, step)
    return low, high


def _bisect_counts(mixture: DistributionMixture, probability: float, low: Tensor, high: Tensor) -> Tensor:
    """The smallest whole number in (low, high] with P(Y <= y) >= probability."""
    num_steps = math.ceil(math.log2(max(2.0, float((high - low).max())))) + 1
    for _ in range(num_steps):
        middle = ((low + high) / 2).floor()
        is_enough = mixture.cdf(middle) >= probability
        low, high = torch.where(is_enough | (middle == low), low, middle), torch.where(is_enough, middle, high)
    return high


def mixture_entropies(mixture: DistributionMixture, seed: int) -> tuple[Tensor, Tensor]:
    """Joint entropy of the mixture, and mutual information of target and network, in nats, shape (examples,)."""
    if mixture.is_discrete and not mixture.target_shape and mixture.has_cdf:
        low, high = mixture_quantiles(mixture, (TAIL, 1 - TAIL), seed)
        size = float((high - low).max()) + 1
        if size <= MAX_COUNTS:
            return _sum_entropies(mixture, low, int(size))
    samples = mixture.sample(NUM_ENTROPY_SAMPLES, seed)
    log_probs = mixture.member_log_probs(samples)  # (samples, draws, examples)
    log_mean = log_probs.logsumexp(1) - math.log(mixture.num_members)
    networks = torch.arange(len(samples), device=samples.device) % mixture.num_members
    own = log_probs[torch.arange(len(samples), device=samples.device), networks]
    return -log_mean.mean(0), (own - log_mean).mean(0).clamp_min(0.0)


def _sum_entropies(mixture: DistributionMixture, low: Tensor, size: int) -> tuple[Tensor, Tensor]:
    counts = low + torch.arange(size, dtype=low.dtype, device=low.device)[:, None]
    probs = mixture.member_log_probs(counts).exp()
    entropy: Tensor = torch.special.entr(probs.mean(1)).sum(0)
    member_entropy: Tensor = torch.special.entr(probs).sum(0).mean(0)
    return entropy, (entropy - member_entropy).clamp_min(0.0)


def mixture_log_prob(mixture: DistributionMixture, targets: Tensor) -> Tensor:
    """Joint log density of the mixture, shape (examples,)."""
    return log_mean_density(mixture.member_log_probs(targets))


def mixture_cdf(mixture: DistributionMixture, targets: Tensor, seed: int, uniforms: Tensor | None = None) -> Tensor:
    """P(Y < y) + u P(Y = y) of each target: with u = 1, the default, the distribution function."""
    if mixture.has_cdf:
        upper = mixture.cdf(targets)
        if uniforms is None or not mixture.is_discrete:
            return upper
        lower = mixture.cdf(targets - 1)
        return lower + uniforms * (upper - lower)
    samples = mixture.sample(NUM_SAMPLES, seed)
    below, equal = (samples < targets).double().mean(0), (samples == targets).double().mean(0)
    return (below + (equal if uniforms is None else uniforms * equal)).to(targets)


def sample_crps(samples: Tensor, targets: Tensor) -> Tensor:
    """CRPS E|X - y| - E|X - X'| / 2 of each target, from samples of the shape (samples, *targets.shape).

    The second mean is over all pairs of different samples (Zamo & Naveau, Mathematical Geosciences 2018).
    """
    count = len(samples)
    ranks = torch.arange(1 - count, count + 1, 2, dtype=samples.dtype, device=samples.device)
    spread: Tensor = torch.tensordot(ranks, samples.sort(0).values, dims=1) / (count * (count - 1))
    return (samples - targets).abs().mean(0) - spread
