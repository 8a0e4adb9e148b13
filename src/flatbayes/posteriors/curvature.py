"""What an approximation of the curvature of a loss offers to `Laplace`, and what all of them share.

The diagonal and the Kronecker factors are kept as eigendecompositions. The curvature is diagonal in its eigenbasis,
and so is its sum with an isotropic prior precision, so that another prior needs no new factorization. The matrix of a
last layer, whose size is the square of the layer's, is factorized once, for the prior and the temperature of the fit.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flatbayes.core import Examples, LossFn
from flatbayes.core.input_trees import ModelInputs, split_examples
from flatbayes.core.tensor_lists import flatten

CurvatureStructure = Literal["diag", "kron", "last_layer", "last_layer_kron"]
"""Approximation of the curvature, see `Laplace`."""


class CurvatureApproximation(ABC):
    """Parameters with a distribution, and the curvature in them."""

    @property
    @abstractmethod
    def params(self) -> dict[str, nn.Parameter]:
        """Parameters by name, in the order of their coordinates."""

    @abstractmethod
    def allocate_statistics(self) -> dict[str, Tensor]:
        """Return zeros in the names and shapes of `make_statistics`."""

    @abstractmethod
    def compute_curvature(self, examples: Examples, loss_fn: LossFn) -> dict[str, Tensor]:
        """Return the curvature of the summed loss of the examples, with the model in eval mode."""

    def check(self, inputs: ModelInputs, targets: Tensor, loss_fn: LossFn) -> None:
        """Compute derivatives as in `compute_curvature` for a batch of one example, without a factorization."""
        self.compute_curvature([(inputs, targets)], loss_fn)

    def compute_eigenvalues(self, curvature: Mapping[str, Tensor]) -> Float[Tensor, " params"]:
        """Return the eigenvalues of the result of `compute_curvature`."""
        return curvature["eigenvalues"]

    def make_statistics(
        self, curvature: Mapping[str, Tensor], factor: float, temperature: float, prior_precision: Tensor
    ) -> dict[str, Tensor]:
        """Return what draws need of factor curvature / temperature + prior_precision."""
        return {**curvature, "eigenvalues": curvature["eigenvalues"] * factor}

    def convert_statistics(self, statistics: dict[str, Tensor], temperature: float) -> dict[str, Tensor]:
        """Return statistics as `make_statistics` does, from those of an artefact of an earlier version."""
        return statistics

    @abstractmethod
    def compute_offsets(
        self, statistics: Mapping[str, Tensor], noise: Float[Tensor, " params"], temperature: float
    ) -> list[Tensor]:
        """Transform normal noise to offsets of the parameters, in the order and shapes of `params`.

        The statistics are those of `make_statistics`, and the `prior_precision`.
        """

    def compute_draws(
        self, statistics: Mapping[str, Tensor], noise: Float[Tensor, "draws params"], temperature: float
    ) -> Float[Tensor, "draws params"]:
        """Return the offsets of several draws, each as one vector; arguments as for `compute_offsets`."""
        return torch.stack([flatten(self.compute_offsets(statistics, row, temperature)) for row in noise])


def posterior_std(
    eigenvalues: Float[Tensor, " params"], temperature: float, prior_precision: Float[Tensor, ""]
) -> Float[Tensor, " params"]:
    """Return the standard deviations 1 / sqrt(eigenvalue / temperature + prior_precision) along the eigenvectors."""
    return (eigenvalues / temperature + prior_precision).rsqrt()


def maximize_evidence(eigenvalues: Float[Tensor, " params"], squared_norm: float) -> float:
    """Return the prior precision δ that maximizes the Laplace evidence (MacKay, Neural Computation 1992).

    For fixed weights the terms with δ in the log evidence are (P log δ - sum log(λ + δ) - δ ||w||²) / 2. At the
    maximum δ ||w||² equals the effective number of parameters γ(δ) = sum λ / (λ + δ). As a function of log δ, log
    γ(δ) - log δ has a slope between -2 and -1. A step of two thirds of the residual therefore reduces the error to at
    most one third, from any start.

    Args:
        eigenvalues: λ, eigenvalues of the curvature of the negative log likelihood.
        squared_norm: ||w||² of the corresponding weights.

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
        effective_params = float((values / (values + precision)).sum())
        precision *= (effective_params / (precision * squared_norm)) ** (2 / 3)
    return precision


def scale_noise(statistics: Mapping[str, Tensor], noise: Tensor, temperature: float) -> Tensor:
    """Return coordinates in the eigenbasis."""
    return posterior_std(statistics["eigenvalues"], temperature, statistics["prior_precision"]) * noise


def split_batches(examples: Examples, size: int) -> Iterator[tuple[ModelInputs, Tensor]]:
    """Yield batches of at least one and at most `size` examples."""
    for inputs, targets in examples:
        if len(targets):
            yield from zip(split_examples(inputs, size), targets.split(size), strict=True)
