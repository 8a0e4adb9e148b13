"""Stochastic gradient Langevin dynamics (SGLD; Welling & Teh, ICML 2011, equation 4).

    for each step:
        g = gradient of the mean loss over a batch + temperature * prior_precision / num_data * w
        w = w - lr * g + sqrt(2 * lr * temperature / num_data) * N(0, I)
    late in training, at regular intervals: store w
    draw: one of the stored w, all with the same probability; a prediction uses each once before it repeats one

In the limit of a small learning rate and small gradient noise the chain samples p(w) exp(-num_data / T L(w)), with T
the temperature and L the mean negative log likelihood. At a finite learning rate the variances are too large by
the fraction lr * curvature / 2. With a sharpness-aware gradient the chain samples the sharpness-aware posterior. That
gradient is discontinuous where the gradient of L vanishes, so the error of a finite learning rate is larger there.

With lattice noise (SGLRW, arXiv 2602.15925) every weight moves by exactly +d or -d, and the gradient is in the odds:

    d = sqrt(2 * lr * temperature / num_data),   q = lr * g / d
    w = w - d with probability (1 + clip(q, -1, 1)) / 2, else w + d

The first two moments of a step are those of SGLD without its error of the learning rate, and noise of the gradient
does not widen the chain, as long as |q| <= 1. Where |q| > 1 part of the drift is lost.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from flatbayes.core import Closure, OptimizerFactory, State
from flatbayes.core.names import check_choice
from flatbayes.core.padding import clear_padding_rows
from flatbayes.core.randomness import iter_normal_noise, iter_uniform_noise
from flatbayes.core.tensor_lists import clone_tensors, widen
from flatbayes.core.weights import trainable_parameters
from flatbayes.posteriors.draw_options import AutoFloat, check_scale
from flatbayes.posteriors.optimization import init_state, step_optimizer, temper_precision
from flatbayes.posteriors.requirements import Trajectory
from flatbayes.posteriors.snapshot_sampler import SnapshotSampler
from flatbayes.posteriors.snapshots import Storage, allocate_snapshots, list_cpu_statistics

Noise = Literal["gaussian", "lattice"]
"""Distribution of the step of a weight: normal, or one of two values."""


@dataclass(frozen=True)
class SGLD(SnapshotSampler):
    """Snapshots of a Langevin chain: gradient descent with noise.

    Use it as a sampler that is exact for small learning rates, to check other posteriors.

    The optimizer must be torch.optim.SGD without momentum. The noise follows its current learning rate.

    Attributes:
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
        noise: `gaussian`, or `lattice`: every step of a weight has the same length, which bounds the effect of noisy
            gradients, and the direction is random. Where too many steps are clipped (`clipped_share` in the summary
            of the fit), lower the learning rate: a step is not clipped if sqrt(lr) * |gradient| is at most
            sqrt(2 temperature / num_data).

    Examples:
        >>> fitted = fit(MLP, data, SGLD(prior_precision=1.0), SAM(rho=0.1), config)
        >>> fitted.predict(inputs, num_draws=30).mutual_information.shape
        torch.Size([100])
    """

    prior_precision: float | None = None
    temperature: float | None = None
    max_snapshots: int = 30
    storage: Storage = "device"
    scale: AutoFloat | None = None
    noise: Noise = "gaussian"
    burn_in: AutoFloat | None = None

    def __post_init__(self) -> None:
        check_choice("noise", self.noise, Noise)
        super().__post_init__()
        check_scale(self.scale)

    uses_gradient_only = True

    @property
    def trajectory(self) -> Trajectory:
        """That of the chain: snapshots do not change it."""
        return Trajectory.of(
            "langevin" if self.noise == "gaussian" else "lattice",
            statistics=[] if self.noise == "gaussian" else ["clipping"],
            prior_precision=temper_precision(self.prior_precision, self._temperature),
            temperature=self._temperature,
        )

    def init(self, model: nn.Module, make_optimizer: OptimizerFactory | None, num_data: int) -> State:
        """Return a state of model, optimizer and empty snapshot storage; see `Posterior.init`.

        Raises:
            ValueError: The optimizer is not SGD without momentum, or the prior is given twice.
        """
        state = init_state(model, make_optimizer, num_data, self.prior_precision)
        check_plain_sgd(state.optimizer, "SGLD")
        state.statistics = allocate_snapshots(model, self.max_snapshots, self.storage)
        state.cpu_statistics = list_cpu_statistics(self.storage)
        if self.noise == "lattice":
            param = trainable_parameters(model)[0]
            clipping = param.new_zeros(2, 1, dtype=widen(param.dtype), requires_grad=False)  # sum, steps
            state.statistics["clipping"] = clipping
        return state

    def step(self, state: State, closure: Closure) -> Tensor:
        """Do one optimizer step and add noise, which is drawn after the closure. Returns the loss of the batch."""
        if self.noise == "lattice":
            return self._step_on_lattice(state, closure)
        loss = step_optimizer(state, closure, self.prior_precision, self._temperature)
        add_langevin_noise(state, self._temperature, friction=1.0)
        return loss

    def _step_on_lattice(self, state: State, closure: Closure) -> Tensor:
        """Turn the step of the optimizer, and its length, into the direction of a step on the lattice."""
        start = list[tuple[Sequence[Tensor], Sequence[Tensor], float]]()

        def record_start() -> Tensor:
            loss = closure()
            for group, params in iter_sampled(state):
                spacing = noise_std(float(group["lr"]), self._temperature, state.num_data, friction=1.0)
                if params and spacing > 0:
                    start.append((params, clone_tensors(params), spacing))
            return loss

        loss = step_optimizer(state, record_start, self.prior_precision, self._temperature)
        clipping = state.statistics["clipping"]
        num_clipped, num_weights = clipping.new_zeros(()), 0
        for params, values, spacing in start:
            num_clipped += move_on_lattice(params, values, spacing).to(clipping.device)
            num_weights += sum(param.numel() for param in params)
        if num_weights:
            clipping[0] += num_clipped / num_weights
            clipping[1] += 1
        return loss

    def describe_state(self, state: State) -> Mapping[str, float]:
        """The share of the steps on the lattice that were clipped, over training and all weights."""
        if self.noise == "gaussian":
            return {}
        share_sum, num_steps = state.statistics["clipping"][:, 0].tolist()
        return {"clipped_share": share_sum / max(num_steps, 1)}


def noise_std(lr: float, temperature: float, num_data: int, friction: float) -> float:
    """Return the standard deviation of the noise of one step, sqrt(2 friction lr temperature / num_data).

    The learning rate refers to the *mean* loss; Welling & Teh's step size, which refers to the log posterior, is 2 lr
    temperature / num_data. The form with friction is Chen et al. (ICML 2014), equation 15. The friction is the
    fraction of the velocity lost per step; 1 for SGLD, which has no momentum.

    >>> noise_std(0.1, 1.0, 50_000, friction=1.0)
    0.002
    """
    return math.sqrt(2 * friction * lr * temperature / num_data)


def iter_sampled(state: State) -> Iterator[tuple[dict[str, Any], list[nn.Parameter]]]:
    """Yield the parameter groups of the optimizer, with the parameters in them that the chain samples.

    These are trainable parameters of the model that have a gradient: without a force they would diffuse without
    bound. The optimizer of another loop can have parameters of other networks, which have no prior either.
    """
    own = set(trainable_parameters(state.model))
    for group in [] if state.optimizer is None else state.optimizer.param_groups:
        yield group, [param for param in group["params"] if param in own and param.grad is not None]


@torch.no_grad()
def add_langevin_noise(state: State, temperature: float, friction: float) -> None:
    """Add `noise_std` times standard normal noise to every parameter of `iter_sampled`, in place."""
    for group, params in iter_sampled(state):
        std = noise_std(float(group["lr"]), temperature, state.num_data, friction)
        for indices, noise in iter_normal_noise(params):
            torch._foreach_add_([params[k] for k in indices], noise, alpha=std)


@torch.no_grad()
def move_on_lattice(params: Sequence[Tensor], start: Sequence[Tensor], spacing: float) -> Tensor:
    """Replace steps from `start` to `params` by steps of +spacing or -spacing with the same mean, in place.

    A step x becomes +spacing with probability (1 + clip(x / spacing, -1, 1)) / 2.

    Returns:
        Number of weights whose step was longer than the spacing, as a tensor without dimensions.
    """
    num_clipped = torch.zeros((), device=params[0].device)
    for indices, uniform in iter_uniform_noise(params):
        members, origins = [params[k] for k in indices], [start[k] for k in indices]
        drifts = torch._foreach_sub(members, origins)
        torch._foreach_div_(drifts, spacing)
        num_clipped += torch.stack([(drift.abs() > 1).sum() for drift in drifts]).sum()
        signs = [(2 * u - 1 < x).to(x.dtype) * 2 - 1 for u, x in zip(uniform, drifts, strict=True)]
        clear_padding_rows(signs, members)
        torch._foreach_copy_(members, torch._foreach_add(origins, signs, alpha=spacing))
    return num_clipped


def check_plain_sgd(
    optimizer: Optimizer | None,
    method: str,
    reason: str = "adds noise to plain gradient descent",
    advice: str = "for momentum use SGHMC, whose friction is 1 - momentum",
) -> None:
    """Validate that the optimizer does plain gradient descent, from which the update of the method is derived.

    None passes. Method, reason and advice are for the message.

    Raises:
        ValueError: The optimizer is not torch.optim.SGD, or has momentum or dampening, or maximizes.
    """
    if optimizer is None:
        return
    options = ("momentum", "dampening", "nesterov", "maximize")
    refused = [f"{name}={group[name]}" for group in optimizer.param_groups for name in options if group.get(name)]
    if not isinstance(optimizer, SGD):
        refused = [type(optimizer).__name__]
    if refused:
        raise ValueError(
            f"{method} {reason}, so its optimizer must be torch.optim.SGD with a learning rate and at most a weight "
            f"decay; got {', '.join(refused)}. Use torch.optim.SGD(params, lr=...); {advice}."
        )
