"""Approximations of the curvature of a loss and their Gaussians: diagonal, last layer and Kronecker factors."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flatbayes.core import Examples, LossFn
from flatbayes.core.devices import to_double
from flatbayes.core.input_trees import ModelInputs
from flatbayes.core.linear_head import extract_features
from flatbayes.core.tensor_lists import unflatten
from flatbayes.core.traversal import trainable_by_name
from flatbayes.posteriors.curvature import (
    CurvatureApproximation,
    CurvatureStructure,
    posterior_std,
    scale_noise,
    split_batches,
)
from flatbayes.posteriors.diagonal_ggn import DiagonalGgn
from flatbayes.posteriors.ggn import (
    ExampleVjps,
    allocate_zeros,
    check_finite_curvature,
    count_weights,
    decompose_psd,
    factorize_loss_hessian,
    iter_ggn_vectors,
)
from flatbayes.posteriors.kfac import KroneckerFactors, add_factors, find_kfac_layers, get_matrix_shape, split_columns
from flatbayes.posteriors.last_layer import (
    LastLayerGgn,
    compute_eigenvalues,
    factorize_covariance,
    factorize_low_rank_covariance,
    find_last_linear,
)
from flatbayes.posteriors.layer_calls import MatrixLayer, name_layer_parameters, unfold_inputs

MAX_EXAMPLES_PER_GRAPH = 128
"""Largest number of examples in one autograd graph, whatever the batch size."""
MAX_EXAMPLES_PER_CALL = 256
"""Largest number of examples in one call of the network without a graph."""
MAX_EXACT_WEIGHTS = 12_000
"""Most weights of a last layer that has its exact GGN where no structure is given: 600 MB in single precision."""


def make_curvature(structure: CurvatureStructure | None, model: nn.Module) -> CurvatureApproximation:
    """Return the approximation of a structure for a model; for None see `Laplace`.

    Raises:
        ValueError: The model has no layer of the structure, or an unsupported one.
    """
    if structure == "diag":
        return DiagonalCurvature(model)
    if structure == "kron":
        return KroneckerCurvature(model, find_kfac_layers(model))
    layer = find_last_linear(model)
    exact = LastLayerCurvature(model, layer)
    if structure == "last_layer" or (structure is None and count_weights(exact.params) <= MAX_EXACT_WEIGHTS):
        return exact
    return KroneckerCurvature(model, {name: layer for name, module in model.named_modules() if module is layer})


@dataclass(frozen=True, eq=False)
class DiagonalCurvature(CurvatureApproximation):
    """Exact diagonal of the GGN of any network; the basis is the standard basis."""

    model: nn.Module

    @cached_property
    def params(self) -> dict[str, nn.Parameter]:
        """All trainable parameters."""
        return trainable_by_name(self.model)

    def allocate_statistics(self) -> dict[str, Tensor]:
        """Return zero eigenvalues."""
        return {"eigenvalues": allocate_zeros(self.params, count_weights(self.params))}

    def compute_curvature(self, examples: Examples, loss_fn: LossFn) -> dict[str, Tensor]:
        """Return the diagonal as eigenvalues."""
        total: DiagonalGgn | None = None
        for inputs, targets in split_batches(examples, MAX_EXAMPLES_PER_GRAPH):
            if total is None:
                total = DiagonalGgn.of(self.model, self.params, inputs, targets, loss_fn)
            total.add(inputs, targets, loss_fn)
        if total is None:
            return self.allocate_statistics()
        diagonal = total.compute()
        check_finite_curvature(diagonal)
        return {"eigenvalues": diagonal}

    def compute_offsets(
        self, statistics: Mapping[str, Tensor], noise: Float[Tensor, " params"], temperature: float
    ) -> list[Tensor]:
        """Return the coordinates in the shapes of the parameters."""
        return unflatten(scale_noise(statistics, noise, temperature), list(self.params.values()))


@dataclass(frozen=True, eq=False)
class LastLayerCurvature(CurvatureApproximation):
    """Exact GGN of the last linear layer, as the square root `scale` of the covariance."""

    model: nn.Module
    layer: nn.Linear

    @cached_property
    def params(self) -> dict[str, nn.Parameter]:
        """Weight and bias of the layer."""
        return name_layer_parameters(self.model, [self.layer])

    def allocate_statistics(self) -> dict[str, Tensor]:
        """Return a zero `scale`, with the weights as rows."""
        return {"scale": self.allocate_matrix()}

    def allocate_matrix(self) -> Float[Tensor, "params params"]:
        """Return zeros.

        Raises:
            ValueError: There is not enough memory for them.
        """
        size = count_weights(self.params)
        try:
            return allocate_zeros(self.params, size, size)
        except RuntimeError as error:  # of torch, without a class of its own on a CPU
            raise ValueError(
                f"structure='last_layer' keeps a matrix of {size:,} x {size:,} numbers, one row for each weight of "
                "the last layer, and there is not enough memory for it. Use structure='last_layer_kron'."
            ) from error

    def check(self, inputs: ModelInputs, targets: Tensor, loss_fn: LossFn) -> None:
        """Compute features and the derivatives of the loss, or else vectors of the GGN."""
        computed = self._compute_features(inputs)
        if computed is None:
            next(iter_ggn_vectors(ExampleVjps(self.model, self.params), inputs, targets, loss_fn))
        else:
            factorize_loss_hessian(computed[0], targets, loss_fn)

    @torch.no_grad()
    def compute_curvature(self, examples: Examples, loss_fn: LossFn) -> dict[str, Tensor]:
        """Return the GGN as a `matrix`, or as columns `vectors` with the sum of v vᵀ where there are few of them."""
        vjps, total = ExampleVjps(self.model, self.params), LastLayerGgn(self.layer, self.allocate_matrix)
        for inputs, targets in split_batches(examples, MAX_EXAMPLES_PER_CALL):
            computed = self._compute_features(inputs)
            if computed is None:
                for vectors in iter_ggn_vectors(vjps, inputs, targets, loss_fn):
                    total.add_vectors(vectors.T)
            else:
                outputs, features = computed
                total.add_features(features, factorize_loss_hessian(outputs, targets, loss_fn))
        return total.compute()

    def compute_eigenvalues(self, curvature: Mapping[str, Tensor]) -> Float[Tensor, " params"]:
        """Return the eigenvalues of the GGN; of vectors as many as there are vectors, since the others are zero."""
        if "vectors" in curvature:
            vectors = to_double(curvature["vectors"])
            return compute_eigenvalues(vectors.T @ vectors).to(curvature["vectors"])
        return compute_eigenvalues(curvature["matrix"])

    def make_statistics(
        self, curvature: Mapping[str, Tensor], factor: float, temperature: float, prior_precision: Tensor
    ) -> dict[str, Tensor]:
        """Return the square root of the covariance."""
        if "vectors" in curvature:
            vectors = curvature["vectors"] * (factor / temperature) ** 0.5
            return {"scale": factorize_low_rank_covariance(vectors, prior_precision)}
        return {"scale": factorize_covariance(curvature["matrix"] * (factor / temperature), prior_precision)}

    def convert_statistics(self, statistics: dict[str, Tensor], temperature: float) -> dict[str, Tensor]:
        """Return the square root from an eigendecomposition, whose draws are the same."""
        size = count_weights(self.params)
        shapes = {"eigenvectors": (size, size), "eigenvalues": (size,), "prior_precision": ()}
        if any(name not in statistics or statistics[name].shape != shape for name, shape in shapes.items()):
            return statistics  # of this version, or not of this network
        others = {name: tensor for name, tensor in statistics.items() if not name.startswith("eigen")}
        std = posterior_std(statistics["eigenvalues"], temperature, statistics["prior_precision"])
        return others | {"scale": statistics["eigenvectors"] * std}

    def compute_offsets(
        self, statistics: Mapping[str, Tensor], noise: Float[Tensor, " params"], temperature: float
    ) -> list[Tensor]:
        """Return the product of the square root and the noise."""
        return unflatten(statistics["scale"] @ noise, list(self.params.values()))

    def compute_draws(
        self, statistics: Mapping[str, Tensor], noise: Float[Tensor, "draws params"], temperature: float
    ) -> Float[Tensor, "draws params"]:
        """Return the offsets with one product."""
        return noise @ statistics["scale"].T

    def _compute_features(self, inputs: ModelInputs) -> tuple[Tensor, Tensor] | None:
        """Return outputs, and features with an appended 1 for the bias; None where the outputs are not W φ + bias."""
        with extract_features(self.model, self.layer) as extractor:
            outputs, features = (None, None) if extractor is None else extractor.compute(inputs)
        if outputs is None or features is None or features.numel() != len(outputs) * features.shape[-1]:
            return None  # also with several positions
        return outputs, unfold_inputs(self.layer, features)


@dataclass(frozen=True, eq=False)
class KroneckerCurvature(CurvatureApproximation):
    """KFAC approximation of the GGN; the basis of a layer is the Kronecker product of those of its two factors."""

    model: nn.Module
    layers: Mapping[str, MatrixLayer]

    @cached_property
    def params(self) -> dict[str, nn.Parameter]:
        """Weights and biases of linear and convolutional layers."""
        return name_layer_parameters(self.model, self.layers.values())

    def allocate_statistics(self) -> dict[str, Tensor]:
        """Return zero eigenvalues, and for each layer the eigenvectors of its two factors as columns."""
        statistics = {"eigenvalues": allocate_zeros(self.params, count_weights(self.params))}
        for name, layer in self.layers.items():
            num_rows, num_columns = get_matrix_shape(layer)
            statistics[f"outputs.{name}"] = allocate_zeros(self.params, num_rows, num_rows)
            statistics[f"inputs.{name}"] = allocate_zeros(self.params, num_columns, num_columns)
        return statistics

    def check(self, inputs: ModelInputs, targets: Tensor, loss_fn: LossFn) -> None:
        """Compute the Kronecker factors."""
        add_factors(self._allocate_factors(), self.layers, self.model, inputs, targets, loss_fn)

    def compute_curvature(self, examples: Examples, loss_fn: LossFn) -> dict[str, Tensor]:
        """Return the eigendecompositions; eigenvalues of a Kronecker product are products of the factors' ones."""
        statistics, factors = dict[str, Tensor](), self._allocate_factors()
        for inputs, targets in split_batches(examples, MAX_EXAMPLES_PER_GRAPH):
            add_factors(factors, self.layers, self.model, inputs, targets, loss_fn)
        eigenvalues = []
        for name, factor in factors.items():
            input_values, statistics[f"inputs.{name}"] = decompose_psd(factor.input_factor)
            output_values, statistics[f"outputs.{name}"] = decompose_psd(factor.output_factor / factor.num_positions)
            eigenvalues.append(torch.outer(output_values, input_values).flatten())
        return statistics | {"eigenvalues": torch.cat(eigenvalues)}

    def compute_offsets(
        self, statistics: Mapping[str, Tensor], noise: Float[Tensor, " params"], temperature: float
    ) -> list[Tensor]:
        """Return U_outputs C U_inputsᵀ for each layer, with C its coordinates as a matrix."""
        shapes = [get_matrix_shape(layer) for layer in self.layers.values()]
        coordinates = scale_noise(statistics, noise, temperature)
        pieces = coordinates.split([num_rows * num_columns for num_rows, num_columns in shapes])
        offsets = []
        for (name, layer), shape, piece in zip(self.layers.items(), shapes, pieces, strict=True):
            matrix = statistics[f"outputs.{name}"] @ piece.view(shape) @ statistics[f"inputs.{name}"].T
            offsets += split_columns(matrix, layer)
        return offsets

    def _allocate_factors(self) -> dict[str, KroneckerFactors]:
        statistics = self.allocate_statistics()
        return {
            name: KroneckerFactors(statistics[f"inputs.{name}"], statistics[f"outputs.{name}"])
            for name in self.layers
        }
