"""Laplace approximation (MacKay 1992): a Gaussian around a trained network, with the inverse curvature as covariance.

    train w as for MAP
    after training: G = GGN of the summed loss at w
    covariance = A Aᵀ = (G / temperature + prior_precision I)⁻¹
    offset = A N(0, I)
    draw: f(x; w) + J(x) offset (linearised), or the network at w + offset (sampled)

The curvature is the generalised Gauss-Newton matrix (GGN): its diagonal, its Kronecker factors (Ritter et al., ICLR
2018), or that of the last layer (Daxberger et al., NeurIPS 2021). With a flatness this is the Laplace approximation
at a sharpness-aware solution: the curvature is that of the loss itself, since the sharpness-aware loss has a cusp at
its minimum and no curvature there.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from flatbayes.core import Closure, Examples, LossFn, OptimizerFactory, State
from flatbayes.core.buffers import eval_mode
from flatbayes.core.input_trees import ModelInputs, move_batch, slice_examples
from flatbayes.core.names import check_choice
from flatbayes.core.network_calls import differentiable_recurrence
from flatbayes.core.networks import cast_inputs, check_materialized, check_real
from flatbayes.core.padding import clear_padding_rows
from flatbayes.core.tensor_lists import flatten, unflatten, widen
from flatbayes.core.weights import swap_values
from flatbayes.posteriors.curvature import CurvatureApproximation, CurvatureStructure, maximize_evidence
from flatbayes.posteriors.curvature_structures import make_curvature
from flatbayes.posteriors.draw_options import SCALE_OPTIONS, AutoFloat, check_scale, scale_std
from flatbayes.posteriors.ggn import count_weights, rounding_tolerance
from flatbayes.posteriors.last_layer import find_last_linear
from flatbayes.posteriors.linearised import LinearisedNetwork, explain_derivative_error
from flatbayes.posteriors.optimization import check_temperature, init_state, step_optimizer, temper_precision
from flatbayes.posteriors.posterior import Posterior
from flatbayes.posteriors.requirements import Trajectory

PredictiveMode = Literal["linearised", "sampled"]
"""Network of a draw: the linearised network, or the network itself at sampled weights."""

LAST_LAYER_STRUCTURES: tuple[CurvatureStructure | None, ...] = (None, "last_layer", "last_layer_kron")
"""Structures with all randomness in the last linear layer."""

MAX_DENSE_OUTPUTS = 2048
"""Largest number of outputs of an example with a class at each position."""
PriorTuning = Literal["none", "evidence"]
"""Whether the prior precision is chosen after training, and how."""


@dataclass(frozen=True)
class Laplace(Posterior):
    """A Gaussian around one trained network, from its curvature.

    Use it for a trained network that must not change.

    The curvature is computed once, after training, on all training examples and with the network in eval mode.

    Attributes:
        structure: Approximation of the curvature. `last_layer`: the full GGN of the last torch.nn.Linear in
            registration order, with all other weights fixed; its size is the square of that layer's.
            `last_layer_kron`: Kronecker factors of that layer. None: the former, or the latter if the layer has more
            than 12,000 weights. `kron`:
            Kronecker factors of every linear and convolutional layer (KFAC), with other parameters fixed. `diag`: the
            diagonal for all trainable weights of any network, with one backward pass per output of each example, and
            many at a time unless an operation has no rule for `torch.vmap` (RReLU) or a wrong one (PReLU).
        predictive: `linearised`: a draw is the first-order expansion of the network around the solution, at sampled
            weights. The GGN is the exact curvature of this model. All operations must support forward-mode
            differentiation. `sampled`: a draw is the network itself at sampled weights. Where the Gaussian is wide,
            these lie far outside the region that it describes, and predictions degrade; use a lower temperature.
        prior_precision: Precision of a Gaussian prior over all trainable weights. None: the optimizer's weight decay
            is the prior, with weight_decay = temperature * prior_precision / num_data.
        tune: `none`: the Gaussian has the prior of training. `evidence`: it has the prior precision that maximizes
            the evidence (marginal likelihood) after training, and training needs no prior.
        temperature: T in the posterior density p(w) exp(-num_data / T * mean NLL(w)): 1 is the Bayesian posterior,
            below 1 a colder one, narrower and closer to the data. With a fixed weight decay in place of
            `prior_precision`, the covariance is proportional to T. 1 suits regression. Classifiers that fit their
            data have hardly any curvature and need less: try 0.03 for `last_layer`, 0.001 for `kron` and `diag`.
        scale: Factor on the covariance of the draws, which training does not depend on; `auto`: chosen on validation
            examples after training, 1 without any. None: `auto` where the number of epochs is automatic, otherwise 1.

    Examples:
        >>> fitted = fit(MLP, data, Laplace(temperature=0.03), SAM(rho=0.1), config)
        >>> fitted.predict(inputs, num_draws=2).mutual_information.shape
        torch.Size([100])
    """

    structure: CurvatureStructure | None = None
    predictive: PredictiveMode = "linearised"
    prior_precision: float | None = None
    tune: PriorTuning = "none"
    temperature: float = 1.0
    scale: AutoFloat | None = None

    def __post_init__(self) -> None:
        if self.structure is not None:
            check_choice("structure", self.structure, CurvatureStructure)
        check_choice("predictive", self.predictive, PredictiveMode)
        check_choice("tune", self.tune, PriorTuning)
        if self.prior_precision is not None and not 0 < self.prior_precision < math.inf:
            raise ValueError(f"prior_precision must be positive and finite, got {self.prior_precision}.")
        check_temperature(self.temperature)
        check_scale(self.scale)

    draw_options = SCALE_OPTIONS
    uses_gradient_only = True

    @property
    def needs_norm_reestimation(self) -> bool:
        """True if draws are networks at sampled weights."""
        return self.predictive == "sampled"

    @property
    def trajectory(self) -> Trajectory:
        """That of MAP with the prior at this temperature: the curvature is computed afterwards."""
        return Trajectory.of("optimizer", prior_precision=temper_precision(self.prior_precision, self.temperature))

    def init(self, model: nn.Module, make_optimizer: OptimizerFactory | None, num_data: int) -> State:
        """Return a state of model, optimizer and empty statistics of the Gaussian; see `Posterior.init`.

        Raises:
            ValueError: The structure does not support the model, the prior is given twice, or there is no prior and
                none is tuned.
        """
        check_materialized(model)
        state = init_state(model, make_optimizer, num_data, self.prior_precision)
        curvature = make_curvature(self.structure, model)
        check_real(curvature.params.items(), "Laplace")
        weights = flatten(list(curvature.params.values()))
        state.statistics = curvature.allocate_statistics() | {
            "finished": torch.zeros((), dtype=torch.int64, device=weights.device),
            "prior_precision": weights.new_tensor(
                self._resolve_prior_precision(state.optimizer, num_data), dtype=widen(weights.dtype)
            ),
        }
        if self.needs_norm_reestimation:
            state.statistics["mean"] = torch.zeros_like(weights)
        return state

    def step(self, state: State, closure: Closure) -> Tensor:
        """Do one optimizer step, which invalidates the curvature. Returns the loss of the batch."""
        state.statistics["finished"].zero_()
        return step_optimizer(state, closure, self.prior_precision, self.temperature)

    def check_model(self, state: State, examples: Examples, loss_fn: LossFn) -> None:
        """Compute curvature and a draw on a few examples.

        Raises:
            ValueError: The network has an operation for which torch has no such derivative, or examples of a batch
                change each other's outputs.
        """
        curvature = make_curvature(self.structure, state.model)
        for inputs, targets in _count_examples(examples, state.model, []):
            with eval_mode(state.model), differentiable_recurrence(state.model):
                with torch.no_grad():
                    outputs = state.model(inputs)
                    loss_fn(outputs, targets)  # an error of the network itself is not about Laplace
                    _check_num_outputs(outputs)
                    _check_independence(state.model, inputs)
                try:
                    curvature.check(slice_examples(inputs, slice(1)), targets[:1], loss_fn)
                    if self.predictive == "linearised":
                        offsets = {name: torch.zeros_like(param) for name, param in curvature.params.items()}
                        with torch.no_grad():
                            LinearisedNetwork(state.model, offsets)(inputs)
                except (RuntimeError, NotImplementedError) as error:
                    raise ValueError(
                        f"Laplace(structure={self.structure!r}, predictive={self.predictive!r}) cannot differentiate "
                        f"{type(state.model).__name__}: {explain_derivative_error(error)} Use predictive='sampled', "
                        "another structure, or SWAG."
                    ) from error

    def finalize(self, state: State, examples: Examples, loss_fn: LossFn) -> None:
        """Compute the curvature of the loss over all examples, and tune the prior precision if requested.

        Raises:
            ValueError: There are no examples, there is no prior, or the evidence has no maximum.
        """
        statistics, curvature = state.statistics, make_curvature(self.structure, state.model)
        if self.tune == "none" and statistics["prior_precision"] <= 0:
            raise ValueError(
                "Laplace has no prior: this state was created without an optimizer, whose weight decay could be the "
                "prior. Set prior_precision, or tune='evidence' to choose it from the data."
            )
        weights = flatten(list(curvature.params.values()))
        batch_sizes: list[int] = []
        with eval_mode(state.model), differentiable_recurrence(state.model):
            summed = curvature.compute_curvature(_count_examples(examples, state.model, batch_sizes), loss_fn)
        factor, precision = state.num_data / sum(batch_sizes), statistics["prior_precision"]
        if self.tune == "evidence":
            eigenvalues = curvature.compute_eigenvalues(summed) * factor / self.temperature
            precision.fill_(maximize_evidence(eigenvalues, float(weights.square().sum())))
        for name, tensor in curvature.make_statistics(summed, factor, self.temperature, precision).items():
            statistics[name].copy_(tensor)
        if self.needs_norm_reestimation:
            statistics["mean"].copy_(weights)
        statistics["finished"].fill_(1)

    def find_varying_layer(self, state: State) -> nn.Linear | None:
        """Return the last linear layer for structures of it, None for others."""
        return find_last_linear(state.model) if self.structure in LAST_LAYER_STRUCTURES else None

    @torch.no_grad()
    def draw_layer(
        self, state: State, layer: nn.Linear, generators: Sequence[torch.Generator]
    ) -> tuple[Tensor, Tensor | None]:
        """Return the layer in several draws, with one product for all of them; see `Posterior.draw_layer`."""
        _check_finished(state)
        curvature = make_curvature(self.structure, state.model)
        noise, params = self._draw_noise(state, curvature, generators), list(curvature.params.values())
        means = unflatten(state.statistics["mean"], params) if self.needs_norm_reestimation else params
        offsets = curvature.compute_draws(state.statistics, noise, self.temperature)
        offsets_by_param = offsets.split([param.numel() for param in params], 1)
        drawn = {
            id(param): mean + offset.view(-1, *param.shape).to(param.dtype)
            for param, mean, offset in zip(params, means, offsets_by_param, strict=True)
        }

        def get_draws(param: Tensor) -> Tensor:
            return drawn[id(param)] if id(param) in drawn else param.expand(len(generators), *param.shape)

        return get_draws(layer.weight), None if layer.bias is None else get_draws(layer.bias)

    def convert_statistics(self, state: State, statistics: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the square root of the covariance of a last layer where there is its eigendecomposition."""
        return make_curvature(self.structure, state.model).convert_statistics(statistics, self.temperature)

    @contextmanager
    def draw(self, state: State, generator: torch.Generator) -> Iterator[nn.Module]:
        """Yield the linearised network, or the model with weights from the Gaussian.

        For the latter, the caller re-estimates BatchNorm statistics.

        Raises:
            RuntimeError: No curvature was computed since the last step.
        """
        _check_finished(state)
        model, statistics, curvature = state.model, state.statistics, make_curvature(self.structure, state.model)
        params, noise = curvature.params, self._draw_noise(state, curvature, [generator])[0]
        offsets = curvature.compute_offsets(statistics, noise, self.temperature)
        clear_padding_rows(offsets, list(params.values()))
        with eval_mode(model):
            if not self.needs_norm_reestimation:
                offsets = [offset.to(param.dtype) for offset, param in zip(offsets, params.values(), strict=True)]
                yield LinearisedNetwork(model, dict(zip(params, offsets, strict=True)))
                return
            weights = statistics["mean"] + flatten(offsets)
            with swap_values(list(params.values()), unflatten(weights, offsets)):
                yield model

    def _draw_noise(
        self, state: State, curvature: CurvatureApproximation, generators: Sequence[torch.Generator]
    ) -> Float[Tensor, "draws params"]:
        """Return normal noise of variance `scale`, which offsets are linear in."""
        precision, size = state.statistics["prior_precision"], count_weights(curvature.params)
        noise = [torch.randn(size, generator=g, dtype=precision.dtype, device=precision.device) for g in generators]
        return scale_std(torch.stack(noise), self.get_draw_option("scale"))

    def without_weight_decay(self) -> Posterior:
        """With the prior precision of the highest evidence, unless one is given."""
        return replace(self, tune="evidence") if self.prior_precision is None else self

    def _resolve_prior_precision(self, optimizer: Optimizer | None, num_data: int) -> float:
        """Return the prior precision of training; 0 if it is loaded or tuned later."""
        if self.prior_precision is not None:
            return self.prior_precision
        if optimizer is None or self.tune == "evidence":
            return 0.0
        if any(group.get("decoupled_weight_decay") for group in optimizer.param_groups):
            raise ValueError(
                "The decoupled weight decay of AdamW is not the gradient of a Gaussian prior, and Laplace needs the "
                "prior for the variance of its draws. Use Adam or SGD; or set weight_decay=0 and prior_precision, or "
                "tune='evidence'."
            )
        decays = {float(group.get("weight_decay", 0.0)) for group in optimizer.param_groups}
        if len(decays) > 1 or max(decays) <= 0:
            raise ValueError(
                "Laplace needs one prior for all weights, and the optimizer has weight_decay="
                f"{' and '.join(map(str, sorted(decays)))}. Set one positive weight_decay; or set it to 0 and set "
                "prior_precision, or tune='evidence' to choose it from the data."
            )
        return num_data * max(decays) / self.temperature


def _check_finished(state: State) -> None:
    if not state.statistics["finished"]:
        raise RuntimeError(
            "Laplace needs the curvature at the end of training before a draw: call posterior.finalize(state, "
            "examples, loss_fn) after the last step, as fit does."
        )


def _check_num_outputs(outputs: Tensor) -> None:
    """Refuse examples with a class at so many positions that the Hessian of the loss in all outputs is too large."""
    shape = outputs.shape[1:]
    if len(shape) > 1 and shape.numel() > MAX_DENSE_OUTPUTS:
        raise ValueError(
            f"Laplace computes the Hessian of the loss in all outputs of an example, and there are {shape.numel():,} "
            f"of them, of the shape {tuple(shape)}; it is for at most {MAX_DENSE_OUTPUTS:,}. Use SWAG, IVON, SGVB, "
            "MCDropout or Ensemble, which need no such Hessian."
        )


def _check_independence(model: nn.Module, inputs: ModelInputs) -> None:
    """Compare the outputs of one example with those that it has in its batch.

    Raises:
        ValueError: They differ.
    """
    outputs = model(inputs)
    if not torch.equal(outputs, model(inputs)):
        return  # dropout that is active in eval mode
    try:
        single = model(slice_examples(inputs, slice(1)))
    except ValueError:  # batch normalization without running statistics
        difference = math.inf
    else:
        difference = float((single - outputs[:1]).norm())
    if difference > max(0.01, rounding_tolerance(outputs, *model.parameters())) * float(outputs.norm()):
        raise ValueError(
            f"The outputs of {type(model).__name__} for one example depend on the other examples of its batch, also "
            "in eval mode, and Laplace needs the derivatives of every example on its own. Batch normalization with "
            "track_running_stats=False does this: leave that option out, or use GroupNorm; or use SWAG."
        )


def _count_examples(examples: Examples, model: nn.Module, batch_sizes: list[int]) -> Examples:
    """Yield the examples on the device and in the dtype of the network, and append batch sizes to `batch_sizes`.

    Raises:
        ValueError: There are none.
    """
    device = next(model.parameters()).device
    for batch in examples:
        inputs, targets = move_batch(batch, device)
        batch_sizes.append(len(targets))
        yield cast_inputs(model, inputs), targets
    if sum(batch_sizes) == 0:
        raise ValueError("Laplace computes the curvature on the training examples, and got none.")
