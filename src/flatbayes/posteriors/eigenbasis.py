"""Eigendecompositions of three curvature approximations: diagonal, last layer, and Kronecker factors.

The curvature is diagonal in its eigenbasis, and so is its sum with an isotropic prior precision. Another prior
therefore needs no new factorization, and single precision suffices where the Cholesky factorization of an
ill-conditioned sum would fail.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flatbayes.core import Examples, LossFn
from flatbayes.core.input_trees import ModelInputs, slice_examples
from flatbayes.core.tensor_lists import unflatten
from flatbayes.core.weights import promoted_dtype
from flatbayes.posteriors.ggn import (
    ExampleVjps,
    check_finite_curvature,
    decompose_psd,
    ggn_diagonal,
    ggn_matrix,
    iter_ggn_vectors,
)
from flatbayes.posteriors.kfac import (
    KfacLayer,
    KroneckerFactors,
    add_factors,
    find_kfac_layers,
    get_layer_parameters,
    get_matrix_shape,
    split_columns,
)

CurvatureStructure = Literal["diag", "kron", "last_layer"]
"""Approximation of the curvature, see `Laplace`."""


class Eigenbasis(ABC):
    """Parameters with a distribution, and the eigendecomposition of the curvature in them."""

    @property
    @abstractmethod
    def params(self) -> dict[str, nn.Parameter]:
        """Parameters by name, in the order of their coordinates."""

    @abstractmethod
    def allocate_statistics(self) -> dict[str, Tensor]:
        """Return zeros in the names and shapes of `compute_statistics`; `eigenvalues` has shape (params,)."""

    @abstractmethod
    def compute_statistics(self, examples: Examples, loss_fn: LossFn) -> dict[str, Tensor]:
        """Return eigenvalues and basis of the curvature of the summed loss of the examples.

        Args:
            examples: Batches of inputs and targets; the model is in eval mode.
            loss_fn: Mean loss of a batch.
        """

    @abstractmethod
    def check(self, inputs: ModelInputs, targets: Tensor, loss_fn: LossFn) -> None:
        """Compute derivatives as in `compute_statistics` on a few examples, without an eigendecomposition."""

    @abstractmethod
    def compute_offsets(
        self, statistics: Mapping[str, Tensor], coordinates: Float[Tensor, " params"]
    ) -> list[Tensor]:
        """Transform coordinates in the eigenbasis to offsets of the parameters.

        Args:
            statistics: The result of `compute_statistics`.
            coordinates: Coordinates in the eigenbasis.

        Returns:
            One tensor per parameter, in the order and shapes of `params`.
        """


def make_eigenbasis(structure: CurvatureStructure, model: nn.Module) -> Eigenbasis:
    """Return the eigenbasis of a structure for a model.

    Raises:
        ValueError: The model has no layer of the structure, or an unsupported one.
    """
    if structure == "diag":
        return DiagonalEigenbasis(model)
    if structure == "kron":
        return KroneckerEigenbasis(model, find_kfac_layers(model))
    return LastLayerEigenbasis(model, find_last_linear(model))


@dataclass(frozen=True, eq=False)
class DiagonalEigenbasis(Eigenbasis):
    """Exact diagonal of the GGN of any network; the basis is the standard basis.

    Attributes:
        model: The network.
    """

    model: nn.Module

    @property
    def params(self) -> dict[str, nn.Parameter]:
        """All trainable parameters."""
        return {name: param for name, param in self.model.named_parameters() if param.requires_grad}

    def allocate_statistics(self) -> dict[str, Tensor]:
        """Return zero eigenvalues."""
        return {"eigenvalues": _allocate_zeros(self.params, _count_weights(self.params))}

    def check(self, inputs: ModelInputs, targets: Tensor, loss_fn: LossFn) -> None:
        """Compute vectors of the GGN of one example."""
        vjps = ExampleVjps(self.model, self.params)
        next(iter_ggn_vectors(vjps, slice_examples(inputs, slice(1)), targets[:1], loss_fn))

    def compute_statistics(self, examples: Examples, loss_fn: LossFn) -> dict[str, Tensor]:
        """Return the diagonal as eigenvalues."""
        statistics, vjps = self.allocate_statistics(), ExampleVjps(self.model, self.params)
        for inputs, targets in examples:
            statistics["eigenvalues"] += ggn_diagonal(vjps, inputs, targets, loss_fn)
        check_finite_curvature(statistics["eigenvalues"])
        return statistics

    def compute_offsets(
        self, statistics: Mapping[str, Tensor], coordinates: Float[Tensor, " params"]
    ) -> list[Tensor]:
        """Return the coordinates in the shapes of the parameters."""
        return unflatten(coordinates, list(self.params.values()))


@dataclass(frozen=True, eq=False)
class LastLayerEigenbasis(Eigenbasis):
    """Exact GGN of the last linear layer.

    Attributes:
        model: The network.
        layer: Its last linear layer.
    """

    model: nn.Module
    layer: nn.Linear

    @property
    def params(self) -> dict[str, nn.Parameter]:
        """Weight and bias of the layer."""
        return _collect_layer_parameters(self.model, [self.layer])

    def allocate_statistics(self) -> dict[str, Tensor]:
        """Return zero eigenvalues, and eigenvectors as columns."""
        size = _count_weights(self.params)
        return {
            "eigenvalues": _allocate_zeros(self.params, size),
            "eigenvectors": _allocate_zeros(self.params, size, size),
        }

    def check(self, inputs: ModelInputs, targets: Tensor, loss_fn: LossFn) -> None:
        """Compute vectors of the GGN of one example."""
        vjps = ExampleVjps(self.model, self.params)
        next(iter_ggn_vectors(vjps, slice_examples(inputs, slice(1)), targets[:1], loss_fn))

    def compute_statistics(self, examples: Examples, loss_fn: LossFn) -> dict[str, Tensor]:
        """Return eigenvalues and eigenvectors of the GGN."""
        matrix, vjps = self.allocate_statistics()["eigenvectors"], ExampleVjps(self.model, self.params)
        for inputs, targets in examples:
            matrix += ggn_matrix(vjps, inputs, targets, loss_fn)
        values, vectors = decompose_psd(matrix)
        return {"eigenvalues": values, "eigenvectors": vectors}

    def compute_offsets(
        self, statistics: Mapping[str, Tensor], coordinates: Float[Tensor, " params"]
    ) -> list[Tensor]:
        """Return the product of eigenvectors and coordinates."""
        return unflatten(statistics["eigenvectors"] @ coordinates, list(self.params.values()))


@dataclass(frozen=True, eq=False)
class KroneckerEigenbasis(Eigenbasis):
    """KFAC approximation of the GGN; the basis of a layer is the Kronecker product of those of its two factors.

    Attributes:
        model: The network.
        layers: Its linear and convolutional layers, by name.
    """

    model: nn.Module
    layers: Mapping[str, KfacLayer]

    @property
    def params(self) -> dict[str, nn.Parameter]:
        """Weights and biases of linear and convolutional layers."""
        return _collect_layer_parameters(self.model, list(self.layers.values()))

    def allocate_statistics(self) -> dict[str, Tensor]:
        """Return zero eigenvalues, and for each layer the eigenvectors of its two factors as columns."""
        statistics = {"eigenvalues": _allocate_zeros(self.params, _count_weights(self.params))}
        for name, layer in self.layers.items():
            num_rows, num_columns = get_matrix_shape(layer)
            statistics[f"outputs.{name}"] = _allocate_zeros(self.params, num_rows, num_rows)
            statistics[f"inputs.{name}"] = _allocate_zeros(self.params, num_columns, num_columns)
        return statistics

    def check(self, inputs: ModelInputs, targets: Tensor, loss_fn: LossFn) -> None:
        """Compute the factors of one example."""
        add_factors(
            self._allocate_factors(), self.layers, self.model, slice_examples(inputs, slice(1)), targets[:1], loss_fn
        )

    def compute_statistics(self, examples: Examples, loss_fn: LossFn) -> dict[str, Tensor]:
        """Return the eigendecompositions; eigenvalues of a Kronecker product are products of the factors' ones."""
        statistics, factors = dict[str, Tensor](), self._allocate_factors()
        for inputs, targets in examples:
            add_factors(factors, self.layers, self.model, inputs, targets, loss_fn)
        eigenvalues = []
        for name, factor in factors.items():
            input_values, statistics[f"inputs.{name}"] = decompose_psd(factor.input_factor)
            output_values, statistics[f"outputs.{name}"] = decompose_psd(factor.output_factor / factor.num_positions)
            eigenvalues.append(torch.outer(output_values, input_values).flatten())
        return statistics | {"eigenvalues": torch.cat(eigenvalues)}

    def compute_offsets(
        self, statistics: Mapping[str, Tensor], coordinates: Float[Tensor, " params"]
    ) -> list[Tensor]:
        """Return U_outputs C U_inputsᵀ for each layer, with C its coordinates as a matrix."""
        shapes = [get_matrix_shape(layer) for layer in self.layers.values()]
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


def find_last_linear(model: nn.Module) -> nn.Linear:
    """Return the last linear layer with trainable weights, in registration order.

    Raises:
        ValueError: There is none.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear) and get_layer_parameters(layer)]
    if not layers:
        raise ValueError(
            f"{type(model).__name__} has no torch.nn.Linear with trainable weights, which structure='last_layer' "
            "needs. Use structure='kron' or 'diag'."
        )
    return layers[-1]


def _collect_layer_parameters(model: nn.Module, layers: list[KfacLayer]) -> dict[str, nn.Parameter]:
    names = {id(param): name for name, param in model.named_parameters()}
    return {names[id(param)]: param for layer in layers for param in get_layer_parameters(layer).values()}


def _count_weights(params: Mapping[str, Tensor]) -> int:
    return sum(param.numel() for param in params.values())


def _allocate_zeros(params: Mapping[str, Tensor], *shape: int) -> Tensor:
    return next(iter(params.values())).new_zeros(*shape, dtype=promoted_dtype(params.values()), requires_grad=False)
