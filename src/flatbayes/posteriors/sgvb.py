"""SGVB, mean-field variational inference by stochastic gradients (Kingma & Welling, ICLR 2014).

For neural networks known as Bayes by backprop (Blundell et al., ICML 2015): the posterior is approximated by the
factorised Gaussian that maximises the evidence lower bound, and every step asks for the gradient at weights drawn
from it, w = mean + std * noise. A flatness displaces the drawn weights, with their noise held, and the prior stays
outside the maximum; so with it the objective is that of the sharpness-aware posterior's variational form (Nguyen et
al., NeurIPS 2023): E_q[max over the ball of L(w + e)] + temperature / num_data KL(q || prior).
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from flatbayes.core import Closure, Examples, LossFn, OptimizerFactory, State
from flatbayes.core.buffers import eval_mode
from flatbayes.core.context import weight_distribution
from flatbayes.core.parameter_selection import ParameterSelection, check_selection, select_parameters
from flatbayes.core.weights import flatten, swap_values, trainable_parameters, unflatten
from flatbayes.posteriors.optimization import DEFAULT_ADAM, init_state, step_optimizer
from flatbayes.posteriors.posterior import Posterior
from flatbayes.posteriors.prior_precision import (
    PriorPrecision,
    check_prior_precision_spec,
    expand_precisions,
    resolve_prior_precisions,
)
from flatbayes.posteriors.variational import (
    MIN_STD,
    WeightPrecision,
    check_variational_optimizer,
    convert_to_elbo_gradients,
    raw_to_std,
    std_to_raw,
)

PriorMean = Literal["zero", "initial"]
"""Where the prior is centred."""


@dataclass(frozen=True)
class SGVB(Posterior):
    """A Gaussian with a mean and a standard deviation for every weight, fitted by variational inference.

    Needs an optimizer without weight decay, since the prior is given here; Adam is the usual choice. Between steps
    the model is the mean network. Parameters without a distribution have no prior.

    Attributes:
        prior_precision: Precision of the Gaussian prior over the Bayesian parameters, 1 / (its standard
            deviation)²: 1 is N(0, 1), 100 is N(0, 0.1²). A mapping of name patterns to precisions, such as
            `{"head.*": 1, "*": 100}`, gives groups their own, the first pattern that matches deciding. `initial`
            takes for each tensor the root mean square of the values it starts with as the standard deviation, or
            where these are all zero 1 / sqrt(fan-in) of its layer.
        temperature: Weight of the KL divergence from the prior. 1 is Bayes; below 1 is a cold posterior, narrower
            and closer to the data, which large networks usually need (0.01 to 0.1).
        initial_std: Standard deviation of every Bayesian parameter at the start; the means start at the weights the
            model comes with.
        num_samples: Weights drawn per step, each at the cost of a gradient (two with SAM). More make the gradient
            less noisy.
        params: Which trainable parameters have a distribution, the others being learnt as numbers: `weights` all
            but those of normalisation layers (of torch.nn: batch, instance, layer, group and RMS norm); `biases`
            and `no_biases` one half of these each; `norms` those of normalisation layers; `last_layer` those of
            the last module that has any, in the order of registration; `all` every one; or a list of name
            patterns, such as `["head.*", "*.bias"]`.
        prior_mean: Where the prior is centred: `zero`, or `initial` for the weights that the model comes with, as
            suits a pretrained network.
    """

    prior_precision: PriorPrecision = field(default=1.0, hash=False)  # mappings and lists cannot be hashed
    temperature: float = 1.0
    initial_std: float = 0.01
    num_samples: int = 1
    params: ParameterSelection = field(default="weights", hash=False)
    prior_mean: PriorMean = "zero"

    def __post_init__(self) -> None:
        check_prior_precision_spec(self.prior_precision)
        check_selection(self.params, "params")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be positive and finite, got {self.temperature}.")
        if not MIN_STD <= self.initial_std < math.inf:
            raise ValueError(f"initial_std must be finite and at least {MIN_STD}, got {self.initial_std}.")
        if self.num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {self.num_samples}.")
        if self.prior_mean not in get_args(PriorMean):
            raise ValueError(f"prior_mean must be {' or '.join(get_args(PriorMean))}, got {self.prior_mean!r}.")

    num_members = 1
    stochastic = True  # each draw has noise of its own
    needs_norm_reestimation = True  # running statistics of training mix those of all the networks it drew
    requires_stationary_loss = "finally"  # what is minimised is a bound
    shardable = False  # noise is drawn in the shape of whole parameters
    snapshot_requirements = (0, 0)

    @property
    def default_optimizer(self) -> OptimizerFactory:
        """Adam, without weight decay."""
        return DEFAULT_ADAM

    def init(self, model: nn.Module, make_optimizer: OptimizerFactory | None, num_data: int) -> State:
        """Model, means and raw standard deviations, and an optimiser over the parameters and the latter.

        The model's own parameters are the means that the optimiser moves, so whatever acts on their gradients
        (clipping, a loss scaler) acts here; `mean` in the statistics is a copy, for draws within draws.

        Raises:
            ValueError: No parameter is Bayesian, or one has no prior, or the optimiser has weight decay or leaves
                out what it is given.
        """
        state = init_state(model, None, num_data, None)
        params = select_parameters(model, self.params, "params")
        mean = flatten(list(params.values()))
        # It gets its gradient by formula; a tensor that requires one could not be loaded into.
        raw_scale = nn.Parameter(torch.full_like(mean, std_to_raw(self.initial_std)), requires_grad=False)
        state.statistics = {"mean": mean, "raw_scale": raw_scale}
        if self.prior_mean == "initial":
            state.statistics["prior_mean"] = mean.clone()
        precisions = resolve_prior_precisions(model, params, self.prior_precision)
        if precisions is not None:
            state.statistics["prior_precision"] = expand_precisions(precisions, params)
        if make_optimizer is not None:
            state.optimizer = make_optimizer([*trainable_parameters(model), raw_scale])
            check_variational_optimizer(state.optimizer, [raw_scale], self.prior_precision)
        return state

    def step(self, state: State, closure: Closure) -> Tensor:
        """One step on means and standard deviations. Returns the mean loss of the drawn networks, without the KL."""
        params = self._get_random_parameters(state)
        means = unflatten(state.statistics["mean"], params)
        loss = step_optimizer(
            state, lambda: self._compute_gradients(state, closure, params, means), prior_precision=None
        )
        copy_into_buffers(means, params)
        return loss

    def collect(self, state: State) -> None:
        """Nothing: the end of training is what counts."""

    def finalize(self, state: State, examples: Examples, loss_fn: LossFn) -> None:
        """Nothing: no last look at the data is needed."""

    @contextmanager
    def draw(self, state: State, generator: torch.Generator) -> Iterator[nn.Module]:
        """The model with weights from the Gaussian; running statistics are the caller's to re-estimate."""
        params, mean = self._get_random_parameters(state), state.statistics["mean"]
        noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
        weights = mean + raw_to_std(state.statistics["raw_scale"]) * noise
        with swap_values(params, unflatten(weights, params)), eval_mode(state.model):
            yield state.model

    def _get_random_parameters(self, state: State) -> list[nn.Parameter]:
        return list(select_parameters(state.model, self.params, "params").values())

    def _get_prior_precision(self, state: State) -> WeightPrecision:
        given = self.prior_precision
        return state.statistics["prior_precision"] if isinstance(given, dict | str) else float(given)

    def _compute_gradients(
        self, state: State, closure: Closure, params: list[nn.Parameter], means: list[Tensor]
    ) -> Tensor:
        """Leave in `.grad` of everything that is optimised the gradient of the objective, averaged over samples."""
        copy_into_buffers(means, params)  # whoever has the model may have changed it since the last step
        chosen = {id(param) for param in params}
        others = [param for param in trainable_parameters(state.model) if id(param) not in chosen]
        mean, raw_scale = state.statistics["mean"], state.statistics["raw_scale"]
        std = raw_to_std(raw_scale)
        stds = unflatten(std, params)
        raw_scale.grad = None  # or clipping within the closure would see that of the last step
        losses: list[Tensor] = []
        totals: tuple[Tensor, ...] = ()
        for _ in range(self.num_samples):
            noise = torch.randn_like(mean)
            found = torch.addcmul(mean, std, noise)
            pieces = unflatten(found, params)
            with swap_values(params, pieces), weight_distribution(params, means, stds):
                losses.append(closure())
            copy_into_buffers(
                pieces, _get_gradients(params)
            )  # the model has its copy of the weights: their place is free
            sampled = (found, noise.mul_(found), *(grad.clone() for grad in _get_gradients(others)))
            if totals:
                torch._foreach_add_(totals, sampled)
            else:
                totals = sampled
        if self.num_samples > 1:
            torch._foreach_mul_(totals, 1 / self.num_samples)
        grad, raw_grad, *others_grads = totals
        prior_mean, kl_weight = state.statistics.get("prior_mean"), self.temperature / state.num_data
        convert_to_elbo_gradients(
            grad, raw_grad, mean, raw_scale, std, prior_mean, self._get_prior_precision(state), kl_weight
        )
        raw_scale.grad = raw_grad
        for param, value in zip(params + others, unflatten(grad, params) + others_grads, strict=True):
            param.grad = value.to(param.dtype)
        return losses[0] if self.num_samples == 1 else torch.stack(losses).mean()


def copy_into_buffers(tensors: list[Tensor], values: Sequence[Tensor]) -> None:
    """Overwrite tensors with the values of others."""
    torch._foreach_copy_(tensors, [value.detach() for value in values])


def _get_gradients(params: Sequence[nn.Parameter]) -> list[Tensor]:
    return [torch.zeros_like(param) if param.grad is None else param.grad for param in params]
