"""Entropy-MCMC (Li & Zhang, ICLR 2024): a Langevin chain with a second, coupled one that seeks flat basins.

The loss acts on the weights w only. An anchor a is coupled to them by a Gaussian of variance `coupling` (c), so that
its marginal density is the posterior smoothed by that Gaussian: sharp modes lose density. Both are samples.

    density of (w, a):  p(w) exp(-num_data / T * L(w) - ||w - a||² / (2 c))
    for each step, with k = T / (c * num_data) and both differences from the old pair:
        g = gradient of the mean loss over a batch + T * prior_precision / num_data * w
        w = w - lr * (g + k * (w - a)) + sqrt(2 * lr * T / num_data) * N(0, I)
        a = a - lr * k * (a - w)       + sqrt(2 * lr * T / num_data) * N(0, I)
    late in training, at regular intervals: store w and a
    draw: one of the stored networks, all with the same probability

One gradient a step, as for SGLD. The authors' code divides the coupling energy by the temperature too, so that its
`eta` is c / T, and it applies the weight decay to both vectors, so that w is not a sample of the posterior any more;
`posteriors.presets.ENTROPY_MCMC_CIFAR10` has these choices.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flatbayes.core import Closure, OptimizerFactory, State
from flatbayes.core.buffers import eval_mode
from flatbayes.core.gradients import densify_gradients
from flatbayes.core.padding import clear_padding_rows
from flatbayes.core.randomness import iter_normal_noise
from flatbayes.core.tensor_lists import flatten, flatten_wide, unflatten
from flatbayes.core.weights import swap_values, trainable_parameters
from flatbayes.posteriors.draw_options import AutoFloat, DrawOption
from flatbayes.posteriors.optimization import init_state, step_optimizer, temper_precision
from flatbayes.posteriors.sgld import add_langevin_noise, check_plain_sgd, iter_sampled, noise_std
from flatbayes.posteriors.snapshot_sampler import SnapshotSampler
from flatbayes.posteriors.snapshots import (
    Storage,
    add_snapshot,
    allocate_snapshots,
    get_storage_device,
    list_cpu_statistics,
    store_snapshot,
)


@dataclass(frozen=True)
class EntropyMCMC(SnapshotSampler):
    """Snapshots of two coupled Langevin chains, one in flat basins.

    The optimizer must be torch.optim.SGD without momentum. The noise follows its current learning rate.

    Use it for samples of flat basins at one gradient a step.

    Attributes:
        coupling: Variance of the difference between weights and anchor, which does not depend on the temperature. A
            wider one smooths the posterior of the anchor more. The learning rate can be at most
            coupling * num_data / temperature.
        prior_precision: Precision of a Gaussian prior over all trainable weights. None: the optimizer's weight decay
            is the prior, with weight_decay = temperature * prior_precision / num_data.
        temperature: T in the posterior density p(w) exp(-num_data / T * mean NLL(w)): 1 is the Bayesian posterior,
            below 1 a colder one.
            None: 0.01 where the number of epochs is automatic, since draws of the Bayesian posterior of a network
            with many more weights than examples hardly fit the data; otherwise 1.
        max_snapshots: Largest number of stored pairs, each of the size of two networks. When more are collected,
            every second is dropped, repeatedly, so that the stored ones stay evenly spaced.
        storage: Where snapshots are stored: with the model (`device`) or in main memory (`cpu`).
        decay_anchor: Whether the prior also acts on the anchor, as in the authors' code. The weights are then not
            samples of the posterior: the prior counts twice.
        burn_in: Fraction of the stored pairs that draws leave out, from the first on, at most 0.5. `auto`: chosen
            on validation examples after training, 0 without any. None: `auto` for a trained network and an automatic
            number of epochs, otherwise 0.

    Examples:
        >>> fitted = fit(MLP, data, EntropyMCMC(prior_precision=1.0), config=config)
        >>> fitted.predict(inputs, num_draws=30).mutual_information.shape
        torch.Size([100])
    """

    coupling: float = 0.01
    prior_precision: float | None = None
    temperature: float | None = None
    max_snapshots: int = 15
    storage: Storage = "device"
    decay_anchor: bool = False
    burn_in: AutoFloat | None = None

    def __post_init__(self) -> None:
        if not 0 < self.coupling < float("inf"):
            raise ValueError(f"coupling is a variance: it must be positive and finite, got {self.coupling}.")
        super().__post_init__()

    stochastic = True  # a pair is two networks
    uses_gradient_only = True

    def init(self, model: nn.Module, make_optimizer: OptimizerFactory | None, num_data: int) -> State:
        """Return a state of model, optimizer, an anchor at the weights, and empty storages; see `Posterior.init`.

        Raises:
            ValueError: The optimizer is not SGD without momentum, or the prior is given twice.
        """
        state = init_state(model, make_optimizer, num_data, self.prior_precision)
        check_plain_sgd(state.optimizer, "EntropyMCMC")
        state.statistics = allocate_snapshots(model, self.max_snapshots, self.storage)
        params = flatten(trainable_parameters(model))
        device = get_storage_device(self.storage, params.device)
        state.statistics["anchor_snapshots"] = torch.zeros(
            self.max_snapshots, len(params), dtype=params.dtype, device=device
        )
        state.statistics["anchor"] = flatten_wide(trainable_parameters(model))
        state.cpu_statistics = list_cpu_statistics(self.storage)
        if self.storage == "cpu":
            state.cpu_statistics |= {"anchor_snapshots"}
        return state

    def step(self, state: State, closure: Closure) -> Tensor:
        """Do one optimizer step of the weights and one of the anchor, with noise. Returns the loss of the batch.

        Raises:
            ValueError: The learning rate is too large for the coupling.
        """
        self._check_learning_rate(state.optimizer, state.num_data)
        params = trainable_parameters(state.model)
        anchors = dict(zip(params, unflatten(state.statistics["anchor"], params), strict=True))
        strength = self._temperature / (self.coupling * state.num_data)

        def coupled_closure() -> Tensor:
            loss = closure()
            densify_gradients(params)
            for group, members in iter_sampled(state):
                lr, decay = float(group["lr"]), self._find_anchor_decay(group, state.num_data)
                std = noise_std(lr, self._temperature, state.num_data, friction=1.0)
                couple_anchors(members, [anchors[param] for param in members], lr, strength, decay, std)
            return loss

        loss = step_optimizer(state, coupled_closure, self.prior_precision, self._temperature)
        add_langevin_noise(state, self._temperature, friction=1.0)
        return loss

    def collect(self, state: State) -> None:
        """Store weights and anchor, up to `max_snapshots` of each."""
        params = trainable_parameters(state.model)
        anchors = unflatten(state.statistics["anchor"], params)
        store_snapshot(state.statistics["anchor_snapshots"], int(state.statistics["count"]) + 1, anchors)
        add_snapshot(state.statistics, params)

    @property
    def draw_options(self) -> Mapping[str, DrawOption]:
        """The burn-in if it is to be chosen."""
        return self._burn_in_options

    def count_stored_snapshots(self, state: State) -> int:
        """Number of stored networks after the burn-in, two for each pair."""
        return 2 * super().count_stored_snapshots(state)

    @contextmanager
    def load_snapshot(self, state: State, index: int) -> Iterator[nn.Module]:
        """Yield the model with the weights of this snapshot: even numbers are weights, odd ones anchors."""
        params = trainable_parameters(state.model)
        rows = state.statistics["anchor_snapshots" if index % 2 else "snapshots"]
        row = self.find_first_row(state) + index // 2
        with swap_values(params, unflatten(rows[row], params)), eval_mode(state.model):
            yield state.model

    def _find_anchor_decay(self, group: Mapping[str, Any], num_data: int) -> float:
        """Return the weight decay of the anchors of a parameter group."""
        if not self.decay_anchor:
            return 0.0
        precision = temper_precision(self.prior_precision, self._temperature)
        return float(group.get("weight_decay", 0.0)) if precision is None else precision / num_data

    def _check_learning_rate(self, optimizer: Optimizer | None, num_data: int) -> None:
        largest = self.coupling * num_data / self._temperature
        lr = 0.0 if optimizer is None else max(float(group["lr"]) for group in optimizer.param_groups)
        if lr > largest:
            raise ValueError(
                f"The difference between weights and anchor diverges: the learning rate is {lr:g}, and can be at "
                f"most coupling * num_data / temperature = {self.coupling:g} * {num_data} / {self._temperature:g} = "
                f"{largest:g}. Lower the learning rate, or raise the coupling."
            )


@torch.no_grad()
def couple_anchors(
    params: Sequence[Tensor], anchors: Sequence[Tensor], lr: float, strength: float, decay: float, std: float
) -> None:
    """Add the coupling to the gradients of the weights, and do a step of the anchors, from the old pair, in place.

    Args:
        params: Weights w with gradients, to which strength (w - a) is added.
        anchors: Anchors a, which become a - lr (strength (a - w) + decay a) + std N(0, I).
        lr: Learning rate.
        strength: T / (coupling num_data).
        decay: Weight decay of the anchors.
        std: Standard deviation of their noise.
    """
    if not params:
        return
    differences = torch._foreach_sub(list(params), list(anchors))
    grads = [param.grad for param in params if param.grad is not None]
    torch._foreach_add_(grads, differences, alpha=strength)
    torch._foreach_mul_(list(anchors), 1 - lr * decay)
    torch._foreach_add_(list(anchors), differences, alpha=lr * strength)
    for indices, noise in iter_normal_noise(anchors):
        clear_padding_rows(noise, [params[k] for k in indices])
        torch._foreach_add_([anchors[k] for k in indices], noise, alpha=std)
