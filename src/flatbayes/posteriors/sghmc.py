"""Stochastic gradient Hamiltonian Monte Carlo (SGHMC; Chen et al., ICML 2014, equation 15).

    for each step:
        g = gradient of the mean loss over a batch + temperature * prior_precision / num_data * w
        v = (1 - friction) * sqrt(lr / lr of the step before) * v - lr * g
            + sqrt(2 * friction * lr * temperature / num_data) * N(0, I)
        w = w + v
    late in training, at regular intervals: store w
    draw: one of the stored w, all with the same probability; a prediction uses each once before it repeats one

This is Langevin dynamics with momentum; friction 1 is SGLD. It samples the same posterior as SGLD in fewer steps
where curvatures differ much. At a finite learning rate the variances are too large by the fraction
lr * curvature / (2 (2 - friction)), about half of SGLD's.

The velocities of a chain at rest have the variance 2 / (2 - friction) * lr * temperature / num_data, so they are
scaled with the root of the learning rate when it changes: v / sqrt(lr) is the momentum, of one distribution at every
rate. With velocities that keep their size, a learning rate that decreases within 1 / friction steps leaves them too
large, and they widen the weights: after 100 steps of four `Cyclical` waves, with friction 0.3, the variance at the
end was 1.57 times that of the posterior. It is 1.08 times now, and 1.02 to 1.03 with 400 steps.

The code published with flat-seeking Bayesian networks uses the name SGLD for SGD with momentum and noise of standard
deviation 4e-6 falling to 5e-7; that is `presets.NEAR_NOISELESS_SGLD`, a nearly noiseless cold posterior.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flatbayes.core import Closure, OptimizerFactory, State
from flatbayes.core.tensor_lists import flatten, unflatten
from flatbayes.core.weights import trainable_parameters
from flatbayes.posteriors.draw_options import AutoFloat, check_scale
from flatbayes.posteriors.optimization import default_sgd, init_state, step_optimizer, temper_precision
from flatbayes.posteriors.requirements import Trajectory
from flatbayes.posteriors.sgld import add_langevin_noise, check_plain_sgd
from flatbayes.posteriors.snapshot_sampler import SnapshotSampler
from flatbayes.posteriors.snapshots import Storage, allocate_snapshots, list_cpu_statistics


@dataclass(frozen=True)
class SGHMC(SnapshotSampler):
    """Snapshots of a Langevin chain with momentum.

    Use it as `SGLD`, where momentum is needed to move far enough.

    The optimizer must be torch.optim.SGD without momentum, which is added here. The noise follows its current
    learning rate.

    Attributes:
        friction: Fraction of the velocity lost per step, 1 - momentum; 1 is SGLD. The learning rate of SGLD times the
            friction gives the same progress per step.
        prior_precision: Precision of a Gaussian prior over all trainable weights. None: the optimizer's weight decay
            is the prior, with weight_decay = temperature * prior_precision / num_data.
        temperature: T in the posterior density p(w) exp(-num_data / T * mean NLL(w)): 1 is the Bayesian posterior,
            below 1 a colder one, narrower and closer to the data. With a fixed weight decay in place of
            `prior_precision`, T tempers the prior as well.
            None: 0.01 where the number of epochs is automatic, since draws of the Bayesian posterior of a network
            with many more weights than examples hardly fit the data; otherwise 1.
        max_snapshots: Largest number of stored snapshots, each of the size of the network. When more are collected,
            every second is dropped, repeatedly, so that the stored ones stay evenly spaced.
        storage: Where snapshots are stored: with the model (`device`) or in main memory (`cpu`).
        scale: Factor on the covariance of the draws: the distance of a snapshot from the mean of the stored ones is
            multiplied by its square root. Training does not depend on it. `auto`: chosen on validation examples after
            training, 1 without any. None: `auto` where the number of epochs is automatic, otherwise 1.
        burn_in: Fraction of the stored snapshots that draws leave out, from the first on, at most 0.5. `auto`: chosen
            on validation examples after training, 0 without any. None: `auto` for a trained network and an automatic
            number of epochs, otherwise 0.

    Examples:
        >>> fitted = fit(MLP, data, SGHMC(friction=0.1, prior_precision=1.0), SAM(rho=0.1), config)
        >>> fitted.predict(inputs, num_draws=30).mutual_information.shape
        torch.Size([100])
    """

    friction: float = 0.1
    prior_precision: float | None = None
    temperature: float | None = None
    max_snapshots: int = 30
    storage: Storage = "device"
    scale: AutoFloat | None = None
    burn_in: AutoFloat | None = None

    def __post_init__(self) -> None:
        if not 0 < self.friction <= 1:
            raise ValueError(f"friction must be above 0 and at most 1 (that is SGLD), got {self.friction}.")
        super().__post_init__()
        check_scale(self.scale)

    uses_gradient_only = True

    @property
    def default_optimizer(self) -> OptimizerFactory:
        """SGD without momentum, and with weight decay unless `prior_precision` is given."""
        return default_sgd(self.prior_precision, lr=0.1 * self.friction, momentum=0.0)

    @property
    def trajectory(self) -> Trajectory:
        """That of the chain and its velocity: snapshots do not change it."""
        return Trajectory.of(
            "hamiltonian",
            statistics=["velocity"],
            friction=self.friction,
            prior_precision=temper_precision(self.prior_precision, self._temperature),
            temperature=self._temperature,
        )

    def init(self, model: nn.Module, make_optimizer: OptimizerFactory | None, num_data: int) -> State:
        """Return a state of model, optimizer, empty snapshot storage and zero velocity; see `Posterior.init`.

        Raises:
            ValueError: The optimizer is not SGD without momentum, or the prior is given twice.
        """
        state = init_state(model, make_optimizer, num_data, self.prior_precision)
        check_plain_sgd(state.optimizer, "SGHMC")
        state.statistics = allocate_snapshots(model, self.max_snapshots, self.storage)
        state.cpu_statistics = list_cpu_statistics(self.storage)
        state.statistics["velocity"] = torch.zeros_like(flatten(trainable_parameters(model)))
        return state

    def step(self, state: State, closure: Closure) -> Tensor:
        """Do one optimizer step, add momentum and noise, and store the total change as velocity. Returns the loss."""
        params: list[Tensor] = [*trainable_parameters(state.model)]
        velocity = state.statistics["velocity"]
        before = flatten(params)
        loss = step_optimizer(state, closure, self.prior_precision, self._temperature)
        if state.optimizer is not None:
            velocities = dict(zip(params, unflatten(velocity, params), strict=True))
            for group in state.optimizer.param_groups:
                rescale_velocities([velocities[param] for param in group["params"] if param in velocities], group)
        with torch.no_grad():
            torch._foreach_add_(params, unflatten(velocity, params), alpha=1 - self.friction)
        add_langevin_noise(state, self._temperature, self.friction)
        velocity.copy_(flatten(params).sub_(before))
        return loss


def velocity_scale(lr: float, previous_lr: float) -> float:
    """Return the factor sqrt(lr / previous_lr) that keeps the distribution of the momentum v / sqrt(lr).

    After a rate of 0 the velocities are 0, and the factor is 1.

    >>> velocity_scale(0.01, 0.04)
    0.5
    """
    return math.sqrt(lr / previous_lr) if previous_lr > 0 else 1.0


def rescale_velocities(velocities: list[Tensor], group: dict[str, Any]) -> None:
    """Scale the velocities of a parameter group, in place, to its current learning rate.

    The learning rate of the last step is kept in the group, and so in the optimizer's state.
    """
    lr = float(group["lr"])
    scale = velocity_scale(lr, float(group.get("velocity_lr", lr)))
    if scale != 1:
        torch._foreach_mul_(velocities, scale)
    group["velocity_lr"] = lr
