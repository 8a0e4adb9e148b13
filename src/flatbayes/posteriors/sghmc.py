"""SGHMC, stochastic gradient Hamiltonian Monte Carlo (Chen et al., ICML 2014, equation 15).

Langevin dynamics with momentum: the network is a heavy ball that friction slows and noise keeps moving. It
samples what SGLD samples, in fewer steps where curvatures differ much. At a learning rate lr variances come out too
wide by a share of lr times curvature / (2 (2 - friction)), about half of SGLD's.

The code published with flat-seeking Bayesian networks calls SGD with momentum and a noise of standard deviation 4e-6
falling to 5e-7 SGLD; that is `NEAR_NOISELESS_SGLD` in `presets`, a cold posterior all but free of noise.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flatbayes.core import Closure, Examples, LossFn, OptimizerFactory, State
from flatbayes.core.weights import flatten, trainable_parameters, unflatten
from flatbayes.posteriors.optimization import check_prior_precision, default_sgd, init_state, step_optimizer
from flatbayes.posteriors.posterior import Posterior
from flatbayes.posteriors.sgld import add_langevin_noise, check_plain_sgd, check_temperature, temper_prior_precision
from flatbayes.posteriors.snapshots import (
    Storage,
    add_snapshot,
    allocate_snapshots,
    check_snapshot_options,
    draw_snapshot,
)


@dataclass(frozen=True)
class SGHMC(Posterior):
    """Networks that noisy gradient descent with momentum has passed through.

    With v the velocity, a step is v <- (1 - friction) v - lr (gradient + prior) + noise, w <- w + v. The gradient
    part is the step of the optimizer, torch.optim.SGD without momentum, at the learning rate it has then.

    Attributes:
        friction: Share of the velocity lost in a step, one minus the momentum; 1 is SGLD. Multiply SGLD's learning
            rate by it to go as far in a step.
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

    friction: float = 0.1
    prior_precision: float | None = None
    temperature: float = 1.0
    max_snapshots: int = 30
    storage: Storage = "device"

    def __post_init__(self) -> None:
        if not 0 < self.friction <= 1:
            raise ValueError(f"friction must be above 0 and at most 1 (that is SGLD), got {self.friction}.")
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
        """SGD without momentum, which is the method's own, and with weight decay unless the prior is given."""
        return default_sgd(self.prior_precision, lr=0.1 * self.friction, momentum=0.0)

    def init(self, model: nn.Module, make_optimizer: OptimizerFactory | None, num_data: int) -> State:
        """Model, optimiser, a ball at rest, and room for snapshots.

        Raises:
            ValueError: The optimiser is not SGD without momentum, or the prior is given twice.
        """
        state = init_state(model, make_optimizer, num_data, self.prior_precision)
        check_plain_sgd(state.optimizer, "SGHMC")
        state.statistics = allocate_snapshots(model, self.max_snapshots, self.storage)
        state.cpu_statistics = frozenset(state.statistics if self.storage == "cpu" else ())
        state.statistics["velocity"] = torch.zeros_like(flatten(trainable_parameters(model)))
        return state

    def step(self, state: State, closure: Closure) -> Tensor:
        """One step of the optimiser, momentum and noise; the velocity is how far that went."""
        params: list[Tensor] = [*trainable_parameters(state.model)]
        velocity = state.statistics["velocity"]
        before = flatten(params)
        loss = step_optimizer(state, closure, temper_prior_precision(self.prior_precision, self.temperature))
        with torch.no_grad():
            torch._foreach_add_(params, unflatten(velocity, params), alpha=1 - self.friction)
        add_langevin_noise(state.optimizer, self.temperature, state.num_data, self.friction)
        velocity.copy_(flatten(params).sub_(before))
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
        return draw_snapshot(state, generator, "SGHMC")
