"""SAM as an optimal relaxation of Bayes (bSAM; Möllenhoff & Khan, ICLR 2023), as its authors published it.

    q = N(mean, diag(1 / (N s))) with N = num_data / temperature and d = prior_precision / N
    for each step:
        for each sub-batch:
            g = gradient at mean + noise / sqrt(N s), with noise ~ N(0, I)
            e = gradient at mean + rho * g / s
        average e and sqrt(s) |g| over the sub-batches
        momentum = beta1 * momentum + (1 - beta1) * (e + d * mean)
        mean = mean - lr * momentum / s
        s = beta2 * s + (1 - beta2) * (sqrt(s) |g| + damping + d)
    draw: mean + N(0, I) / sqrt(N s)

The second gradient is at the mean, not at the sample, so the perturbation belongs to the posterior, which goes with
`Plain` only. For the same idea in two axes use `IVON` with `PosteriorSAM`. The scale s is not the Hessian: where the
gradient has no noise of its own it falls as 1 / sqrt(N), so standard deviations are not those of the posterior.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flatbayes.core import Closure, OptimizerFactory, State
from flatbayes.core.buffers import eval_mode, find_changed, mark_frozen, preserve_buffers
from flatbayes.core.context import SubBatch, sub_batch
from flatbayes.core.gradients import dense_gradient
from flatbayes.core.networks import check_materialized, check_real
from flatbayes.core.randomness import RandomState, rewind_rng
from flatbayes.core.tensor_lists import copy_values, flatten, flatten_wide, unflatten
from flatbayes.core.traversal import list_parameters
from flatbayes.core.weights import swap_values, trainable_parameters
from flatbayes.posteriors.draw_options import SCALE_OPTIONS, AutoFloat, check_scale, scale_std
from flatbayes.posteriors.optimization import (
    check_temperature,
    default_sgd,
    init_state,
    resolve_weight_decay,
    step_optimizer,
)
from flatbayes.posteriors.prior_precision import check_prior_precision
from flatbayes.posteriors.sgld import check_plain_sgd
from flatbayes.posteriors.tempered_posterior import TemperedPosterior


@dataclass(frozen=True)
class BSAM(TemperedPosterior):
    """A Gaussian from SAM with a scale and noise for every weight.

    Use it to compare with the published method; with `Plain`.

    The optimizer must be torch.optim.SGD without momentum: momentum and step sizes are those of the method. All
    trainable weights have a distribution. Between steps the model has the mean weights.

    Attributes:
        rho: Length of the perturbation relative to gradient / s.
        prior_precision: Precision of a Gaussian prior over all trainable weights. None: the optimizer's weight decay
            is the prior, with weight_decay = temperature * prior_precision / num_data.
        temperature: T in the posterior density p(w) exp(-num_data / T * mean NLL(w)); 1 is the Bayesian posterior.
            The authors use 1/4 on CIFAR, for the images that augmentation adds. None: 0.1 for a trained network and
            an automatic number of epochs, since more noise destroys its weights; else 1.
        damping: Added to the target of s.
        initial_scale: Initial value of every s.
        beta1: Decay of the momentum.
        beta2: Decay of s.
        num_sub_batches: Number of sub-batches of a batch, each with its own noise and perturbation; fewer if they had
            less than two examples each. Loops whose closure does not use `flatbayes.core.subset_batch` have one.
        scale: Factor on the covariance of the draws, which training does not depend on; `auto`: chosen on validation
            examples after training, 1 without any.

    Examples:
        >>> fitted = fit(MLP, data, BSAM(temperature=0.25), Plain(), config)
        >>> fitted.predict(inputs, num_draws=30).mutual_information.shape
        torch.Size([100])
    """

    rho: float = 0.01
    prior_precision: float | None = None
    temperature: float | None = None
    damping: float = 0.1
    initial_scale: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.999
    num_sub_batches: int = 8
    scale: AutoFloat = 1.0

    def __post_init__(self) -> None:
        check_prior_precision(self.prior_precision)
        check_temperature(self._temperature)
        check_scale(self.scale)
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}.")
        for name in ("rho", "damping"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and at least 0, got {getattr(self, name)}.")
        if not 0 < self.initial_scale < math.inf:
            raise ValueError(f"initial_scale must be positive and finite, got {self.initial_scale}.")
        if self.num_sub_batches < 1:
            raise ValueError(f"num_sub_batches must be at least 1, got {self.num_sub_batches}.")

    fine_tuning_temperature = 0.1  # the noise of a higher one destroys trained weights
    draw_options = SCALE_OPTIONS
    requires_stationary_loss = "at_end"  # the method minimises a bound
    gradients_per_step = 2.0  # over all sub-batches
    perturbs_weights = True
    tolerates_skipped_steps = False  # momentum and s would keep the gradient that is not finite

    @property
    def default_optimizer(self) -> OptimizerFactory:
        """SGD with the learning rate and weight decay of the authors for CIFAR-10."""
        return default_sgd(self.prior_precision, lr=0.5, momentum=0.0, weight_decay=2e-4)

    def init(self, model: nn.Module, make_optimizer: OptimizerFactory | None, num_data: int) -> State:
        """Return a state of model, optimizer, means, s and momentum; see `Posterior.init`.

        Raises:
            ValueError: The optimizer is not SGD without momentum, the prior is given twice, or weight decays differ.
        """
        check_materialized(model)
        check_real(model.named_parameters(), "BSAM")
        state = init_state(model, make_optimizer, num_data, self.prior_precision)
        advice = "the momentum of BSAM is beta1"
        check_plain_sgd(state.optimizer, "BSAM", "has its own momentum and step sizes", advice)
        mean = flatten_wide(trainable_parameters(model))
        decay = resolve_weight_decay(state, self.prior_precision, self._temperature, "BSAM")
        state.statistics = {
            "mean": mean,
            "scale": torch.full_like(mean, self.initial_scale),
            "momentum": torch.zeros_like(mean),
            "weight_decay": mean.new_tensor(decay),
        }
        return state

    def step(self, state: State, closure: Closure) -> Tensor:
        """Do one step on means and scales. Returns the mean loss of the samples."""
        params = trainable_parameters(state.model)
        means = unflatten(state.statistics["mean"], params)
        copy_values(means, [param.detach() for param in params])  # the weights can have changed since the last step
        loss = step_optimizer(state, lambda: self._compute_direction(state, closure, params), prior_precision=None)
        copy_values(means, [param.detach() for param in params])
        return loss

    @contextmanager
    def draw(self, state: State, generator: torch.Generator) -> Iterator[nn.Module]:
        """Yield the model with weights from the Gaussian; the caller re-estimates BatchNorm statistics."""
        params, mean = trainable_parameters(state.model), state.statistics["mean"]
        noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
        std = scale_std(self._compute_std(state), self.get_draw_option("scale"))
        with swap_values(params, unflatten(torch.addcmul(mean, std, noise), params)), eval_mode(state.model):
            yield state.model

    def _compute_std(self, state: State) -> Float[Tensor, " params"]:
        return (state.statistics["scale"] * (state.num_data / self._temperature)).rsqrt_()

    def _compute_direction(self, state: State, closure: Closure, params: list[nn.Parameter]) -> Tensor:
        """Update momentum and s, and set `.grad` to the direction of the step. Returns the mean loss."""
        statistics, std = state.statistics, self._compute_std(state)
        mean, scale, decay = statistics["mean"], statistics["scale"], statistics["weight_decay"]
        perturbed, magnitude = torch.zeros_like(mean), torch.zeros_like(mean)
        losses, parts = list[Tensor](), [SubBatch(0, self.num_sub_batches)]
        marks = mark_frozen(list_parameters(state.model))
        for part in parts:  # the first one reports how many there are
            noise = torch.randn_like(mean)
            rng_state = RandomState.capture_devices_of(params)
            # They advance once in a step.
            kept = preserve_buffers(state.model, find_changed(marks)) if part.index else nullcontext()
            with sub_batch(part), kept:
                loss, grad = _compute_gradient(closure, params, torch.addcmul(mean, std, noise))
            kept = preserve_buffers(state.model, find_changed(marks))
            with sub_batch(part), kept, rewind_rng(rng_state):  # the same dropout masks
                _, next_grad = _compute_gradient(closure, params, torch.addcdiv(mean, grad, scale, value=self.rho))
            weight = part.weight or 1.0  # of a closure without sub-batches
            losses.append(loss * weight)
            magnitude.add_(grad.abs_(), alpha=weight)
            perturbed.add_(next_grad, alpha=weight)
            if part.index + 1 < part.num_sub_batches:
                parts.append(SubBatch(part.index + 1, self.num_sub_batches))
        momentum = statistics["momentum"].lerp_(perturbed.addcmul_(mean, decay), 1 - self.beta1)
        direction = momentum / scale
        if self.prior_precision is None:  # the optimizer adds its weight decay
            direction.addcmul_(mean, decay, value=-1)
        scale.lerp_(scale_target(scale, magnitude, decay, self.damping), 1 - self.beta2)
        for param, value in zip(params, unflatten(direction, params), strict=True):
            param.grad = value.to(param.dtype)
        return torch.stack(losses).sum(0)


def _compute_gradient(
    closure: Closure, params: list[nn.Parameter], weights: Float[Tensor, " params"]
) -> tuple[Tensor, Float[Tensor, " params"]]:
    """Loss and gradient at other weights."""
    with swap_values(params, unflatten(weights, params)):
        loss = closure()
    return loss, flatten([dense_gradient(param) for param in params]).to(weights.dtype)


def scale_target(
    scale: Float[Tensor, " params"],
    magnitude: Float[Tensor, " params"],
    weight_decay: Float[Tensor, ""],
    damping: float,
) -> Float[Tensor, " params"]:
    """Return the target of the moving average s: sqrt(scale) magnitude + damping + weight_decay."""
    return (scale.sqrt() * magnitude).add_(weight_decay + damping)
