"""Stochastic weight averaging Gaussian (SWAG; Maddox et al., NeurIPS 2019, Algorithm 1).

    for each step: w = optimizer(w, gradient of the mean loss + prior_precision / num_data * w)
    late in training, at regular intervals:
        count = count + 1; d = w - mean; mean = mean + d / count; sum_squares = sum_squares + (1 - 1 / count) d²
        deviations[count mod rank] = (1 - 1 / count) d
    draw: mean + sqrt(scale) * (sqrt(sum_squares / count) * N(0, I) + deviationsᵀ N(0, I) / sqrt(rank - 1))

A Gaussian with the mean of the late iterates and, as covariance, their variances plus a low-rank part from the last
iterates. A flatness changes the iterates and nothing in this file.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flatbayes.core import Closure, OptimizerFactory, State
from flatbayes.core.buffers import eval_mode
from flatbayes.core.context import CovarianceProduct, DiagonalGaussian, WeightDistribution, offer_distribution
from flatbayes.core.devices import is_accelerator
from flatbayes.core.gaussians import LowRankGaussian, UnknownDistribution
from flatbayes.core.networks import check_materialized, check_real
from flatbayes.core.parameter_selection import (
    ParameterSelection,
    check_selection,
    find_linear_owner,
    split_parameters,
)
from flatbayes.core.tensor_lists import flatten, flatten_wide, unflatten, widen
from flatbayes.core.weights import iter_blocks, swap_values, write_blockwise
from flatbayes.posteriors.draw_options import (
    AUTO,
    BURN_IN,
    COVARIANCE_SCALE,
    END_FRACTION,
    AutoFloat,
    DrawOption,
    check_fraction,
    check_scale,
    get_fraction,
)
from flatbayes.posteriors.optimization import init_state, step_optimizer
from flatbayes.posteriors.posterior import Posterior
from flatbayes.posteriors.prior_precision import check_prior_precision
from flatbayes.posteriors.requirements import SnapshotRequirements, Trajectory
from flatbayes.posteriors.snapshot_moments import (
    EARLY,
    EARLY_COUNTS,
    FIRST,
    Window,
    allocate_early_moments,
    keep_early_moments,
    snapshot_block_size,
    update_moments,
)
from flatbayes.posteriors.snapshots import (
    Storage,
    check_storage_device,
    get_storage_device,
    list_cpu_statistics,
    select_row,
)

MIN_SNAPSHOTS = 2
"""Number of snapshots from which there is a variance."""


@dataclass(frozen=True)
class SWAG(Posterior):
    """A Gaussian fitted to the iterates of late training.

    Use it first: one training, any model, memory for `rank + 2` copies of the weights.

    Attributes:
        rank: Number of iterates in the low-rank part of the covariance; 0 is SWAG-Diag.
        scale: Factor on the covariance of the draws. Maddox et al. use 0.5 with a low-rank part and 1 for SWAG-Diag;
            0 puts all mass on the mean (stochastic weight averaging, SWA). `auto`: chosen on validation examples
            after training, 0.5 without any. None: `auto` where the number of epochs is automatic, otherwise 0.5.
        prior_precision: Precision of a Gaussian prior over all trainable weights. None: the optimizer's weight decay
            is the prior, with weight_decay = prior_precision / num_data.
        storage: Where deviations are stored: with the model (`device`) or in main memory (`cpu`).
        bfloat16: Whether deviations are stored in bfloat16, with half the memory and 8 significant bits.
        burn_in: Fraction of the snapshots before the end that draws leave out, from the first on, at most 0.5.
            `auto`: chosen on validation examples after training, 0 without any. None: `auto` for a trained network
            and an automatic number of epochs, otherwise 0.
        end_fraction: Fraction of the snapshots after which draws leave out the others, at least 0.25. `auto` and None
            as for `burn_in`, with 1 in place of 0. Unless they are 0 and 1, both are rounded, since moments are kept
            after 4, 8, 16 ... snapshots, those of the last three times with the memory of seven copies of the
            weights; and the low-rank part has evenly spaced iterates in place of the last ones.
        params: Parameters with a distribution; the other trainable ones have their mean over the iterates in every
            draw. `weights`: all except those of normalization layers (torch.nn: batch, instance, layer, group and
            RMS norm). `biases`, `no_biases`: the biases among these, or the others. `norms`: those of normalization
            layers. `last_layer`: those of the last module with any, in registration order. `all`: all. Or a list of
            name patterns, such as `["head.*", "*.bias"]`. Only these parameters need memory for statistics.

    Examples:
        >>> fitted = fit(MLP, data, SWAG(rank=2), SAM(rho=0.1), config)
        >>> fitted.predict(inputs, num_draws=30).mutual_information.shape
        torch.Size([100])
    """

    rank: int = 20
    scale: AutoFloat | None = None
    prior_precision: float | None = None
    storage: Storage = "device"
    bfloat16: bool = False
    burn_in: AutoFloat | None = None
    end_fraction: AutoFloat | None = None
    params: ParameterSelection = field(default="all", hash=False)  # a list cannot be hashed

    def __post_init__(self) -> None:
        check_prior_precision(self.prior_precision)
        check_selection(self.params, "params")
        check_storage_device(self.storage)
        if self.rank < 0 or self.rank == 1:
            raise ValueError(
                f"rank must be 0 (SWAG-Diag) or at least 2, since one deviation has no variance; got {self.rank}."
            )
        if self.scale != 0:
            check_scale(self.scale)
        check_fraction("burn_in", self.burn_in, 0.0, 0.5)
        check_fraction("end_fraction", self.end_fraction, 0.25, 1.0)

    has_weight_distribution = True  # from the second snapshot on
    shardable = True  # moments and deviations are elementwise
    uses_gradient_only = True

    @property
    def stochastic(self) -> bool:
        """True unless the covariance is scaled to zero."""
        return bool(self.get_draw_option("scale") > 0)

    @property
    def draw_options(self) -> Mapping[str, DrawOption]:
        """The scale of the covariance, after the first and the last snapshot if they are to be chosen."""
        window = {"end_fraction": END_FRACTION, "burn_in": BURN_IN}
        auto_options = {name: option for name, option in window.items() if getattr(self, name) == AUTO}
        return {**auto_options, "scale": replace(COVARIANCE_SCALE, default=0.5)}

    @property
    def snapshot_requirements(self) -> SnapshotRequirements:
        """At least two snapshots for a variance, and up to `rank` for the low-rank part."""
        return SnapshotRequirements(2, max(2, self.rank))

    @property
    def trajectory(self) -> Trajectory:
        """That of MAP: snapshots do not change the training."""
        return Trajectory.of("optimizer", prior_precision=self.prior_precision)

    def with_automatic_options(self, *, is_trained: bool = False) -> Posterior:
        """Return this posterior, with snapshots that are chosen for a trained network unless they are given."""
        if not is_trained:
            return self
        burn_in, end = (AUTO if value is None else value for value in (self.burn_in, self.end_fraction))
        return replace(self, burn_in=burn_in, end_fraction=end)

    def init(self, model: nn.Module, make_optimizer: OptimizerFactory | None, num_data: int) -> State:
        """Return a state of model, optimizer and empty moments; see `Posterior.init`.

        Raises:
            ValueError: No parameter has a distribution, or the prior is given twice.
        """
        check_materialized(model)
        check_real(model.named_parameters(), "SWAG")
        state = init_state(model, make_optimizer, num_data, self.prior_precision)
        params, others = split_parameters(model, self.params)
        weights = flatten(params)
        mean = torch.zeros_like(weights, dtype=widen(weights.dtype))
        state.statistics = {
            "count": torch.zeros((), dtype=torch.int64, device="cpu"),  # read without waiting for a device
            "mean": mean,
            "sum_squares": torch.zeros_like(mean),
            "deviations": torch.zeros(
                (self.rank, weights.numel()),
                dtype=torch.bfloat16 if self.bfloat16 else weights.dtype,
                device=get_storage_device(self.storage, weights.device),
            ),
        }
        if others:
            state.statistics["mean_of_others"] = torch.zeros_like(flatten_wide(others))
        state.cpu_statistics = list_cpu_statistics(self.storage, "deviations")
        if self._has_window:
            early = allocate_early_moments(state.statistics, state.statistics["deviations"].device)
            state.statistics |= early
            state.cpu_statistics |= early.keys() if self.storage == "cpu" else {EARLY_COUNTS}
        return state

    @property
    def _has_window(self) -> bool:
        return self.burn_in not in (None, 0) or self.end_fraction not in (None, 1)

    def find_window(self, state: State) -> Window:
        """The snapshots that draws are made from."""
        return Window.find(state.statistics, get_fraction(self.burn_in, 0.0), get_fraction(self.end_fraction, 1.0))

    def step(self, state: State, closure: Closure) -> Tensor:
        """Do one optimizer step. Returns the loss of the batch."""
        with offer_distribution(self.make_weight_distribution(state)):
            return step_optimizer(state, closure, self.prior_precision)

    def make_weight_distribution(self, state: State) -> WeightDistribution:
        """Return the Gaussian of the snapshots so far; one that is not estimated yet before the second."""
        if state.statistics["count"] < MIN_SNAPSHOTS:
            return UnknownDistribution()
        return SnapshotGaussian(self, state)

    def collect(self, state: State) -> None:
        """Update the moments with the current weights, and store its deviation in place of another."""
        statistics = state.statistics
        mean, sum_squares = statistics["mean"], statistics["sum_squares"]
        count = int(statistics["count"].add_(1))
        params, others = split_parameters(state.model, self.params)
        first, row = statistics.get(FIRST), self._find_row(statistics)
        has_place = first is None and row is not None and row.dtype == mean.dtype and row.device == mean.device

        def update_block(block: slice, current: Tensor) -> None:  # its memory is free again before the next block
            out = row[block] if row is not None and has_place else None
            deviation = update_moments(mean[block], sum_squares[block], current, count, out)
            if first is not None:
                current = current.to(first)
                deviation = current - (first[block].copy_(current) if count == 1 else first[block])
            if row is not None and not has_place:
                row[block].copy_(deviation)

        for block, weights in iter_blocks(params, snapshot_block_size(mean)):
            update_block(block, torch.cat(weights))
        if others:
            statistics["mean_of_others"].lerp_(flatten_wide(others), 1 / count)
        keep_early_moments(statistics, count)

    def _find_row(self, statistics: Mapping[str, Tensor]) -> Tensor | None:
        """Where the deviation of the current snapshot is stored."""
        count, deviations = int(statistics["count"]), statistics["deviations"]
        if not self.rank:
            return None
        return select_row(deviations, count) if FIRST in statistics else deviations[(count - 1) % self.rank]

    def convert_statistics(self, state: State, statistics: dict[str, Tensor]) -> dict[str, Tensor]:
        """Leave out the moments of early snapshots where all snapshots are used."""
        if self._has_window or FIRST not in statistics:
            return statistics
        state.statistics[FIRST] = torch.zeros_like(statistics[FIRST], device=state.statistics["deviations"].device)
        state.cpu_statistics |= {FIRST} if self.storage == "cpu" else set()
        return {name: value for name, value in statistics.items() if not name.startswith(EARLY)}

    def find_varying_layer(self, state: State) -> nn.Linear | None:
        """Return the layer that `params` selects, if it is one linear layer."""
        return find_linear_owner(state.model, self.params)

    @contextmanager
    def draw(self, state: State, generator: torch.Generator) -> Iterator[nn.Module]:
        """Yield the model with weights from the Gaussian; the caller re-estimates BatchNorm statistics.

        Raises:
            RuntimeError: Fewer than two snapshots were collected.
        """
        params, others = split_parameters(state.model, self.params)
        count, mean = int(state.statistics["count"]), state.statistics["mean"]
        if count < 2:
            raise RuntimeError(
                f"SWAG needs at least 2 collected snapshots before a draw, got {count}; "
                "lower collection.start_fraction or train longer."
            )
        window = self.find_window(state)
        z2 = torch.randn(window.num_deviations, generator=generator, dtype=mean.dtype, device=mean.device)
        scale = self.get_draw_option("scale")

        def sample_block(block: slice) -> Tensor:
            block_mean = window.get_mean(block)
            z1 = torch.randn(block_mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
            rows, offset = window.get_rows(block).to(block_mean), window.get_offset(block, block_mean)
            return gaussian_sample(block_mean, window.get_variance(block), rows, scale, z1, z2, offset)

        means = unflatten(window.get_mean(slice(None), "mean_of_others"), others) if others else []
        averaged = swap_values(others, means) if others else nullcontext()
        with averaged, write_blockwise(params, sample_block, block_size(mean)), eval_mode(state.model):
            yield state.model


@dataclass(frozen=True, eq=False)
class SnapshotGaussian(WeightDistribution):
    """The Gaussian of the snapshots so far, which is computed at the first use.

    There are at least two of them.
    """

    posterior: SWAG
    state: State

    def get_marginal(self, param: Tensor) -> DiagonalGaussian | None:
        """Mean and standard deviation of each weight of a parameter."""
        return self._gaussian.get_marginal(param)

    def multiply_covariance(self, params: Sequence[Tensor], vectors: Sequence[Tensor]) -> CovarianceProduct:
        """Multiply vectors with the covariance of the draws."""
        return self._gaussian.multiply_covariance(params, vectors)

    @cached_property
    def _gaussian(self) -> LowRankGaussian:
        params, _ = split_parameters(self.state.model, self.posterior.params)
        window, everything = self.posterior.find_window(self.state), slice(None)
        moments = window.get_mean(everything), window.get_variance(everything)
        deviations, scale = window.get_deviations(everything), float(self.posterior.get_draw_option("scale"))
        return LowRankGaussian(params, *moments, deviations, scale)


def gaussian_sample(
    mean: Float[Tensor, " params"],
    variance: Float[Tensor, " params"],
    deviations: Float[Tensor, "rank params"],
    scale: float,
    z1: Float[Tensor, " params"],
    z2: Float[Tensor, " rank"],
    offset: Float[Tensor, " params"] | None = None,
) -> Float[Tensor, " params"]:
    """Return mean + sqrt(scale) (sqrt(variance) z1 + Dᵀ z2 / sqrt(rank - 1)); Maddox et al., Algorithm 1.

    All blocks of a network use the same z2, so correlations between layers are kept. `deviations` is D, one deviation
    from the mean per row; without rows there is no low-rank part. `offset` is subtracted from every row, without a
    copy of them.
    """
    factor = math.sqrt(scale)
    sample = torch.addcmul(mean, variance.sqrt(), z1, value=factor)
    if len(z2):
        alpha = factor / math.sqrt(len(z2) - 1)
        sample.addmv_(deviations.T, z2, alpha=alpha)
        if offset is not None:
            sample.addcmul_(offset, z2.sum(), value=-alpha)
    return sample


def block_size(weights: Tensor) -> int:
    """Return the number of weights per block: on a CPU few enough that intermediate results stay in the cache."""
    return 2**22 if is_accelerator(weights) else 2**16
