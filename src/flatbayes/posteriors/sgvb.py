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
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from flatbayes.core import Closure, Examples, LossFn, MakeOptimizer, State
from flatbayes.core.buffers import evaluating
from flatbayes.core.weights import flatten, installed, trainable, unflatten
from flatbayes.posteriors.gradient import ADAM, start, update
from flatbayes.posteriors.posterior import Posterior
from flatbayes.posteriors.variational import (
    MIN_STD,
    check_variational_optimizer,
    objective_gradients,
    raw_of_std,
    std_of_raw,
)

Selection = Literal["weights", "no_biases", "last_layer", "all"]
"""Which of the trainable parameters have a distribution; the others are learnt as numbers."""

Centre = Literal["zero", "initial"]
"""Where the prior is centred."""

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@dataclass(frozen=True)
class SGVB(Posterior):
    """A Gaussian with a mean and a standard deviation for every weight, fitted by variational inference.

    Needs an optimizer without weight decay, since the prior is given here; Adam is the usual choice. Between steps
    the model is the mean network. Parameters without a distribution have no prior.

    Attributes:
        prior_precision: Precision of the Gaussian prior over the Bayesian parameters, 1 / (its standard
            deviation)²: 1 is N(0, 1), 100 is N(0, 0.1²).
        temperature: Weight of the KL divergence from the prior. 1 is Bayes; below 1 is a cold posterior, narrower
            and closer to the data, which large networks usually need (0.01 to 0.1).
        initial_std: Standard deviation of every Bayesian parameter at the start; the means start at the weights the
            model comes with.
        num_samples: Weights drawn per step, each at the cost of a gradient (two with SAM). More make the gradient
            less noisy.
        bayesian: Which trainable parameters have a distribution: `weights` all but those of normalisation layers
            (of torch.nn: batch, instance, layer, group and RMS norm), which are deterministic; `no_biases`
            neither those nor biases; `last_layer` those of the last module that has any, in the order of
            registration; `all` every one.
        prior_mean: Where the prior is centred: `zero`, or `initial` for the weights that the model comes with, as
            suits a pretrained network.
    """

    prior_precision: float = 1.0
    temperature: float = 1.0
    initial_std: float = 0.01
    num_samples: int = 1
    bayesian: Selection = "weights"
    prior_mean: Centre = "zero"

    def __post_init__(self) -> None:
        for name in ("prior_precision", "temperature"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}.")
        if not MIN_STD <= self.initial_std < math.inf:
            raise ValueError(f"initial_std must be finite and at least {MIN_STD}, got {self.initial_std}.")
        if self.num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {self.num_samples}.")
        for name, kind in (("bayesian", Selection), ("prior_mean", Centre)):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} must be {' or '.join(get_args(kind))}, got {getattr(self, name)!r}.")

    @property
    def runs(self) -> int:
        """One."""
        return 1

    @property
    def stochastic(self) -> bool:
        """Yes: each draw has noise of its own."""
        return True

    @property
    def moves_weights(self) -> bool:
        """Yes: running statistics of training mix those of all the networks it drew."""
        return True

    @property
    def default_optimizer(self) -> MakeOptimizer:
        """Adam, without weight decay."""
        return ADAM

    def init(self, model: nn.Module, make_optimizer: MakeOptimizer | None, num_data: int) -> State:
        """Model, means and raw standard deviations, and an optimiser over the parameters and the latter.

        The model's own parameters are the means that the optimiser moves, so whatever acts on their gradients
        (clipping, a loss scaler) acts here; `mean` in the statistics is a copy, for draws within draws.

        Raises:
            ValueError: No parameter is Bayesian, or the optimiser has weight decay or leaves out what it is given.
        """
        state = start(model, None, num_data, None)
        mean = flatten(bayesian_parameters(model, self.bayesian))
        # It gets its gradient by formula; a tensor that requires one could not be loaded into.
        raw_scale = nn.Parameter(torch.full_like(mean, raw_of_std(self.initial_std)), requires_grad=False)
        state.statistics = {"mean": mean, "raw_scale": raw_scale}
        if self.prior_mean == "initial":
            state.statistics["prior_mean"] = mean.clone()
        if make_optimizer is not None:
            state.optimizer = make_optimizer([*trainable(model), raw_scale])
            check_variational_optimizer(state.optimizer, [raw_scale], self.prior_precision)
        return state

    def step(self, state: State, closure: Closure) -> Tensor:
        """One step on means and standard deviations. Returns the mean loss of the drawn networks, without the KL."""
        loss = update(state, lambda: self._ask(state, closure), prior_precision=None)
        state.statistics["mean"].copy_(flatten(bayesian_parameters(state.model, self.bayesian)))
        return loss

    def collect(self, state: State) -> None:
        """Nothing: the end of training is what counts."""

    def finish(self, state: State, examples: Examples, loss_fn: LossFn) -> None:
        """Nothing: no last look at the data is needed."""

    @contextmanager
    def draw(self, state: State, generator: torch.Generator) -> Iterator[nn.Module]:
        """The model with weights from the Gaussian; running statistics are the caller's to re-estimate."""
        params, mean = bayesian_parameters(state.model, self.bayesian), state.statistics["mean"]
        noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
        weights = mean + std_of_raw(state.statistics["raw_scale"]) * noise
        with installed(params, unflatten(weights, params)), evaluating(state.model):
            yield state.model

    def _ask(self, state: State, closure: Closure) -> Tensor:
        """Leave in `.grad` of everything that is optimised the gradient of the objective, averaged over samples."""
        bayesian = bayesian_parameters(state.model, self.bayesian)
        chosen = {id(param) for param in bayesian}
        others = [param for param in trainable(state.model) if id(param) not in chosen]
        mean, raw_scale = flatten(bayesian), state.statistics["raw_scale"]
        std, share = std_of_raw(raw_scale), 1 / self.num_samples
        raw_scale.grad = None  # or clipping within the closure would see that of the last step
        losses: list[Tensor] = []
        grad, grad_times_noise = torch.zeros_like(mean), torch.zeros_like(mean)
        others_grads = [torch.zeros_like(param) for param in others]
        for _ in range(self.num_samples):
            noise = torch.randn_like(mean)
            with installed(bayesian, unflatten(mean + std * noise, bayesian)):
                losses.append(closure())
            found = flatten(_gradients(bayesian))
            grad.add_(found, alpha=share)
            grad_times_noise.addcmul_(found, noise, value=share)
            for total, one in zip(others_grads, _gradients(others), strict=True):
                total.add_(one, alpha=share)
        grad, raw_scale.grad = objective_gradients(
            grad,
            grad_times_noise,
            mean,
            raw_scale,
            state.statistics.get("prior_mean", torch.zeros_like(mean)),
            self.prior_precision,
            self.temperature / state.num_data,
        )
        for param, value in zip(bayesian + others, unflatten(grad, bayesian) + others_grads, strict=True):
            param.grad = value.to(param.dtype)
        return torch.stack(losses).mean()


def bayesian_parameters(model: nn.Module, selection: Selection) -> list[nn.Parameter]:
    """The trainable parameters that have a distribution, in the model's order; a tied tensor counts once.

    Args:
        model: The network.
        selection: Which of them, see `SGVB`.

    Raises:
        ValueError: There are none.
    """
    owned = [
        (module, name, param)
        for module in model.modules()
        for name, param in module.named_parameters(recurse=False)
        if param.requires_grad
    ]
    if selection == "last_layer":
        owned = [entry for entry in owned if entry[0] is owned[-1][0]]
    elif selection != "all":
        owned = [entry for entry in owned if not isinstance(entry[0], _NORMS)]
    if selection == "no_biases":
        owned = [entry for entry in owned if "bias" not in entry[1]]
    chosen = {id(param) for _, _, param in owned}
    found = [param for param in trainable(model) if id(param) in chosen]
    if not found:
        raise ValueError(
            f"bayesian={selection!r} selects none of the {len(trainable(model))} trainable parameters of "
            f"{type(model).__name__}. Use bayesian='all', or set requires_grad on those to be learnt."
        )
    return found


def _gradients(params: Sequence[nn.Parameter]) -> list[Tensor]:
    return [torch.zeros_like(param) if param.grad is None else param.grad for param in params]
