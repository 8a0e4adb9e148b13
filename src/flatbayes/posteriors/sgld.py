"""SGLD, stochastic gradient Langevin dynamics (Welling & Teh, ICML 2011, equation 4).

Gradient descent with just enough noise that its iterates scatter like the posterior: in the limit of small
learning rates, and of mini-batches whose own noise is small beside it, the chain samples
p(w) exp(-(num_data / temperature) L(w)), with L the mean negative log likelihood that the closure leaves the
gradient of. At a learning rate lr variances come out too wide by a share of lr times curvature / 2.

A sharpness-aware gradient makes it sample the sharpness-aware posterior. Its force jumps where the gradient
vanishes, so there the error in the learning rate is larger than for the plain one.
"""

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from flatbayes.core import Closure, Examples, LossFn, OptimizerFactory, State
from flatbayes.core.weights import trainable_parameters
from flatbayes.posteriors.optimization import check_prior_precision, default_sgd, init_state, step_optimizer
from flatbayes.posteriors.posterior import Posterior
from flatbayes.posteriors.snapshots import (
    Storage,
    add_snapshot,
    allocate_snapshots,
    check_snapshot_options,
    draw_snapshot,
)


@dataclass(frozen=True)
class SGLD(Posterior):
    """Networks that noisy gradient descent has passed through.

    The step is that of the optimizer, torch.optim.SGD without momentum, at the learning rate it has then; the
    noise follows the learning rate.

    Attributes:
        prior_precision: Precision of a Gaussian prior over all trainable weights; None leaves the prior to the
            optimizer's weight decay, which is this times the temperature, divided by the number of training
            examples.
        temperature: Divides the log likelihood, not the log prior. One is Bayes; below one the posterior is
            narrower than Bayes has it. With the weight decay held fixed instead of prior_precision, likelihood and
            prior are tempered together, a cold posterior.
        max_snapshots: Largest number of snapshots to hold, each the size of the network. Where more are collected,
            every
            second is dropped, again and again, so that those held stay evenly spread.
        storage: Where they are held: beside the model (device) or in main memory (cpu).
    """

    prior_precision: float | None = None
    temperature: float = 1.0
    max_snapshots: int = 30
    storage: Storage = "device"

    def __post_init__(self) -> None:
        check_prior_precision(self.prior_precision)
        check_temperature(self.temperature)
        check_snapshot_options(self.max_snapshots, self.storage)

    num_members = 1

    @property
    def stochastic(self) -> bool:
        """Unless one snapshot is all that is held."""
        return self.max_snapshots > 1

    needs_norm_reestimation = True  # the running statistics are those of the end of training, not of the snapshot
    requires_stationary_loss = "while collecting"  # snapshots are samples of one density
    shardable = False  # noise is drawn in the shape of whole parameters

    @property
    def snapshot_requirements(self) -> tuple[int, int]:
        """One is a sample, and `max_snapshots` are held."""
        return 1, self.max_snapshots

    @property
    def default_optimizer(self) -> OptimizerFactory:
        """SGD without momentum, and with weight decay unless the prior is given."""
        return default_sgd(self.prior_precision, momentum=0.0)

    def init(self, model: nn.Module, make_optimizer: OptimizerFactory | None, num_data: int) -> State:
        """Model, optimiser, and room for snapshots.

        Raises:
            ValueError: The optimiser is not SGD without momentum, or the prior is given twice.
        """
        state = init_state(model, make_optimizer, num_data, self.prior_precision)
        check_plain_sgd(state.optimizer, "SGLD")
        state.statistics = allocate_snapshots(model, self.max_snapshots, self.storage)
        state.cpu_statistics = frozenset(state.statistics if self.storage == "cpu" else ())
        return state

    def step(self, state: State, closure: Closure) -> Tensor:
        """One step of the optimiser, and noise; which is drawn after the closure, so no pass repeats it."""
        loss = step_optimizer(state, closure, temper_prior_precision(self.prior_precision, self.temperature))
        add_langevin_noise(state.optimizer, self.temperature, state.num_data, friction=1.0)
        return loss

    def collect(self, state: State) -> None:
        """Hold the current weights, as far as `max_snapshots` allows."""
        add_snapshot(state.statistics, trainable_parameters(state.model))

    def finalize(self, state: State, examples: Examples, loss_fn: LossFn) -> None:
        """Nothing: no last look at the data is needed."""

    def draw(self, state: State, generator: torch.Generator) -> AbstractContextManager[nn.Module]:
        """The model with the weights of a snapshot; running statistics are the caller's to re-estimate.

        Raises:
            RuntimeError: No snapshot was collected.
        """
        return draw_snapshot(state, generator, "SGLD")


def noise_std(lr: float, temperature: float, num_data: int, friction: float) -> float:
    """Standard deviation of the noise of one step, sqrt(2 friction lr temperature / num_data).

    With the learning rate on the *mean* loss, Welling & Teh's step size on the log posterior is
    2 lr temperature / num_data. The form with friction is Chen et al. (ICML 2014), equation 15.

    >>> noise_std(0.1, 1.0, 50_000, friction=1.0)
    0.002

    Args:
        lr: Learning rate.
        temperature: Divides the log likelihood.
        num_data: Number of training examples.
        friction: Share of the velocity lost in a step; one without momentum.
    """
    return math.sqrt(2 * friction * lr * temperature / num_data)


@torch.no_grad()
def add_langevin_noise(optimizer: Optimizer | None, temperature: float, num_data: int, friction: float) -> None:
    """`param += noise_std * xi`, with xi standard normal, for every parameter that has a gradient.

    A parameter that the loss does not reach would drift without bound.
    """
    groups = [] if optimizer is None else optimizer.param_groups
    for group in groups:
        std = noise_std(float(group["lr"]), temperature, num_data, friction)
        for param in group["params"]:
            if param.grad is not None:
                param.add_(torch.randn_like(param), alpha=std)


def temper_prior_precision(prior_precision: float | None, temperature: float) -> float | None:
    """The precision whose gradient goes beside the likelihood's, if that is not to be divided by the temperature."""
    return None if prior_precision is None else prior_precision * temperature


def check_temperature(temperature: float) -> None:
    """Refuse what is no temperature.

    Raises:
        ValueError: It is not positive, or not finite.
    """
    if not 0 < temperature < math.inf:
        raise ValueError(
            f"temperature must be positive and finite, got {temperature}. Without noise there is no posterior: for "
            "the end of gradient descent use MAP, for its late iterates SWAG."
        )


def check_plain_sgd(optimizer: Optimizer | None, method: str) -> None:
    """Refuse every optimiser but plain gradient descent: noise of the right size is known for no other.

    Raises:
        ValueError: It is not torch.optim.SGD, or has momentum, dampening, or maximises.
    """
    if optimizer is None:
        return
    options = ("momentum", "dampening", "nesterov", "maximize")
    found = [f"{name}={group[name]}" for group in optimizer.param_groups for name in options if group.get(name)]
    if not isinstance(optimizer, SGD):
        found = [type(optimizer).__name__]
    if found:
        raise ValueError(
            f"{method} adds noise to plain gradient descent, so its optimizer must be torch.optim.SGD with nothing "
            f"but a learning rate and perhaps a weight decay; got {', '.join(found)}. Use "
            "torch.optim.SGD(params, lr=...); for momentum use SGHMC, whose friction is 1 - momentum."
        )
