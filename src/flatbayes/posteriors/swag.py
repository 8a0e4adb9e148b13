"""SWAG, stochastic weight averaging Gaussian (Maddox et al., NeurIPS 2019).

The iterates of late training with a high learning rate scatter around a solution; SWAG is the Gaussian with their
mean and, as covariance, their variance on the diagonal plus a low-rank part from the last few iterates. Sharper
or flatter training changes where the iterates go, and nothing here.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flatbayes.core import Closure, Examples, LossFn, OptimizerFactory, State
from flatbayes.core.buffers import eval_mode
from flatbayes.core.parameter_selection import ParameterSelection, check_selection, select_parameters
from flatbayes.core.weights import flatten, iter_blocks, swap_values, trainable_parameters, unflatten, write_blockwise
from flatbayes.posteriors.optimization import check_prior_precision, default_sgd, init_state, step_optimizer
from flatbayes.posteriors.posterior import Posterior
from flatbayes.posteriors.snapshots import Storage, check_storage_device, get_storage_device


@dataclass(frozen=True)
class SWAG(Posterior):
    """A Gaussian through the iterates of late training.

    Attributes:
        rank: Iterates kept for the low-rank part of the covariance; 0 is SWAG-Diag.
        scale: Factor on the whole covariance. A half is Maddox et al.'s choice beside a low-rank part, one their
            choice for SWAG-Diag; 0 puts all mass on the mean (SWA).
        prior_precision: Precision of a Gaussian prior over all trainable weights; None leaves the prior to the
            optimizer's weight decay, which is this divided by the number of training examples.
        storage: Where the iterates for the low-rank part are held: beside the model (device) or in main memory (cpu).
        bfloat16: Hold them in half the memory, as deviations from the mean with 8 significant bits.
        params: Which trainable parameters have a distribution, the others being learnt and having their mean over
            the iterates in every draw: `weights` all but those of normalisation layers (of torch.nn: batch,
            instance, layer, group and RMS norm); `biases` and `no_biases` one half of these each; `norms` those of
            normalisation layers; `last_layer` those of the last module that has any, in the order of registration;
            `all` every one; or a list of name patterns, such as `["head.*", "*.bias"]`. Memory is that of these
            alone.
    """

    rank: int = 20
    scale: float = 0.5
    prior_precision: float | None = None
    storage: Storage = "device"
    bfloat16: bool = False
    params: ParameterSelection = field(default="all", hash=False)  # a list cannot be hashed

    def __post_init__(self) -> None:
        check_prior_precision(self.prior_precision)
        check_selection(self.params, "params")
        check_storage_device(self.storage)
        if self.rank < 0 or self.rank == 1:
            raise ValueError(
                f"rank must be 0 (SWAG-Diag) or at least 2, since one deviation has no variance; got {self.rank}."
            )
        if not 0 <= self.scale < math.inf:
            raise ValueError(f"scale multiplies the covariance: it must be finite and at least 0, got {self.scale}.")

    num_members = 1

    @property
    def stochastic(self) -> bool:
        """Unless the covariance is scaled to nothing."""
        return self.scale > 0

    needs_norm_reestimation = True  # neither the mean nor a draw around it was visited in training

    requires_stationary_loss = "never"  # the iterates of any optimiser will do
    shardable = True  # moments are those of single weights, and so are columns of deviations

    @property
    def snapshot_requirements(self) -> tuple[int, int]:
        """Two have a spread, and each gives the low-rank part a direction."""
        return 2, max(2, self.rank)

    @property
    def default_optimizer(self) -> OptimizerFactory:
        """SGD with momentum, and with weight decay unless the prior is given."""
        return default_sgd(self.prior_precision)

    def init(self, model: nn.Module, make_optimizer: OptimizerFactory | None, num_data: int) -> State:
        """Model, optimiser, and moments of the Bayesian weights, still empty.

        Raises:
            ValueError: No parameter is Bayesian, or the prior is given twice.
        """
        state = init_state(model, make_optimizer, num_data, self.prior_precision)
        chosen, others = self._split_parameters(model)
        like = flatten(chosen)
        state.statistics = {
            "count": torch.zeros((), dtype=torch.int64, device=like.device),
            "mean": torch.zeros_like(like),
            "sum_squares": torch.zeros_like(like),
            "deviations": torch.zeros(
                (self.rank, like.numel()),
                dtype=torch.bfloat16 if self.bfloat16 else like.dtype,
                device=get_storage_device(self.storage, like.device),
            ),
        }
        if others:
            state.statistics["mean_of_others"] = torch.zeros_like(flatten(others))
        state.cpu_statistics = frozenset(["deviations"] if self.storage == "cpu" else ())
        return state

    def step(self, state: State, closure: Closure) -> Tensor:
        """One step of the optimiser."""
        return step_optimizer(state, closure, self.prior_precision)

    def collect(self, state: State) -> None:
        """Add the current weights to the moments, and their deviation to the last `rank` ones."""
        found = state.statistics
        mean, sum_squares, deviations = found["mean"], found["sum_squares"], found["deviations"]
        count = int(found["count"].add_(1))
        chosen, others = self._split_parameters(state.model)
        for part, weights in iter_blocks(chosen, block_size(mean)):
            deviation = update_moments(mean[part], sum_squares[part], torch.cat(weights), count)
            if self.rank:
                deviations[(count - 1) % self.rank, part] = deviation
        if others:
            found["mean_of_others"].lerp_(flatten(others), 1 / count)

    def finalize(self, state: State, examples: Examples, loss_fn: LossFn) -> None:
        """Nothing: no last look at the data is needed."""

    @contextmanager
    def draw(self, state: State, generator: torch.Generator) -> Iterator[nn.Module]:
        """The model with weights from the Gaussian; running statistics are the caller's to re-estimate.

        Raises:
            RuntimeError: Fewer than two snapshots were collected.
        """
        (chosen, others), found = self._split_parameters(state.model), state.statistics
        count, mean, sum_squares = int(found["count"]), found["mean"], found["sum_squares"]
        if count < 2:
            raise RuntimeError(
                f"SWAG needs at least 2 collected snapshots before a draw, got {count}; "
                "lower collection.start_fraction or train longer."
            )
        deviations = found["deviations"][:count]
        z2 = torch.randn(len(deviations), generator=generator, dtype=mean.dtype, device=mean.device)

        def sample_block(block: slice) -> Tensor:
            here, variance = mean[block], sum_squares[block] / count
            z1 = torch.randn(here.shape, generator=generator, dtype=mean.dtype, device=mean.device)
            return gaussian_sample(here, variance, deviations[:, block].to(here), self.scale, z1, z2)

        shared = swap_values(others, unflatten(found["mean_of_others"], others)) if others else nullcontext()
        with shared, write_blockwise(chosen, sample_block, block_size(mean)), eval_mode(state.model):
            yield state.model

    def _split_parameters(self, model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The Bayesian parameters, and the other trainable ones."""
        if self.params == "all":
            return trainable_parameters(model), []
        chosen = list(select_parameters(model, self.params, "params").values())
        known = {id(param) for param in chosen}
        return chosen, [param for param in trainable_parameters(model) if id(param) not in known]


def update_moments(
    mean: Float[Tensor, " params"],
    sum_squares: Float[Tensor, " params"],
    weights: Float[Tensor, " params"],
    count: int,
) -> Float[Tensor, " params"]:
    """Welford's update, in place: `mean` and the sum of squared deviations from it.

    The textbook E[w²] - E[w]² comes out negative for half of all weights in float32, this never does.

    Args:
        mean: Mean of the snapshots so far.
        sum_squares: Sum of their squared deviations from it.
        weights: The new snapshot.
        count: Number of snapshots with the new one.

    Returns:
        The snapshot's deviation from the new mean (zero for the first).
    """
    deviation = weights - mean
    mean.add_(deviation, alpha=1 / count)
    left = 1 - 1 / count  # of the deviation, once the mean has moved
    sum_squares.addcmul_(deviation, deviation, value=left)
    return deviation.mul_(left)


def gaussian_sample(
    mean: Float[Tensor, " params"],
    variance: Float[Tensor, " params"],
    deviations: Float[Tensor, "rank params"],
    scale: float,
    z1: Float[Tensor, " params"],
    z2: Float[Tensor, " rank"],
) -> Float[Tensor, " params"]:
    """Mean + sqrt(scale) (sqrt(variance) z1 + Dᵀ z2 / sqrt(rank - 1)), Maddox et al., Algorithm 1.

    One z2 serves the whole network, so weights of different layers that moved together are drawn together.

    Args:
        mean: Mean of the Gaussian.
        variance: Its diagonal part.
        deviations: D, one deviation from the mean a row; without rows there is no low-rank part.
        scale: Factor on the covariance.
        z1: Standard normal noise for the diagonal part.
        z2: Standard normal noise for the low-rank part.
    """
    factor = math.sqrt(scale)
    sample = torch.addcmul(mean, variance.sqrt(), z1, value=factor)
    if len(z2):
        sample.addmv_(deviations.T, z2, alpha=factor / math.sqrt(len(z2) - 1))
    return sample


def block_size(like: Tensor) -> int:
    """Weights to work on at a time: on a CPU, so few that what is in between stays in the cache."""
    return 2**16 if like.device.type == "cpu" else 2**22
