"""Mean-field variational inference with weight samples (SGVB; Kingma & Welling, ICLR 2014).

    for each step:
        w = mean + std * noise, with std = softplus(raw) and noise ~ N(0, I)
        g = gradient of the mean loss over a batch at w
        mean, raw = optimizer(gradients of [mean loss at w + temperature / num_data * KL(q || prior)])
    draw: mean + std * N(0, I)

For neural networks the method is known as Bayes by backprop (Blundell et al., ICML 2015): q(w) = N(mean, diag(std²))
maximizes the evidence lower bound. A flatness perturbs the sampled weights while their noise is fixed, and the prior
stays outside the maximum. The objective is then that of the variational form of the sharpness-aware posterior (Nguyen
et al., NeurIPS 2023): E_q[max over the ball of L(w + e)] + temperature / num_data KL(q || prior).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from flatbayes.core import Closure, OptimizerFactory, State
from flatbayes.core.buffers import eval_mode
from flatbayes.core.gaussians import invert_softplus
from flatbayes.core.names import check_choice
from flatbayes.core.networks import check_real
from flatbayes.core.parameter_selection import (
    ParameterSelection,
    check_selection,
    find_linear_owner,
    select_parameters,
    split_parameters,
)
from flatbayes.core.tensor_lists import copy_values, flatten_wide, unflatten
from flatbayes.core.weights import swap_values
from flatbayes.posteriors.draw_options import SCALE_OPTIONS, AutoFloat, check_scale, scale_std
from flatbayes.posteriors.optimization import DEFAULT_ADAM, init_state, step_optimizer
from flatbayes.posteriors.posterior import Posterior
from flatbayes.posteriors.prior_precision import PriorPrecision, expand_precisions, resolve_prior_precisions
from flatbayes.posteriors.variational import (
    WeightPrecision,
    average_sample_gradients,
    check_variational_options,
    convert_to_elbo_gradients,
    init_variational_optimizer,
    raw_to_std,
)

PriorMean = Literal["zero", "initial"]
"""Mean of the prior: zero, or the initial weights."""


@dataclass(frozen=True)
class SGVB(Posterior):
    """A Gaussian for every weight, by variational inference.

    Use it for a distribution of every weight and a KL divergence, such as that of a certificate, with time to
    tune.

    The optimizer must have no weight decay, since `prior_precision` is the prior; Adam is the usual choice. Between
    steps the model has the mean weights. Parameters without a distribution have no prior.

    Attributes:
        prior_precision: Precision of the Gaussian prior over parameters with a distribution, 1 / variance: 1 is
            N(0, 1), 100 is N(0, 0.1²). A mapping of name patterns to precisions, such as `{"head.*": 1, "*": 100}`,
            gives one to each group; the first pattern that matches applies. `initial`: the standard deviation of the
            prior of each tensor is the root mean square of its initial values, or 1 / sqrt(fan-in) if these are zero.
        temperature: T in the posterior density p(w) exp(-num_data / T * mean NLL(w)): 1 is the Bayesian posterior,
            below 1 a colder one, narrower and closer to the data. T is the weight of the KL divergence. Large
            networks usually need 0.01 to 0.1.
        initial_std: Initial standard deviation of every weight; the initial means are the weights of the model.
        num_samples: Number of weight samples per step, each with its own gradient (two with SAM). More samples reduce
            the variance of the gradient.
        params: Parameters with a distribution; the other trainable ones are trained as numbers. `weights`: all except
            those of normalization layers (torch.nn: batch, instance, layer, group and RMS norm). `biases`,
            `no_biases`: the biases among these, or the others. `norms`: those of normalization layers. `last_layer`:
            those of the last module with any, in registration order. `all`: all. Or a list of name patterns, such as
            `["head.*", "*.bias"]`.
        prior_mean: Mean of the prior: `zero`, or `initial` for the initial weights, which suits a pretrained network.
        scale: Factor on the covariance of the draws, which training does not depend on; `auto`: chosen on validation
            examples after training, 1 without any. None: `auto` where the number of epochs is automatic, otherwise 1.

    Examples:
        >>> fitted = fit(MLP, data, SGVB(temperature=0.1), SAM(rho=0.1), config)
        >>> fitted.predict(inputs, num_draws=30).mutual_information.shape
        torch.Size([100])
    """

    prior_precision: PriorPrecision = field(default=1.0, hash=False)  # mappings and lists cannot be hashed
    temperature: float = 1.0
    initial_std: float = 0.01
    num_samples: int = 1
    params: ParameterSelection = field(default="weights", hash=False)
    prior_mean: PriorMean = "zero"
    scale: AutoFloat | None = None

    def __post_init__(self) -> None:
        check_variational_options(self.prior_precision, self.temperature, self.initial_std)
        check_scale(self.scale)
        check_selection(self.params, "params")
        if self.num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {self.num_samples}.")
        check_choice("prior_mean", self.prior_mean, PriorMean)

    draw_options = SCALE_OPTIONS
    requires_stationary_loss = "at_end"  # the method minimises a bound
    has_weight_distribution = True  # a Gaussian over each Bayesian weight

    @property
    def gradients_per_step(self) -> float:
        """One for each weight sample."""
        return float(self.num_samples)

    @property
    def default_optimizer(self) -> OptimizerFactory:
        """Adam without weight decay."""
        return DEFAULT_ADAM

    def init(self, model: nn.Module, make_optimizer: OptimizerFactory | None, num_data: int) -> State:
        """Return a state of model, means, raw standard deviations, and an optimizer over both; see `Posterior.init`.

        The parameters of the model are the means that the optimizer updates, so gradient clipping and loss scaling
        apply to them; `mean` in the statistics is a copy, for nested draws.

        Raises:
            ValueError: No parameter has a distribution, a parameter has no prior, or the optimizer has weight decay
                or omits the standard deviations.
        """
        state = init_state(model, None, num_data, None)
        params = select_parameters(model, self.params, "params")
        check_real(params.items(), "SGVB")
        mean = flatten_wide(list(params.values()))
        # The gradient is set by formula. A tensor that requires gradients could not be loaded into.
        raw_scale = nn.Parameter(torch.full_like(mean, invert_softplus(self.initial_std)), requires_grad=False)
        state.statistics = {"mean": mean, "raw_scale": raw_scale}
        if self.prior_mean == "initial":
            state.statistics["prior_mean"] = mean.clone()
        precisions = resolve_prior_precisions(model, params, self.prior_precision)
        if precisions is not None:
            state.statistics["prior_precision"] = expand_precisions(precisions, params).to(mean)
        state.optimizer = init_variational_optimizer(make_optimizer, model, [raw_scale], self.prior_precision)
        return state

    def step(self, state: State, closure: Closure) -> Tensor:
        """Do one step on means and standard deviations. Returns the mean loss of the samples, without the KL term."""
        params, others = split_parameters(state.model, self.params)
        means = unflatten(state.statistics["mean"], params)
        loss = step_optimizer(
            state, lambda: self._compute_gradients(state, closure, params, others, means), prior_precision=None
        )
        copy_values(means, [param.detach() for param in params])
        return loss

    def find_varying_layer(self, state: State) -> nn.Linear | None:
        """Return the layer that `params` selects, if it is one linear layer."""
        return find_linear_owner(state.model, self.params)

    @contextmanager
    def draw(self, state: State, generator: torch.Generator) -> Iterator[nn.Module]:
        """Yield the model with weights from the Gaussian; the caller re-estimates BatchNorm statistics."""
        (params, _), mean = split_parameters(state.model, self.params), state.statistics["mean"]
        noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
        std = scale_std(raw_to_std(state.statistics["raw_scale"]), self.get_draw_option("scale"))
        weights = mean + std * noise
        with swap_values(params, unflatten(weights, params)), eval_mode(state.model):
            yield state.model

    def _get_prior_precision(self, state: State) -> WeightPrecision:
        precision = self.prior_precision
        return state.statistics["prior_precision"] if isinstance(precision, dict | str) else float(precision)

    def _compute_gradients(
        self,
        state: State,
        closure: Closure,
        params: list[nn.Parameter],
        others: list[nn.Parameter],
        means: list[Tensor],
    ) -> Tensor:
        """Set `.grad` of all optimized tensors to the gradient of the objective. Returns the mean loss.

        Args:
            state: The state.
            closure: See `Closure`.
            params: Parameters with a distribution.
            others: The other trainable parameters.
            means: Their means, views of the statistics.
        """
        copy_values(means, [param.detach() for param in params])  # the weights can have changed since the last step
        mean, raw_scale = state.statistics["mean"], state.statistics["raw_scale"]
        raw_scale.grad = None  # gradient clipping within the closure must not see that of the last step
        std = raw_to_std(raw_scale)
        loss, (grad, raw_grad, *other_grads) = average_sample_gradients(
            closure, params, others, mean, std, self.num_samples
        )
        convert_to_elbo_gradients(
            grad,
            raw_grad,
            mean,
            raw_scale,
            std,
            state.statistics.get("prior_mean"),
            self._get_prior_precision(state),
            kl_weight=self.temperature / state.num_data,
        )
        raw_scale.grad = raw_grad
        for param, value in zip(params + others, unflatten(grad, params) + other_grads, strict=True):
            param.grad = value.to(param.dtype)
        return loss
