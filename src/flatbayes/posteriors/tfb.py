"""Training-free Bayesianization (TFB): low-rank isotropic noise, as wide as validation examples tolerate.

    train as MAP does; for each adapter, with weight W0 + scaling B A:
        U diag(D) Vᵀ = B, the thin singular value decomposition
    draw: A + std V diag(D)⁻¹ N(0, I), so that B A gets the noise std U N(0, I)
    std: the largest for which the predictions on validation examples are as good as those of the adapter itself

The noise of B A has variance std² in every direction of the column space of B, whatever the scale of B. All adapters
share one std. Forward passes find it, so that an adapter that is trained already needs no gradient. It measures
flatness: the largest isotropic noise that the predictions tolerate.

Source: Shi et al. (2024), "Training-Free Bayesianization for Low-Rank Adapters of Large Language Models".
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flatbayes.core import Closure, Examples, LossFn, OptimizerFactory, State
from flatbayes.core.adapters import find_factor_pairs
from flatbayes.core.buffers import eval_mode
from flatbayes.core.names import check_choice
from flatbayes.core.networks import check_materialized, check_real
from flatbayes.core.tensor_lists import flatten, unflatten
from flatbayes.core.traversal import trainable_by_name
from flatbayes.core.weights import swap_values
from flatbayes.posteriors.draw_options import AUTO, AutoFloat, Criterion, DrawOption, Tolerance
from flatbayes.posteriors.optimization import init_state, step_optimizer
from flatbayes.posteriors.posterior import Posterior
from flatbayes.posteriors.prior_precision import check_prior_precision
from flatbayes.posteriors.requirements import Trajectory

DEFAULT_STD = 0.01
"""Standard deviation without validation examples: within the published range of 0.001 to 0.015."""
DEFAULT_MAX_CHANGES: Mapping[Criterion, float] = {"nll": 0.003, "pseudo_nll": 0.003, "changed_classes": 0.01}


@dataclass(frozen=True)
class TFB(Posterior):
    """Isotropic noise in adapters, as wide as validation data tolerate.

    Use it for adapters that are trained already: it needs forward passes only, and has one number to choose.

    Adapters are found by the names of their factors, those of PEFT, torchtune and loralib; other trainable weights
    stay as they are in every draw. In a network without adapters every trainable weight matrix has isotropic noise.
    In a loop of your own, call `finalize` after the last step.

    Attributes:
        std: Standard deviation of the noise of B A, without the factor `scaling` of the adapter. `auto`: the largest
            that the criterion accepts on validation examples, found by bisection; 0.01 without any.
        criterion: What noise may change. `nll`: the NLL of the validation labels. `pseudo_nll`: the NLL of the
            classes that the adapter itself predicts, which needs no labels. `changed_classes`: the share of examples
            whose predicted class changes.
        max_change: Largest accepted change: for `nll` a relative increase, for `pseudo_nll` a relative change in
            either direction, by default 0.003; for `changed_classes` a share of the examples, by default 0.01.
        prior_precision: Precision of a Gaussian prior over all trainable weights in training. None: the optimizer's
            weight decay is the prior, with weight_decay = prior_precision / num_data.

    Examples:
        >>> fitted = fit(MLP, data, TFB(), SAM(rho=0.1), config)
        >>> fitted.posterior.std > 0
        True
        >>> fitted.predict(inputs, num_draws=30).mutual_information.shape
        torch.Size([100])
    """

    std: AutoFloat = AUTO
    criterion: Criterion = "nll"
    max_change: float | None = None
    prior_precision: float | None = None

    def __post_init__(self) -> None:
        check_prior_precision(self.prior_precision)
        if self.std != AUTO and (isinstance(self.std, str) or not 0 <= self.std < math.inf):
            raise ValueError(f"std must be at least 0 and finite, or 'auto'; got {self.std!r}.")
        check_choice("criterion", self.criterion, Criterion)
        if self.max_change is not None and not 0 < self.max_change < math.inf:
            raise ValueError(f"max_change must be positive and finite, got {self.max_change}.")

    uses_gradient_only = True

    @property
    def stochastic(self) -> bool:
        """True unless the standard deviation is zero."""
        return bool(self.get_draw_option("std") > 0)

    @property
    def draw_options(self) -> Mapping[str, DrawOption]:
        """The standard deviation."""
        max_change = DEFAULT_MAX_CHANGES[self.criterion] if self.max_change is None else self.max_change
        return {"std": DrawOption(DEFAULT_STD, (0.001, 0.015), Tolerance(self.criterion, max_change))}

    @property
    def trajectory(self) -> Trajectory:
        """That of MAP: the noise is chosen afterwards."""
        return Trajectory.of("optimizer", prior_precision=self.prior_precision)

    def init(self, model: nn.Module, make_optimizer: OptimizerFactory | None, num_data: int) -> State:
        """Return a state, from which draws are possible at once if it has no optimizer; see `Posterior.init`."""
        check_materialized(model)
        check_real(model.named_parameters(), "TFB")
        state = init_state(model, make_optimizer, num_data, self.prior_precision)
        mean = flatten(list(find_noisy_parameters(model)))
        state.statistics = {
            "mean": mean.detach().clone(),  # for nested draws
            "finished": torch.tensor(int(make_optimizer is None), device="cpu"),  # read without waiting for a device
        }
        state.cpu_statistics = frozenset(["finished"])
        return state

    def step(self, state: State, closure: Closure) -> Tensor:
        """Do one optimizer step. Returns the loss of the batch."""
        state.statistics["finished"].zero_()
        return step_optimizer(state, closure, self.prior_precision)

    def finalize(self, state: State, examples: Examples, loss_fn: LossFn) -> None:
        """Make the current weights the mean; no example is read."""
        state.statistics["mean"].copy_(flatten(list(find_noisy_parameters(state.model))))
        state.statistics["finished"].fill_(1)

    @contextmanager
    def draw(self, state: State, generator: torch.Generator) -> Iterator[nn.Module]:
        """Yield the model with noise in its adapters; the caller re-estimates BatchNorm statistics.

        Raises:
            RuntimeError: The state was made for training, and `finalize` was not called after the last step.
        """
        if not state.statistics["finished"]:
            raise RuntimeError(
                "TFB draws around the weights at the end of training: call posterior.finalize(state, (), loss_fn) "
                "after the last step, as fit does."
            )
        noisy, std = find_noisy_parameters(state.model), float(self.get_draw_option("std"))
        means = unflatten(state.statistics["mean"], list(noisy))
        weights = []
        for mean, outer in zip(means, noisy.values(), strict=True):
            noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
            if outer is not None:
                root = invert_columns(outer)
                noise = (root @ noise.flatten(1)[: root.shape[1]]).view_as(mean)
            weights.append(torch.add(mean, noise, alpha=std))
        with swap_values(list(noisy), weights), eval_mode(state.model):
            yield state.model


def find_noisy_parameters(model: nn.Module) -> dict[nn.Parameter, Tensor | None]:
    """Return the parameters that get noise: the inner factors of adapters, each with its outer factor as a matrix.

    In a network without adapters: the trainable weight matrices, or else all trainable parameters, each with None.
    """
    pairs = find_factor_pairs(model)
    if pairs:
        return {pair.inner: pair.outer_matrix for pair in pairs.values()}
    params = list(trainable_by_name(model).values())
    return dict.fromkeys([param for param in params if param.ndim > 1] or params)


def invert_columns(outer: Float[Tensor, "outputs rank"]) -> Float[Tensor, "rank columns"]:
    """Return V diag(D)⁻¹ for the outer factor B = U diag(D) Vᵀ, so that B V diag(D)⁻¹ = U has orthonormal columns.

    There are as many columns as singular values, min(outputs, rank). Those of a singular value that is zero
    up to rounding are zero: B maps them to nothing. So an adapter whose B is zero, as at the start of training, has
    no noise.
    """
    exact = outer if outer.dtype == torch.float64 else outer.float()
    _, values, rows = torch.linalg.svd(exact, full_matrices=False)
    smallest = values.max() * max(outer.shape) * torch.finfo(exact.dtype).eps
    inverse = torch.where(values > smallest, values.clamp_min(torch.finfo(exact.dtype).tiny).reciprocal(), 0.0)
    root: Tensor = (rows.T * inverse).to(outer.dtype)
    return root
