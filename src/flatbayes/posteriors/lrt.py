"""Variational inference with noise in activations: the local reparameterisation (Kingma et al., NeurIPS 2015).

The objective and the Gaussian are those of `SGVB`, with the gradient estimated from noise that differs between the
examples of a batch, so that it averages out; Flipout (Wen et al., ICLR 2018) is the other way to that end. There are
no drawn weights for a flatness to displace: it moves the means, one displacement for all the noise in a batch, and
so maximises an expectation where `SGVB` takes the expectation of a maximum.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import get_args

import torch
from torch import Tensor, nn

from flatbayes.core import Closure, Examples, LossFn, OptimizerFactory, State
from flatbayes.core.buffers import eval_mode
from flatbayes.core.context import weight_distribution
from flatbayes.core.weights import swap_values, trainable_parameters
from flatbayes.posteriors.optimization import DEFAULT_ADAM, init_state, step_optimizer
from flatbayes.posteriors.posterior import Posterior
from flatbayes.posteriors.prior_precision import PriorPrecision, check_prior_precision_spec, resolve_prior_precisions
from flatbayes.posteriors.variational import (
    MIN_STD,
    add_kl_gradients,
    check_variational_optimizer,
    raw_to_std,
    std_to_raw,
)
from flatbayes.posteriors.variational_layers import NoiseEstimator, SoftplusScale
from flatbayes.posteriors.variational_network import (
    bayesian_parameters,
    hold_means,
    inject_noise,
    make_variational_network,
)


@dataclass(frozen=True)
class LRT(Posterior):
    """A Gaussian with a mean and a standard deviation for every weight, fitted with noise in activations.

    For models whose weights are in layers of type torch.nn.Linear, Conv1d, Conv2d and Conv3d, weights and biases of
    which have a distribution; `SGVB` takes any model. Other trainable parameters, such as those of normalisation
    layers, are learnt as numbers and have no prior. Needs an optimizer without weight decay, since the prior is given
    here; Adam is the usual choice. The state's model is a copy of the one given, and between steps the mean network.

    Attributes:
        prior_precision: Precision of the Gaussian prior over weights and biases, 1 / (its standard deviation)²: 1 is
            N(0, 1), 100 is N(0, 0.1²). A mapping of name patterns to precisions, such as `{"head.*": 1, "*": 100}`,
            gives groups their own, the first pattern that matches deciding. `initial` takes for each tensor the root
            mean square of the values it starts with as the standard deviation, or where these are all zero
            1 / sqrt(fan-in) of its layer.
        temperature: Weight of the KL divergence from the prior. 1 is Bayes; below 1 is a cold posterior, narrower
            and closer to the data, which large networks usually need (0.01 to 0.1).
        initial_std: Standard deviation of every weight at the start; the means start at the weights the model comes
            with.
        estimator: Noise of training. `local` samples every activation on its own; `flipout` samples weights once a
            batch and gives each example random signs, and keeps the positions of a convolution correlated.
    """

    prior_precision: PriorPrecision = field(default=1.0, hash=False)  # a mapping cannot be hashed
    temperature: float = 1.0
    initial_std: float = 0.01
    estimator: NoiseEstimator = "local"

    def __post_init__(self) -> None:
        check_prior_precision_spec(self.prior_precision)
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be positive and finite, got {self.temperature}.")
        if not MIN_STD <= self.initial_std < math.inf:
            raise ValueError(f"initial_std must be finite and at least {MIN_STD}, got {self.initial_std}.")
        if self.estimator not in get_args(NoiseEstimator):
            raise ValueError(f"estimator must be {' or '.join(get_args(NoiseEstimator))}, got {self.estimator!r}.")

    num_members = 1
    stochastic = True  # each draw has weights of its own
    needs_norm_reestimation = True  # running statistics of training are those of noisy activations
    requires_stationary_loss = "finally"  # what is minimised is a bound
    shardable = False  # noise is drawn in the shape of whole parameters
    snapshot_requirements = (0, 0)

    @property
    def default_optimizer(self) -> OptimizerFactory:
        """Adam, without weight decay."""
        return DEFAULT_ADAM

    def init(self, model: nn.Module, make_optimizer: OptimizerFactory | None, num_data: int) -> State:
        """A copy of the model with variational layers, raw standard deviations, and an optimiser over all of it.

        The names of parameters stay as they are, so weights can be exchanged with the model that was given.

        Raises:
            ValueError: The model has layers that noise cannot be given to, or none that it can, or a parameter has
                no prior, or the optimiser has weight decay or leaves out what it is given.
        """
        init_state(model, None, num_data, None)  # refuses what no method can train
        network = make_variational_network(model)
        state = State(network, None, num_data)
        raw = std_to_raw(self.initial_std)
        # Layers hand them their gradients; a tensor that requires one could not be loaded into.
        params = bayesian_parameters(network)
        scales = {
            name: nn.Parameter(torch.full_like(param, raw), requires_grad=False) for name, param in params.items()
        }
        state.statistics = {raw_scale_key(name): scale for name, scale in scales.items()}
        precisions = resolve_prior_precisions(network, params, self.prior_precision) or {}
        state.statistics |= {prior_precision_key(n): params[n].new_tensor(value) for n, value in precisions.items()}
        if make_optimizer is not None:
            state.optimizer = make_optimizer([*trainable_parameters(network), *scales.values()])
            check_variational_optimizer(state.optimizer, list(scales.values()), self.prior_precision)
        return state

    def step(self, state: State, closure: Closure) -> Tensor:
        """One step on means and standard deviations, the model being in training mode. Returns the loss without KL.

        The closure may zero gradients through the optimiser or the module: where those of a layer's means are
        zeroed, those of its standard deviations are too.

        Raises:
            RuntimeError: Weights were used, but without noise.
        """
        return step_optimizer(state, lambda: self._compute_gradients(state, closure), prior_precision=None)

    def collect(self, state: State) -> None:
        """Nothing: the end of training is what counts."""

    def finalize(self, state: State, examples: Examples, loss_fn: LossFn) -> None:
        """Nothing: no last look at the data is needed."""

    @contextmanager
    def draw(self, state: State, generator: torch.Generator) -> Iterator[nn.Module]:
        """The model with weights from the Gaussian, the same for all examples.

        Running statistics are the caller's to re-estimate.
        """
        params, weights = _get_random_parameters(state), []
        with hold_means(state.model) as means:
            for mean, raw in ((means[name], state.statistics[raw_scale_key(name)]) for name in params):
                noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
                weights.append(mean + raw_to_std(raw) * noise)
            with swap_values(list(params.values()), weights), eval_mode(state.model):
                yield state.model

    def _compute_gradients(self, state: State, closure: Closure) -> Tensor:
        """Leave the gradient of the objective in `.grad` of everything that is optimised."""
        drawn = _get_random_parameters(state)
        scales = {
            param: SoftplusScale.from_raw(state.statistics[raw_scale_key(name)]) for name, param in drawn.items()
        }
        learnt = {name: param for name, param in drawn.items() if param.requires_grad}
        params, learnt_scales = list(learnt.values()), [scales[param] for param in learnt.values()]
        for scale in learnt_scales:
            scale.raw.grad = None
        means, stds = [param.detach() for param in params], [scale.std for scale in learnt_scales]
        with weight_distribution(params, means, stds), inject_noise(state.model, self.estimator, scales):
            loss = closure()
        for (name, param), scale in zip(learnt.items(), learnt_scales, strict=True):
            if scale.raw.grad is None and param.grad is not None and bool(param.grad.any()):
                raise RuntimeError(
                    f"{name} has a gradient that did not pass through the noise of its layer. Is the layer in eval "
                    "mode? Then call train() on the state's model before training. Does the model read the weights "
                    "of the layer instead of calling it? Then use SGVB."
                )
        accumulate_kl_gradients(
            params, learnt_scales, self._get_prior_precisions(state, learnt), self.temperature / state.num_data
        )
        return loss

    def _get_prior_precisions(self, state: State, names: Iterable[str]) -> float | list[Tensor]:
        given = self.prior_precision
        if isinstance(given, dict | str):
            return [state.statistics[prior_precision_key(name)] for name in names]
        return float(given)


def accumulate_kl_gradients(
    means: Sequence[nn.Parameter],
    scales: Sequence[SoftplusScale],
    prior_precision: float | list[Tensor],
    kl_weight: float,
) -> None:
    """Add `kl_weight` times the gradient of KL(q || prior) to `.grad` of the means and raw standard deviations.

    Without a gradient from the loss they get this one alone, which takes them to the prior.

    Args:
        means: Means of q.
        scales: Standard deviations of q, as they were in the passes that gradients are from.
        prior_precision: Precision of the prior, which has mean zero: one number, or one tensor for each of the means.
        kl_weight: Weight of the KL divergence beside a loss that is a mean over examples.
    """
    raws, stds = [scale.raw for scale in scales], [scale.std for scale in scales]
    for mean, raw in zip(means, raws, strict=True):
        if mean.grad is None:
            raw.grad = None  # of a pass before the last, which did not come here
    std_grads = [torch.zeros_like(std) for std in stds]
    values = [mean.detach() for mean in means]
    add_kl_gradients(_ensure_gradients(means), std_grads, values, stds, prior_precision, kl_weight)
    torch._foreach_addcmul_(_ensure_gradients(raws), std_grads, [scale.slope for scale in scales])


def _ensure_gradients(tensors: Sequence[Tensor]) -> list[Tensor]:
    for tensor in tensors:
        tensor.grad = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
    return [tensor.grad for tensor in tensors if tensor.grad is not None]


def raw_scale_key(name: str) -> str:
    """Under what name the raw standard deviations of a parameter are kept."""
    return f"raw_scale.{name}"


def prior_precision_key(name: str) -> str:
    """Under what name the precision of a parameter's prior is kept, where parameters differ in it."""
    return f"prior_precision.{name}"


def _get_random_parameters(state: State) -> dict[str, nn.Parameter]:
    return {name: p for name, p in state.model.named_parameters() if raw_scale_key(name) in state.statistics}
