"""Laplace's method: a Gaussian around a trained network, as wide as the loss is flat there (MacKay 1992).

Its precision is the curvature of the log posterior at the solution, num_data / temperature times that of the mean
loss plus that of the prior; for the former stands the generalised Gauss-Newton matrix (GGN), its diagonal, its
Kronecker factors (Ritter et al., ICLR 2018) or its last layer (Daxberger et al., NeurIPS 2021). With a flatness it is
Laplace's method at a sharpness-aware solution: the curvature is that of the loss itself at the weights, since the
sharpness-aware loss has a cusp at its minimum and no curvature there.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from flatbayes.core import Closure, Examples, LossFn, OptimizerFactory, State
from flatbayes.core.buffers import eval_mode
from flatbayes.core.weights import flatten, swap_values, unflatten
from flatbayes.posteriors.eigenbasis import CurvatureStructure, make_eigenbasis
from flatbayes.posteriors.linearised import LinearisedNetwork
from flatbayes.posteriors.optimization import default_sgd, init_state, step_optimizer
from flatbayes.posteriors.posterior import Posterior
from flatbayes.posteriors.sgld import temper_prior_precision

PredictiveMode = Literal["linearised", "sampled"]
"""What a draw is."""

PriorTuning = Literal["none", "evidence"]
"""Whether the prior's precision is chosen after training."""

MAX_EXAMPLES_PER_GRAPH = 64
"""Examples that a graph is built of, whatever the size of the batches."""


@dataclass(frozen=True)
class Laplace(Posterior):
    """A Gaussian around one trained network, with the inverse of the curvature there as covariance.

    Curvature is taken once, after training, on all training examples and with the network in eval mode.

    Attributes:
        structure: The curvature. `last_layer`: all of it, of the last torch.nn.Linear in the order of registration,
            the other weights being fixed; its size is the square of that layer's. `kron`: Kronecker factors of every
            linear and convolutional layer (KFAC), vectors elsewhere, such as those of normalisation layers, being
            fixed. `diag`: the diagonal, of all trainable weights of any network, at the cost of a backward pass for
            each output of each example.
        predictive: What a draw is. `linearised`: the network's first-order expansion around the solution, at drawn
            weights; the GGN is the exact curvature of that model. It takes operations that torch can differentiate
            in forward mode. `sampled`: the network itself at drawn weights. Where the Gaussian is wide these are far
            outside the region that it describes, and predictions fall apart, so it needs a lower temperature.
        prior_precision: Precision of a Gaussian prior over all trainable weights; None leaves the prior to the
            optimizer's weight decay, which is this times the temperature, divided by the number of training
            examples.
        tune: Whether the Gaussian has the prior of training (`none`), or the one whose precision maximises the
            evidence by Laplace's method after training (`evidence`); with the latter training needs no prior.
        temperature: Divides the log likelihood, not the log prior; with the weight decay held fixed the covariance
            is proportional to it. One is Bayes, and suits regression. Classifiers that fit their training data
            perfectly leave next to no curvature, and one is far too wide for them: 0.03 for `last_layer` and 0.001
            for the others are where to start, before choosing on validation data.
    """

    structure: CurvatureStructure = "last_layer"
    predictive: PredictiveMode = "linearised"
    prior_precision: float | None = None
    tune: PriorTuning = "none"
    temperature: float = 0.03

    def __post_init__(self) -> None:
        for name, kind in (("structure", CurvatureStructure), ("predictive", PredictiveMode), ("tune", PriorTuning)):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} must be {' or '.join(get_args(kind))}, got {getattr(self, name)!r}.")
        if self.prior_precision is not None and not 0 < self.prior_precision < math.inf:
            raise ValueError(f"prior_precision must be positive and finite, got {self.prior_precision}.")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be positive and finite, got {self.temperature}.")

    num_members = 1
    stochastic = True

    @property
    def needs_norm_reestimation(self) -> bool:
        """Only if the network itself is run at drawn weights."""
        return self.predictive == "sampled"

    requires_stationary_loss = "never"  # it looks at the loss itself once training is over
    shardable = False  # curvature is that of whole layers
    snapshot_requirements = (0, 0)

    @property
    def default_optimizer(self) -> OptimizerFactory:
        """SGD with momentum, and with weight decay unless the prior is given."""
        return default_sgd(self.prior_precision)

    def init(self, model: nn.Module, make_optimizer: OptimizerFactory | None, num_data: int) -> State:
        """Model, optimiser, and room for the Gaussian.

        Raises:
            ValueError: The structure does not suit the model, or the prior is given twice, or not at all and is not
                to be tuned.
        """
        lazy = [name for name, param in model.named_parameters() if is_lazy(param)]
        if lazy:
            raise ValueError(f"{lazy[0]} has no shape yet. Run the model on a batch first, so that it has.")
        state = init_state(model, make_optimizer, num_data, self.prior_precision)
        basis = make_eigenbasis(self.structure, model)
        state.statistics = basis.allocate_statistics()
        like = state.statistics["eigenvalues"]
        state.statistics |= {
            "finished": torch.zeros((), dtype=torch.int64, device=like.device),
            "prior_precision": like.new_tensor(self._resolve_prior_precision(state.optimizer, num_data)),
        }
        if self.needs_norm_reestimation:
            state.statistics["mean"] = torch.zeros_like(like)
        return state

    def step(self, state: State, closure: Closure) -> Tensor:
        """One step of the optimiser; a Gaussian around earlier weights is no longer drawn from."""
        state.statistics["finished"].zero_()
        return step_optimizer(state, closure, temper_prior_precision(self.prior_precision, self.temperature))

    def collect(self, state: State) -> None:
        """Nothing: the end of training is what counts."""

    def finalize(self, state: State, examples: Examples, loss_fn: LossFn) -> None:
        """Take the curvature of the loss over all examples, and with it choose the prior's precision if asked to.

        Raises:
            ValueError: There are no examples, there is no prior, or the evidence has no maximum.
        """
        found, basis, seen = state.statistics, make_eigenbasis(self.structure, state.model), 0
        if self.tune == "none" and found["prior_precision"] <= 0:
            raise ValueError(
                "Laplace does not know the prior: this state began without an optimizer, whose weight decay it might "
                "have been. Set prior_precision, or let the data choose with tune='evidence'."
            )
        weights = flatten(list(basis.params.values()))

        def iter_chunks() -> Iterator[tuple[Tensor, Tensor]]:
            nonlocal seen
            for inputs, targets in examples:
                seen += len(inputs)
                ready = inputs.to(weights.dtype) if inputs.is_floating_point() else inputs
                yield from zip(
                    ready.split(MAX_EXAMPLES_PER_GRAPH), targets.split(MAX_EXAMPLES_PER_GRAPH), strict=True
                )

        with eval_mode(state.model):
            measured = basis.compute_statistics(iter_chunks(), loss_fn)
        if not seen:
            raise ValueError("Laplace takes the curvature on the training examples, and got none.")
        measured["eigenvalues"] *= state.num_data / seen
        if self.tune == "evidence":
            precision = maximize_evidence(measured["eigenvalues"] / self.temperature, float(weights.square().sum()))
            found["prior_precision"].fill_(precision)
        for name, tensor in measured.items():
            found[name].copy_(tensor)
        if self.needs_norm_reestimation:
            found["mean"].copy_(weights)
        found["finished"].fill_(1)

    @contextmanager
    def draw(self, state: State, generator: torch.Generator) -> Iterator[nn.Module]:
        """A module that is the linearised network, or the model with weights from the Gaussian.

        Running statistics of the latter are the caller's to re-estimate.

        Raises:
            RuntimeError: No curvature was taken since the last step.
        """
        model, found, basis = state.model, state.statistics, make_eigenbasis(self.structure, state.model)
        if not found["finished"]:
            raise RuntimeError(
                "Laplace needs the curvature at the end of training before a draw: call posterior.finalize(state, "
                "examples, loss_fn) after the last step, as fit does."
            )
        std = posterior_std(found["eigenvalues"], self.temperature, found["prior_precision"])
        noise = torch.randn(std.shape, generator=generator, dtype=std.dtype, device=std.device)
        offsets, params = basis.compute_offsets(found, std * noise), basis.params
        with eval_mode(model):
            if not self.needs_norm_reestimation:
                yield LinearisedNetwork(model, dict(zip(params, offsets, strict=True)))
                return
            weights = found["mean"] + flatten(offsets)
            with swap_values(list(params.values()), unflatten(weights, offsets)):
                yield model

    def _resolve_prior_precision(self, optimizer: Optimizer | None, num_data: int) -> float:
        if self.prior_precision is not None:
            return self.prior_precision
        if optimizer is None or self.tune == "evidence":
            return 0.0  # to be loaded or tuned
        if any(group.get("decoupled_weight_decay") for group in optimizer.param_groups):
            raise ValueError(
                "The decoupled weight decay of AdamW is not the gradient of a Gaussian prior, which decides how wide "
                "Laplace's draws are. Use Adam or SGD; or set weight_decay=0 and prior_precision, or tune='evidence'."
            )
        decays = {float(group.get("weight_decay", 0.0)) for group in optimizer.param_groups}
        if len(decays) > 1 or max(decays) <= 0:
            raise ValueError(
                "Laplace needs one prior for all weights, and the optimizer has weight_decay="
                f"{' and '.join(map(str, sorted(decays)))}. Give it one positive weight_decay, or leave that out and "
                "set prior_precision, or let the data choose with tune='evidence'."
            )
        return num_data * max(decays) / self.temperature


def posterior_std(
    eigenvalues: Float[Tensor, " params"], temperature: float, prior_precision: Float[Tensor, ""]
) -> Float[Tensor, " params"]:
    """Standard deviations along the eigenvectors of the curvature, 1 / sqrt(eigenvalue / temperature + precision).

    Args:
        eigenvalues: Of the curvature of the sum of the losses.
        temperature: Divides the log likelihood.
        prior_precision: Of every weight.
    """
    return (eigenvalues / temperature + prior_precision).rsqrt()


def maximize_evidence(eigenvalues: Float[Tensor, " params"], squared_norm: float) -> float:
    """The prior precision δ that maximises the evidence of Laplace's method (MacKay, Neural Computation 1992).

    What δ changes in the log evidence, the weights being held, is (P log δ - sum log(λ + δ) - δ ||w||²) / 2. That is
    largest where δ ||w||² is the number of weights determined by the data, γ(δ) = sum λ / (λ + δ). As a function of
    log δ, log γ(δ) - log δ has a slope between -2 and -1; so a step of two thirds of what it is off by leaves at most
    a third of the error, from anywhere.

    Args:
        eigenvalues: λ, of the curvature of the log likelihood.
        squared_norm: ||w||² of the weights that they belong to.

    Raises:
        ValueError: There is no maximum, because the weights or the eigenvalues are all zero.
    """
    values = eigenvalues.detach().cpu().double()
    if not (squared_norm > 0 and values.max() > 0 and values.sum().isfinite()):
        raise ValueError(
            f"The evidence has no maximum: the weights have squared norm {squared_norm:g}, and the largest "
            f"eigenvalue of the curvature is {float(values.max()):g}. Set prior_precision, and tune='none'."
        )
    precision = float(values.sum()) / squared_norm
    for _ in range(40):
        determined = float((values / (values + precision)).sum())
        precision *= (determined / (precision * squared_norm)) ** (2 / 3)
    return precision
