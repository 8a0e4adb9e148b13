"""Mean-field variational inference with activation samples: the local reparameterization trick (LRT) and Flipout.

    for each step:
        forward pass: each layer returns x W + b + sqrt(x² std_W² + std_b²) * N(0, I), with std = softplus(raw)
        mean, raw = optimizer(gradients of [mean loss + temperature / num_data * KL(q || prior)])
    draw: mean + std * N(0, I), the same weights for all examples

Objective and Gaussian are those of `SGVB`. The gradient has less variance, since the noise differs between the
examples of a batch (Kingma et al., NeurIPS 2015; Flipout: Wen et al., ICLR 2018). There is no weight sample for a
flatness to perturb: it perturbs the means, with one perturbation for all noise of a batch, and so maximizes an
expectation, where `SGVB` takes the expectation of a maximum.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from flatbayes.core import Closure, OptimizerFactory, State
from flatbayes.core.buffers import eval_mode
from flatbayes.core.gaussians import invert_softplus, weight_distribution
from flatbayes.core.names import check_choice
from flatbayes.core.tensor_lists import widen, zero_tensors
from flatbayes.core.weights import swap_values
from flatbayes.posteriors.draw_options import SCALE_OPTIONS, AutoFloat, check_scale, scale_std
from flatbayes.posteriors.optimization import DEFAULT_ADAM, init_state, step_optimizer
from flatbayes.posteriors.posterior import Posterior
from flatbayes.posteriors.prior_precision import PriorPrecision, resolve_prior_precisions
from flatbayes.posteriors.variational import (
    add_kl_gradients,
    check_variational_options,
    init_variational_optimizer,
    raw_to_std,
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
    """A Gaussian for every weight, with noise in activations.

    Use it in place of `SGVB` where the layers are linear or convolutional: its gradients have less noise.

    For models whose weights are in layers of type torch.nn.Linear, Conv1d, Conv2d and Conv3d; weights and biases of
    these layers have a distribution. `SGVB` supports any model. Other trainable parameters, such as those of
    normalization layers, are trained as numbers and have no prior. The optimizer must have no weight decay, since
    `prior_precision` is the prior; Adam is the usual choice. The model of the state is a copy of the given one, and
    has the mean weights between steps.

    Attributes:
        prior_precision: Precision of the Gaussian prior over weights and biases, 1 / variance: 1 is N(0, 1), 100 is
            N(0, 0.1²). A mapping of name patterns to precisions, such as `{"head.*": 1, "*": 100}`, gives one to each
            group; the first pattern that matches applies. `initial`: the standard deviation of the prior of each
            tensor is the root mean square of its initial values, or 1 / sqrt(fan-in) if these are zero.
        temperature: T in the posterior density p(w) exp(-num_data / T * mean NLL(w)): 1 is the Bayesian posterior,
            below 1 a colder one, narrower and closer to the data. T is the weight of the KL divergence. Large
            networks usually need 0.01 to 0.1.
        initial_std: Initial standard deviation of every weight; the initial means are the weights of the model.
        estimator: Noise in training. `local` samples every activation independently. `flipout` samples weights once
            per batch and gives each example random signs, so that positions of a convolution stay correlated;
            `token_flipout` gives signs to each position of a linear layer.
        scale: Factor on the covariance of the draws, which training does not depend on; `auto`: chosen on validation
            examples after training, 1 without any. None: `auto` where the number of epochs is automatic, otherwise 1.

    Examples:
        >>> fitted = fit(MLP, data, LRT(temperature=0.1), SAM(rho=0.1), config)
        >>> fitted.predict(inputs, num_draws=30).mutual_information.shape
        torch.Size([100])
    """

    prior_precision: PriorPrecision = field(default=1.0, hash=False)  # a mapping cannot be hashed
    temperature: float = 1.0
    initial_std: float = 0.01
    estimator: NoiseEstimator = "local"
    scale: AutoFloat | None = None

    def __post_init__(self) -> None:
        check_variational_options(self.prior_precision, self.temperature, self.initial_std)
        check_scale(self.scale)
        check_choice("estimator", self.estimator, NoiseEstimator)

    draw_options = SCALE_OPTIONS
    requires_stationary_loss = "at_end"  # the method minimises a bound
    has_weight_distribution = True  # a Gaussian over each Bayesian weight

    @property
    def default_optimizer(self) -> OptimizerFactory:
        """Adam without weight decay."""
        return DEFAULT_ADAM

    def init(self, model: nn.Module, make_optimizer: OptimizerFactory | None, num_data: int) -> State:
        """Return a state of a variational copy of the model, raw standard deviations, and an optimizer over both.

        Parameter names are unchanged, so weights can be exchanged with the given model. See `Posterior.init`.

        Raises:
            ValueError: The model has unsupported layers or no supported ones, a parameter has no prior, or the
                optimizer has weight decay or omits the standard deviations.
        """
        init_state(model, None, num_data, None)  # validates the model and num_data
        network = make_variational_network(model)
        state = State(network, None, num_data)
        raw = invert_softplus(self.initial_std)
        # The layers set the gradients. A tensor that requires gradients could not be loaded into.
        params = bayesian_parameters(network)
        values = {name: torch.full_like(p, raw, dtype=widen(p.dtype)) for name, p in params.items()}
        scales = {name: nn.Parameter(value, requires_grad=False) for name, value in values.items()}
        state.statistics = {raw_scale_key(name): scale for name, scale in scales.items()}
        precisions = resolve_prior_precisions(network, params, self.prior_precision) or {}
        for name, precision in precisions.items():
            state.statistics[prior_precision_key(name)] = scales[name].new_tensor(precision)
        state.optimizer = init_variational_optimizer(
            make_optimizer, network, list(scales.values()), self.prior_precision
        )
        return state

    def step(self, state: State, closure: Closure) -> Tensor:
        """Do one step on means and standard deviations, with the model in training mode.

        The closure may zero gradients through the optimizer or the module: when the gradients of the means of a layer
        are zeroed, those of its standard deviations are too.

        Returns:
            The loss of the batch, without the KL term.

        Raises:
            RuntimeError: Weights were used without noise.
        """
        return step_optimizer(state, lambda: self._compute_gradients(state, closure), prior_precision=None)

    @contextmanager
    def draw(self, state: State, generator: torch.Generator) -> Iterator[nn.Module]:
        """Yield the model with weights from the Gaussian, the same for all examples.

        The caller re-estimates BatchNorm statistics.
        """
        scale = self.get_draw_option("scale")
        stds = {
            name: scale_std(raw_to_std(state.statistics[raw_scale_key(name)]), scale)
            for name in get_random_parameters(state)
        }
        with draw_gaussian_weights(state, stds, generator) as network:
            yield network

    def _compute_gradients(self, state: State, closure: Closure) -> Tensor:
        """Set `.grad` of all optimized tensors to the gradient of the objective. Returns the loss of the batch."""
        random_params = get_random_parameters(state)
        raws = [state.statistics[raw_scale_key(name)] for name in random_params]
        scales = dict(zip(random_params.values(), SoftplusScale.from_raws(raws, self.estimator), strict=True))
        trained = {name: param for name, param in random_params.items() if param.requires_grad}
        loss = compute_noisy_gradients(state.model, closure, self.estimator, scales, trained)
        params, trained_scales = list(trained.values()), [scales[param] for param in trained.values()]
        precisions = self._get_prior_precisions(state, trained)
        accumulate_kl_gradients(params, trained_scales, precisions, kl_weight=self.temperature / state.num_data)
        return loss

    def _get_prior_precisions(self, state: State, names: Iterable[str]) -> float | list[Tensor]:
        precision = self.prior_precision
        if isinstance(precision, dict | str):
            return [state.statistics[prior_precision_key(name)] for name in names]
        return float(precision)


def compute_noisy_gradients(
    network: nn.Module,
    closure: Closure,
    estimator: NoiseEstimator,
    scales: Mapping[nn.Parameter, SoftplusScale],
    trained: Mapping[str, nn.Parameter],
) -> Tensor:
    """Set the gradients of means and raw standard deviations with noise in the layers, and return the batch loss.

    Raises:
        RuntimeError: Weights were used without noise.
    """
    params, trained_scales = list(trained.values()), [scales[param] for param in trained.values()]
    for scale in trained_scales:
        scale.raw.grad = None
    means, stds = [param.detach() for param in params], [scale.std for scale in trained_scales]
    with weight_distribution(params, means, stds), inject_noise(network, estimator, scales):
        loss = closure()
    for (name, param), scale in zip(trained.items(), trained_scales, strict=True):
        if scale.raw.grad is None and param.grad is not None and bool(param.grad.any()):
            raise RuntimeError(
                f"{name} has a gradient that did not pass through the noise of its layer. If the layer is in "
                "eval mode, call train() on the state's model before training. If the model reads the weights of "
                "the layer instead of calling it, use SGVB."
            )
    return loss


@contextmanager
def draw_gaussian_weights(
    state: State, stds: Mapping[str, Tensor], generator: torch.Generator
) -> Iterator[nn.Module]:
    """Yield the variational network in eval mode with weights from the Gaussian, the same for all examples."""
    params, weights = dict(state.model.named_parameters()), []
    with hold_means(state.model) as means:
        for name, std in stds.items():
            noise = torch.randn(std.shape, generator=generator, dtype=std.dtype, device=std.device)
            weights.append(means[name] + std * noise)
        with swap_values([params[name] for name in stds], weights), eval_mode(state.model):
            yield state.model


def accumulate_kl_gradients(
    means: Sequence[nn.Parameter],
    scales: Sequence[SoftplusScale],
    prior_precision: float | list[Tensor],
    kl_weight: float,
) -> None:
    """Add `kl_weight` times the gradient of KL(q || prior) to `.grad` of the means and raw standard deviations.

    Means without a gradient of the loss get this gradient alone, which moves them to the prior.

    `kl_weight` is relative to a loss that is a mean over examples. The prior has mean zero.
    """
    raws, stds = [scale.raw for scale in scales], [scale.std for scale in scales]
    for mean, raw in zip(means, raws, strict=True):
        if mean.grad is None:
            raw.grad = None  # left from an earlier pass: the last one did not use this layer
    std_grads = zero_tensors(stds)
    values = [mean.detach() for mean in means]
    add_kl_gradients(_ensure_gradients(means), std_grads, values, stds, prior_precision, kl_weight)
    torch._foreach_addcmul_(_ensure_gradients(raws), std_grads, [scale.slope for scale in scales])


def raw_scale_key(name: str) -> str:
    """Return the name of the statistic that holds the raw standard deviations of a parameter."""
    return f"raw_scale.{name}"


def prior_precision_key(name: str) -> str:
    """Return the name of the statistic that holds a parameter's prior precision, if precisions differ."""
    return f"prior_precision.{name}"


def _ensure_gradients(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return gradients, and set `.grad` to zeros where there is none."""
    missing = [tensor for tensor in tensors if tensor.grad is None]
    for tensor, zeros in zip(missing, zero_tensors(missing), strict=True):
        tensor.grad = zeros
    return [tensor.grad for tensor in tensors if tensor.grad is not None]


def get_random_parameters(state: State) -> dict[str, nn.Parameter]:
    """Return the parameters of the model with a distribution, by name."""
    return {name: p for name, p in state.model.named_parameters() if raw_scale_key(name) in state.statistics}
