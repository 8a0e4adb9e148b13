"""Laplace's estimate of the log evidence of a trained network, to compare models without validation examples.

    log p(D) ≈ log p(D | w) + log p(w) + P/2 log 2π - ½ log det(G + δ I)
             = log p(D | w) - ½ (δ ||w||² + sum log(1 + λ / δ))

at trained weights w, with the prior N(0, I/δ) and the eigenvalues λ of the generalised Gauss-Newton matrix G of the
summed negative log likelihood (MacKay, Neural Computation 1992; for networks Immer et al., ICML 2021). The second
term, the log of the Occam factor, is the price of a sharp solution: it falls with the curvature.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from flatbayes.core.buffers import eval_mode
from flatbayes.core.display import format_entries, format_fields
from flatbayes.core.names import check_choice, format_count
from flatbayes.core.network_calls import differentiable_recurrence
from flatbayes.core.networks import check_real
from flatbayes.core.tensor_lists import flatten
from flatbayes.diagnostics.loss_surface import LossSurface
from flatbayes.diagnostics.posterior_sharpness import prepare_batches
from flatbayes.posteriors.curvature import CurvatureStructure, maximize_evidence
from flatbayes.posteriors.curvature_structures import make_curvature
from flatbayes.prediction import FittedPosterior


@dataclass(frozen=True)
class Evidence:
    """Laplace's estimate of the log evidence, and its terms. All logarithms are natural.

    Attributes:
        log_likelihood: Log likelihood of all training examples at the weights, in nats.
        log_occam_factor: Log of the Occam factor, -½ (δ ||w||² + sum log(1 + λ / δ)), in nats; at most 0.
        prior_precision: δ, the precision of the prior of every weight.
        effective_params: sum λ / (λ + δ), the number of weights that the data determine.
        num_params: Number of weights with a distribution.
        num_data: Number of training examples.

    Examples:
        >>> evidence = estimate_evidence(fitted, inputs, labels)
        >>> evidence.log_evidence <= evidence.log_likelihood
        True
    """

    log_likelihood: float
    log_occam_factor: float
    prior_precision: float
    effective_params: float
    num_params: int
    num_data: int

    __repr__ = format_fields

    @property
    def log_evidence(self) -> float:
        """Sum of log likelihood and log Occam factor, in nats."""
        return self.log_likelihood + self.log_occam_factor

    def summary(self) -> str:
        """The log evidence and its terms, of all examples and of each, as text."""
        entries = {
            name: f"{value:.4g} nats, {value / self.num_data:.4g} for each example"
            for name, value in (
                ("log evidence", self.log_evidence),
                ("log likelihood", self.log_likelihood),
                ("log Occam factor", self.log_occam_factor),
            )
        }
        entries["prior precision"] = f"{self.prior_precision:.4g}"
        entries["effective weights"] = f"{self.effective_params:.4g} of {self.num_params:,}"
        return format_entries(f"Evidence of {format_count(self.num_data, 'example')}", entries)


def estimate_evidence(
    fitted: FittedPosterior,
    inputs: Any,
    targets: Any = None,
    *,
    structure: CurvatureStructure | None = None,
    prior_precision: float | None = None,
    member: int = 0,
    batch_size: int = 256,
) -> Evidence:
    """Estimate the log evidence of the network of a posterior at the end of training.

    Of several models of the same training examples, the one with the highest evidence is the most probable if all
    were equally probable before. The estimate is for weights at a minimum of loss and prior, and not for training
    that stopped early. Structures of the last layer take the features as given. Estimates of different structures
    cannot be compared. Where there are validation examples, they choose better (docs/sharpness.md).

    Args:
        fitted: The posterior. Of SWAG and samplers the network of the last step is taken, as for sharpness.
        inputs: The training examples in their form. Without `targets`, a split or a pair `(inputs, targets)`. Sums
            over a part of them are scaled to the number of training examples.
        targets: Targets of the examples, in a form that `evaluate` takes.
        structure: Approximation of the curvature, and the weights that have a distribution, as for `Laplace`; by
            default that of the last layer.
        prior_precision: δ; by default that of the highest evidence.
        member: Number of the network where there are several, from 0 on.
        batch_size: Examples per forward pass.

    Raises:
        ValueError: The structure does not support the network, or there is no such network, no example, or no
            maximum of the evidence.

    Examples:
        >>> evidence = estimate_evidence(fitted, inputs, labels, structure="diag", prior_precision=1.0)
        >>> 0 < evidence.effective_params < evidence.num_params
        True
    """
    if structure is not None:
        check_choice("structure", structure, CurvatureStructure)
    if not 0 <= member < len(fitted.states):
        raise ValueError(f"member must be from 0 to {len(fitted.states) - 1}, got {member}.")
    if prior_precision is not None and not 0 < prior_precision < math.inf:
        raise ValueError(f"prior_precision must be positive and finite, got {prior_precision}.")
    batches = prepare_batches(fitted, inputs, targets, batch_size)
    state, loss_fn = fitted.states[member], fitted.likelihood.loss
    curvature = make_curvature(structure, state.model)
    check_real(curvature.params.items(), "estimate_evidence")
    num_examples = sum(len(batch_targets) for _, batch_targets in batches)
    with eval_mode(state.model), differentiable_recurrence(state.model):
        eigenvalues = curvature.compute_eigenvalues(curvature.compute_curvature(batches, loss_fn))
    weights = flatten([param.detach() for param in curvature.params.values()])
    return compute_evidence(
        log_likelihood=-state.num_data * LossSurface(state.model, loss_fn, batches).loss(),
        eigenvalues=eigenvalues * (state.num_data / num_examples),
        squared_norm=float(weights.double().square().sum()),
        num_params=weights.numel(),
        num_data=state.num_data,
        prior_precision=prior_precision,
    )


def compute_evidence(
    log_likelihood: float,
    eigenvalues: Float[Tensor, " directions"],
    squared_norm: float,
    num_params: int,
    num_data: int,
    prior_precision: float | None = None,
) -> Evidence:
    """The log evidence from its terms.

    Args:
        log_likelihood: Log likelihood of all training examples at the weights, in nats.
        eigenvalues: λ, eigenvalues of the curvature of the negative log likelihood; those left out are 0.
        squared_norm: ||w||² of the weights with a distribution.
        num_params: Their number.
        num_data: Number of training examples.
        prior_precision: δ; by default that of the highest evidence.

    Raises:
        ValueError: The evidence has no maximum, because the weights or the eigenvalues are all zero.

    Examples:
        >>> evidence = compute_evidence(-3.0, torch.tensor([3.0]), 1.0, num_params=1, num_data=2, prior_precision=1.0)
        >>> evidence.log_occam_factor
        -1.1931471805599454
    """
    values = eigenvalues.detach().cpu().double().clamp(min=0)
    precision = maximize_evidence(values, squared_norm) if prior_precision is None else float(prior_precision)
    occam = -0.5 * (precision * squared_norm + float(torch.log1p(values / precision).sum()))
    effective_params = float((values / (values + precision)).sum())
    return Evidence(log_likelihood, occam, precision, effective_params, num_params, num_data)
