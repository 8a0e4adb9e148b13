"""Improved variational online Newton (IVON; Shen et al., ICML 2024, Algorithm 1).

    q = N(mean, diag(1 / (N (h + d)))) with N = num_data / temperature and d = prior_precision / N
    for each step t:
        std = 1 / sqrt(N (h + d)); w = mean + std * noise, with noise ~ N(0, I)
        g = gradient of the mean loss over a batch at w
        curvature = g * noise / std
        h = h + (1 - beta2) (curvature - h) + (1 - beta2)² (h - curvature)² / (2 (h + d))
        momentum = beta1 * momentum + (1 - beta1) * g
        mean = mean - lr * (h0 + d) * (momentum / (1 - beta1^t) + d * mean) / (h + d)
    draw: mean + std * N(0, I)

By Price's theorem E[g * noise / std] is the expected diagonal of the Hessian, so that the step is a natural-gradient
step of variational inference, at the cost of Adam. It needs no second backward pass, and the term with (1 - beta2)²
keeps h + d positive.

With a flatness, g is the gradient at perturbed weights in both places. The identity holds for that loss too, so the
fixed point is the optimum of the variational form of the sharpness-aware posterior (Nguyen et al., NeurIPS 2023),
E_q[max over the ball of L(w + e)] + KL(q || prior) / N, as for `SGVB`: exactly where the gradient of one step of SAM
is that of the maximum, and else to first order in the radius.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flatbayes.core import Closure, OptimizerFactory, State
from flatbayes.core.buffers import eval_mode
from flatbayes.core.names import check_choice
from flatbayes.core.networks import check_materialized, check_real
from flatbayes.core.parameter_selection import (
    ParameterSelection,
    check_selection,
    find_linear_owner,
    split_parameters,
)
from flatbayes.core.tensor_lists import copy_values, flatten, flatten_wide, unflatten
from flatbayes.core.weights import swap_values
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
from flatbayes.posteriors.variational import average_sample_gradients

HessianEstimator = Literal["price", "gradsq"]
"""Estimate of the curvature: Price's theorem, or squared gradients."""


@dataclass(frozen=True)
class IVON(TemperedPosterior):
    """A Gaussian for every weight, by natural-gradient steps.

    Use it for variational inference at the cost of one gradient a step and no second parameter vector to train.

    The optimizer must be torch.optim.SGD without momentum: momentum and step sizes are those of IVON, and the
    learning rate is that of SGD with momentum times about two. Between steps the model has the mean weights.

    The Hessian has a memory of 1 / (1 - beta2) steps. In a training with fewer steps it stays near `initial_hessian`,
    which is then a size of steps and noise that is the same for all weights. A shorter memory suits data that
    determine the weights: where a network fits its training data, the curvature is near zero, steps and noise grow
    with its inverse, and predictions get worse unless `clip_radius` or a larger prior precision bounds them.

    Attributes:
        prior_precision: Precision of a Gaussian prior over all trainable weights. None: the optimizer's weight decay
            is the prior, with weight_decay = temperature * prior_precision / num_data.
        temperature: T in the posterior density p(w) exp(-num_data / T * mean NLL(w)): 1 is the Bayesian posterior,
            below 1 a colder one. num_data / T is the effective sample size (`ess`) of the authors' code. None: 0.1
            for a trained network and an automatic number of epochs, since more noise destroys its weights; else 1.
        initial_hessian: h0, the initial value of every h, in units of the mean loss. Initial standard deviations are
            1 / sqrt(num_data / T * (h0 + weight decay)).
        beta1: Decay of the momentum.
        beta2: Decay of the Hessian. The default is that of the authors, for about 1e5 steps. With 1,000 steps or more
            1 - 10 / steps remembers a tenth of the training; with fewer, so noisy a Hessian predicts worse than h0.
        num_samples: Number of weight samples per step, each with its own gradient (two with SAM).
        hessian_estimator: `price`: the gradient times noise / std, which is unbiased for the expected Hessian.
            `gradsq`: num_data / T times the squared gradient of the batch. It is not on the scale of the Hessian,
            but has less variance.
        rescale_lr: Multiply the learning rate by h0 + weight decay, so that first steps are those of SGD.
        clip_radius: Largest change of a weight per step, in units of the learning rate; None does not clip. The
            authors' code clips before it rescales: its radius is this one divided by h0 + weight decay.
        params: Parameters with a distribution; the other trainable ones are trained with h = h0 and without noise.
            `weights`: all except those of normalization layers (torch.nn: batch, instance, layer, group and RMS
            norm). `biases`, `no_biases`: the biases among these, or the others. `norms`: those of normalization
            layers. `last_layer`: those of the last module with any, in registration order. `all`: all. Or a list of
            name patterns, such as `["head.*", "*.bias"]`.
        scale: Factor on the covariance of the draws, which training does not depend on; `auto`: chosen on validation
            examples after training, 1 without any. None: `auto` where the number of epochs is automatic, otherwise 1.

    Examples:
        >>> fitted = fit(MLP, data, IVON(beta2=0.999), SAM(rho=0.1), config)
        >>> fitted.predict(inputs, num_draws=30).mutual_information.shape
        torch.Size([100])
    """

    prior_precision: float | None = None
    temperature: float | None = None
    initial_hessian: float = 0.5
    beta1: float = 0.9
    beta2: float = 0.99999
    num_samples: int = 1
    hessian_estimator: HessianEstimator = "price"
    rescale_lr: bool = True
    clip_radius: float | None = None
    params: ParameterSelection = field(default="all", hash=False)  # a list cannot be hashed
    scale: AutoFloat | None = None

    def __post_init__(self) -> None:
        check_prior_precision(self.prior_precision)
        check_temperature(self._temperature)
        check_selection(self.params, "params")
        check_scale(self.scale)
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}.")
        for name in ("initial_hessian", "clip_radius"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {value}.")
        if self.num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {self.num_samples}.")
        check_choice("hessian_estimator", self.hessian_estimator, HessianEstimator)

    fine_tuning_temperature = 0.1  # the noise of a higher one destroys trained weights
    draw_options = SCALE_OPTIONS
    requires_stationary_loss = "at_end"  # the method minimises a bound
    has_weight_distribution = True
    tolerates_skipped_steps = False  # momentum and h would keep the gradient that is not finite

    @property
    def gradients_per_step(self) -> float:
        """One for each weight sample."""
        return float(self.num_samples)

    @property
    def default_optimizer(self) -> OptimizerFactory:
        """SGD with the learning rate and weight decay that the authors use for convolutional networks."""
        return default_sgd(self.prior_precision, lr=0.2, momentum=0.0, weight_decay=2e-4)

    def init(self, model: nn.Module, make_optimizer: OptimizerFactory | None, num_data: int) -> State:
        """Return a state of model, optimizer, means, Hessian, momentum and number of steps; see `Posterior.init`.

        The parameters of the model are the means that the optimizer updates; `mean` in the statistics is a copy, for
        nested draws.

        Raises:
            ValueError: No parameter has a distribution, the optimizer is not SGD without momentum, the prior is given
                twice, or weight decays differ.
        """
        check_materialized(model)
        check_real(model.named_parameters(), "IVON")
        state = init_state(model, make_optimizer, num_data, self.prior_precision)
        check_plain_sgd(
            state.optimizer, "IVON", "has its own momentum and step sizes", "the momentum of IVON is beta1"
        )
        params, others = split_parameters(model, self.params)
        mean = flatten_wide(params)
        state.statistics = {
            "mean": mean,
            "hessian": torch.full_like(mean, self.initial_hessian),
            "momentum": mean.new_zeros(sum(param.numel() for param in [*params, *others])),
            "weight_decay": mean.new_tensor(
                resolve_weight_decay(state, self.prior_precision, self._temperature, "IVON")
            ),
            "step": torch.zeros((), dtype=torch.int64, device="cpu"),  # read without waiting for a device
        }
        state.cpu_statistics = frozenset({"step"})
        return state

    def step(self, state: State, closure: Closure) -> Tensor:
        """Do one step on means and Hessian. Returns the mean loss of the samples, without the KL term."""
        params, others = split_parameters(state.model, self.params)
        copy_values(
            unflatten(state.statistics["mean"], params), [param.detach() for param in params]
        )  # the weights can have changed since the last step
        loss = step_optimizer(
            state, lambda: self._compute_direction(state, closure, params, others), prior_precision=None
        )
        copy_values(unflatten(state.statistics["mean"], params), [param.detach() for param in params])
        return loss

    def find_varying_layer(self, state: State) -> nn.Linear | None:
        """Return the layer that `params` selects, if it is one linear layer."""
        return find_linear_owner(state.model, self.params)

    @contextmanager
    def draw(self, state: State, generator: torch.Generator) -> Iterator[nn.Module]:
        """Yield the model with weights from the Gaussian; the caller re-estimates BatchNorm statistics."""
        (params, _), mean = split_parameters(state.model, self.params), state.statistics["mean"]
        noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
        std = scale_std(self._compute_std(state), self.get_draw_option("scale"))
        weights = torch.addcmul(mean, std, noise)
        with swap_values(params, unflatten(weights, params)), eval_mode(state.model):
            yield state.model

    def _compute_std(self, state: State) -> Float[Tensor, " params"]:
        statistics, sample_size = state.statistics, state.num_data / self._temperature
        return gaussian_std(statistics["hessian"], statistics["weight_decay"], sample_size)

    def _compute_direction(
        self, state: State, closure: Closure, params: list[nn.Parameter], others: list[nn.Parameter]
    ) -> Tensor:
        """Update Hessian and momentum, and set `.grad` to the direction of the step. Returns the mean loss.

        Args:
            state: The state.
            closure: See `Closure`.
            params: Parameters with a distribution.
            others: The other trainable parameters.
        """
        statistics, std = state.statistics, self._compute_std(state)
        mean, hessian, decay = statistics["mean"], statistics["hessian"], statistics["weight_decay"]
        is_squared = self.hessian_estimator == "gradsq"
        loss, (grad, curvature, *other_grads) = average_sample_gradients(
            closure, params, others, mean, std, self.num_samples, squared=is_squared
        )
        curvature = curvature.mul_(state.num_data / self._temperature) if is_squared else curvature.div_(std)
        update_hessian(hessian, curvature, decay, self.beta2)
        weights = mean
        if others:
            grad, weights = (torch.cat([x, flatten(y)]) for x, y in ((grad, other_grads), (mean, others)))
            hessian = torch.cat([hessian, hessian.new_full((len(grad) - len(mean),), self.initial_hessian)])
        momentum = statistics["momentum"].lerp_(grad, 1 - self.beta1)
        direction = newton_direction(
            momentum, weights, hessian, decay, bias_correction=1 - self.beta1 ** int(statistics["step"].add_(1))
        )
        if self.rescale_lr:
            direction.mul_(decay + self.initial_hessian)
        if self.clip_radius is not None:
            direction.clamp_(-self.clip_radius, self.clip_radius)
        if self.prior_precision is None:  # the optimizer adds its weight decay
            direction.addcmul_(weights, decay, value=-1)
        for param, value in zip(params + others, unflatten(direction, params + others), strict=True):
            param.grad = value.to(param.dtype)
        return loss


def gaussian_std(
    hessian: Float[Tensor, " params"], weight_decay: Float[Tensor, ""], sample_size: float
) -> Float[Tensor, " params"]:
    """Return the standard deviations 1 / sqrt(sample_size (hessian + weight_decay)) of q.

    The Hessian is that of the mean loss; the sample size is the number of examples divided by the temperature.
    """
    return (hessian + weight_decay).mul_(sample_size).rsqrt_()


def update_hessian(
    hessian: Float[Tensor, " params"],
    curvature: Float[Tensor, " params"],
    weight_decay: Float[Tensor, ""],
    beta2: float,
) -> None:
    """Move `hessian` towards an estimate of the curvature, in place; h + d stays positive (Lin et al., ICML 2020).

    With r = 1 - beta2 and x = (curvature - h) / (h + d), the new h + d is the old one times 1 + r x + (r x)² / 2,
    which is at least one half, for any curvature. Here h is `hessian` and d `weight_decay`; `curvature` is
    overwritten.
    """
    step = curvature.sub_(hessian).mul_(1 - beta2)
    correction = torch.square(step).div_(hessian + weight_decay)
    hessian.add_(step).add_(correction, alpha=0.5)


def newton_direction(
    momentum: Float[Tensor, " params"],
    weights: Float[Tensor, " params"],
    hessian: Float[Tensor, " params"],
    weight_decay: Float[Tensor, ""],
    bias_correction: float,
) -> Float[Tensor, " params"]:
    """Return (momentum / bias_correction + d w) / (h + d), the gradient of loss and prior over the curvature.

    Args:
        momentum: Average of gradients of the mean loss.
        weights: w.
        hessian: h, the Hessian of the mean loss.
        weight_decay: d.
        bias_correction: 1 - beta1^t after t steps, which makes the average one of t gradients, not of zeros.
    """
    return (momentum / bias_correction).addcmul_(weights, weight_decay).div_(hessian + weight_decay)
