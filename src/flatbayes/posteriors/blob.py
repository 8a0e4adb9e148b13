"""Bayesian low-rank adaptation by backpropagation (BLoB): variational inner factors of adapters, with flipout.

    q(A) = N(M, diag(G⁴)) for the inner factor A of each adapter; the outer factor B and other weights are points
    for each step:
        forward pass: B [M x + ((G² * N(0, I)) (x s)) r], with random signs s and r for each token
        M, G, B = optimizer(gradients of the mean loss [+ kl_weight * KL(q || prior)])
        [M, G = M, G - kl_lr * kl_weight * gradients of KL(q || prior)]
    draw: M + G² * N(0, I), the same weights for all examples

The KL divergence is part of the gradient, or has a step of its own as in the published code. There its weight is not
1 / n: in cycles of `kl_cycle` steps it is 2^i / (2^(kl_cycle + 1) - 1) in step i. The estimator is that of `LRT`.

Source: Wang et al. (NeurIPS 2024), "BLoB: Bayesian Low-Rank Adaptation by Backpropagation for Large Language Models".
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from flatbayes.core import Closure, OptimizerFactory, State
from flatbayes.core.adapters import find_factor_pairs
from flatbayes.core.names import check_choice
from flatbayes.core.randomness import preserve_rng
from flatbayes.core.tensor_lists import widen, zero_tensors
from flatbayes.posteriors.draw_options import SCALE_OPTIONS, AutoFloat, check_scale, scale_std
from flatbayes.posteriors.lrt import (
    accumulate_kl_gradients,
    compute_noisy_gradients,
    draw_gaussian_weights,
    get_random_parameters,
    raw_scale_key,
)
from flatbayes.posteriors.optimization import DEFAULT_ADAM, check_temperature, init_state, step_optimizer
from flatbayes.posteriors.posterior import Posterior
from flatbayes.posteriors.variational import MIN_STD, add_kl_gradients, init_variational_optimizer
from flatbayes.posteriors.variational_layers import NoiseEstimator, SoftplusScale
from flatbayes.posteriors.variational_network import (
    bayesian_parameters,
    make_variational_network,
    select_layer_parameters,
)

SignSharing = Literal["tokens", "examples"]
"""Whether each token or each example has random signs of its own."""


@dataclass(frozen=True)
class BLoB(Posterior):
    """A Gaussian for the inner factors of adapters, trained with flipout.

    Use it where adapters are trained anyway, for the time of one training.

    Adapters are found by the names of their factors, those of PEFT, torchtune and loralib. In a network without
    adapters all weights and biases of linear and convolutional layers have a distribution. Other trainable parameters
    are trained as numbers and have no prior. The optimizer must have no weight decay.

    Attributes:
        prior_std: Standard deviation of the Gaussian prior of each weight, which has mean zero.
        temperature: Factor on the weight of the KL divergence, which is 1 / num_data without `kl_cycle`.
        initial_root: Largest initial value of G, the root of a standard deviation; they are uniform between this
            divided by sqrt(2) and this.
        kl_lr: Learning rate of a step of SGD on the KL divergence alone, after that of the optimizer; published are
            0.01 to 0.02. None: the KL divergence is part of the objective.
        kl_cycle: Number of steps after which the weights of the KL divergence repeat, as published; see
            `flatbayes.training.presets.make_blob`. None: all steps have the weight of the evidence lower bound.
        signs: `tokens`: flipout gives each token of a sentence signs of its own, as published. `examples`: all tokens
            of a sentence have those of one weight sample.
        scale: Factor on the covariance of the draws, which training does not depend on; `auto`: chosen on validation
            examples after training, 1 without any. None: `auto` where the number of epochs is automatic, otherwise 1.

    Examples:
        >>> fitted = fit(MLP, data, BLoB(temperature=0.1), SAM(rho=0.1), config)
        >>> fitted.predict(inputs, num_draws=30).mutual_information.shape
        torch.Size([100])
    """

    prior_std: float = 0.2
    temperature: float = 1.0
    initial_root: float = 0.05
    kl_lr: float | None = None
    kl_cycle: int | None = None
    signs: SignSharing = "tokens"
    scale: AutoFloat | None = None

    def __post_init__(self) -> None:
        check_temperature(self.temperature)
        check_scale(self.scale)
        for name in ("prior_std", "initial_root", "kl_lr"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {value}.")
        if self.kl_cycle is not None and self.kl_cycle < 1:
            raise ValueError(f"kl_cycle is a number of steps: at least 1, got {self.kl_cycle}.")
        check_choice("signs", self.signs, SignSharing)

    draw_options = SCALE_OPTIONS
    requires_stationary_loss = "at_end"  # the method minimises a bound
    has_weight_distribution = True  # a Gaussian over each inner factor

    @property
    def tolerates_skipped_steps(self) -> bool:
        """Only without `kl_lr`, whose steps on the KL divergence the optimizer does not take."""
        return self.kl_lr is None

    @property
    def default_optimizer(self) -> OptimizerFactory:
        """Adam without weight decay."""
        return DEFAULT_ADAM

    def init(self, model: nn.Module, make_optimizer: OptimizerFactory | None, num_data: int) -> State:
        """Return a state of a variational copy of the model, and an optimizer over means and roots.

        Parameter names are unchanged, so weights can be exchanged with the given model. See `Posterior.init`.

        Raises:
            ValueError: A factor is not the weight of a supported layer, or the optimizer has weight decay or omits
                the roots.
        """
        init_state(model, None, num_data, None)  # validates the model and num_data
        inner = [pair.inner for pair in find_factor_pairs(model).values()]
        num_others = len(inner) - len(select_layer_parameters(model, inner))
        if num_others:
            raise ValueError(
                f"BLoB adds noise to factors that are linear or convolutional layers, and {num_others} of "
                f"{len(inner)} are not, such as those of embeddings and of AdaLoRA. Use SGVB(params=['*lora*']) or "
                "TFB."
            )
        state = State(make_variational_network(model, inner or None, method="BLoB"), None, num_data)
        params = bayesian_parameters(state.model)
        roots = {}
        with preserve_rng(model):
            for name, param in params.items():
                start = torch.empty_like(param, dtype=widen(param.dtype))
                start.uniform_(self.initial_root / math.sqrt(2), self.initial_root)
                roots[name] = nn.Parameter(start, requires_grad=False)  # the layers set the gradients
        state.statistics = {raw_scale_key(name): root for name, root in roots.items()}
        state.statistics["step"] = torch.zeros((), dtype=torch.int64, device="cpu")  # read without waiting
        state.cpu_statistics = frozenset(["step"])
        state.optimizer = init_variational_optimizer(
            make_optimizer, state.model, list(roots.values()), 1 / self.prior_std**2
        )
        return state

    def step(self, state: State, closure: Closure) -> Tensor:
        """Do one step on means, roots and the other parameters, with the model in training mode.

        Returns:
            The loss of the batch, without the KL term.

        Raises:
            RuntimeError: Weights were used without noise.
        """
        kl_weight = self._get_kl_weight(state)
        loss = step_optimizer(state, lambda: self._compute_gradients(state, closure, kl_weight), prior_precision=None)
        if self.kl_lr is not None:
            self._descend_kl(state, self.kl_lr * kl_weight)
        state.statistics["step"].add_(1)
        return loss

    @contextmanager
    def draw(self, state: State, generator: torch.Generator) -> Iterator[nn.Module]:
        """Yield the model with inner factors from the Gaussian, the same for all examples.

        The caller re-estimates BatchNorm statistics.
        """
        scale = self.get_draw_option("scale")
        roots = {name: state.statistics[raw_scale_key(name)] for name in get_random_parameters(state)}
        stds = {name: scale_std(square_roots(root), scale) for name, root in roots.items()}
        with draw_gaussian_weights(state, stds, generator) as network:
            yield network

    def _get_kl_weight(self, state: State) -> float:
        if self.kl_cycle is None:
            return self.temperature / state.num_data
        return self.temperature * cyclical_kl_weight(int(state.statistics["step"]), self.kl_cycle)

    def _compute_gradients(self, state: State, closure: Closure, kl_weight: float) -> Tensor:
        """Set `.grad` of all optimized tensors. Returns the loss of the batch."""
        random_params = get_random_parameters(state)
        scales = {param: self._make_scale(state, name) for name, param in random_params.items()}
        trained = {name: param for name, param in random_params.items() if param.requires_grad}
        estimator: NoiseEstimator = "token_flipout" if self.signs == "tokens" else "flipout"
        loss = compute_noisy_gradients(state.model, closure, estimator, scales, trained)
        if self.kl_lr is None:
            params = list(trained.values())
            precision = 1 / self.prior_std**2
            accumulate_kl_gradients(params, [scales[param] for param in params], precision, kl_weight)
        return loss

    @torch.no_grad()
    def _descend_kl(self, state: State, step_size: float) -> None:
        """Subtract `step_size` times the gradient of the KL divergence from means and roots."""
        trained = {name: param for name, param in get_random_parameters(state).items() if param.requires_grad}
        means: list[Tensor] = list(trained.values())
        scales = [self._make_scale(state, name) for name in trained]
        stds = [scale.std for scale in scales]
        mean_steps, std_steps = zero_tensors(means), zero_tensors(stds)
        add_kl_gradients(mean_steps, std_steps, means, stds, 1 / self.prior_std**2, -step_size)
        torch._foreach_add_(means, mean_steps)
        torch._foreach_addcmul_([scale.raw for scale in scales], std_steps, [scale.slope for scale in scales])

    def _make_scale(self, state: State, name: str) -> SoftplusScale:
        root = state.statistics[raw_scale_key(name)].detach()
        return SoftplusScale(state.statistics[raw_scale_key(name)], square_roots(root), 2 * root)


def square_roots(root: Tensor) -> Tensor:
    """Return G², the standard deviations, at least `MIN_STD`."""
    return root.detach().square().clamp_(min=MIN_STD)


def cyclical_kl_weight(step: int, cycle: int) -> float:
    """Return 2^i / (2^(cycle + 1) - 1) with i = step mod cycle; the weights of a cycle sum to almost one half.

    >>> [cyclical_kl_weight(step, 3) for step in range(4)] == [1 / 15, 2 / 15, 4 / 15, 1 / 15]
    True
    """
    power = step % cycle - (cycle + 1)
    return math.ldexp(1.0, power) / (1 - math.ldexp(1.0, -(cycle + 1)))
