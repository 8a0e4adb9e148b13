"""Three approximations of the curvature of a loss, each as eigenvalues and the basis that they belong to.

In its eigenbasis the curvature is diagonal, and so is its sum with the precision of a prior that is the same for all
weights. So nothing is factorised anew for another prior, and single precision is enough where a Cholesky factor of a
badly conditioned sum would not exist.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flatbayes.core import Examples, LossFn
from flatbayes.core.weights import unflatten
from flatbayes.posteriors.ggn import decompose_psd, ggn_diagonal, ggn_matrix
from flatbayes.posteriors.kfac import (
    KroneckerFactors,
    add_factors,
    find_kfac_layers,
    get_layer_parameters,
    layer_shape,
    split_columns,
)

CurvatureStructure = Literal["diag", "kron", "last_layer"]
"""How the curvature is approximated, see `Laplace`."""


class Eigenbasis(ABC):
    """Parameters with a distribution, and the form that the curvature of the loss in them is held in."""

    @property
    @abstractmethod
    def params(self) -> dict[str, nn.Parameter]:
        """The parameters by name, in the order of their coordinates."""

    @abstractmethod
    def allocate_statistics(self) -> dict[str, Tensor]:
        """Zeros of the names and shapes that `measured` returns, of which one is `eigenvalues`, shape (params,)."""

    @abstractmethod
    def compute_statistics(self, examples: Examples, loss_fn: LossFn) -> dict[str, Tensor]:
        """Eigenvalues and basis of the curvature of the sum of the losses of the examples, the model in eval mode."""

    @abstractmethod
    def compute_offsets(
        self, statistics: Mapping[str, Tensor], coordinates: Float[Tensor, " params"]
    ) -> list[Tensor]:
        """The displacement, in the shapes of `params`, that has the given coordinates in a measured basis."""


def make_eigenbasis(structure: CurvatureStructure, model: nn.Module) -> Eigenbasis:
    """The basis of a structure.

    Raises:
        ValueError: The model has no layer that the structure is about, or one that it cannot treat.
    """
    if structure == "diag":
        return DiagonalEigenbasis(model)
    return (
        KroneckerEigenbasis(model, find_kfac_layers(model))
        if structure == "kron"
        else LastLayerEigenbasis(model, find_last_linear(model))
    )


@dataclass(frozen=True, eq=False)
class DiagonalEigenbasis(Eigenbasis):
    """The diagonal of the GGN of any network; the basis is that of the weights themselves."""

    model: nn.Module

    @property
    def params(self) -> dict[str, nn.Parameter]:
        """All that are trainable."""
        return {name: param for name, param in self.model.named_parameters() if param.requires_grad}

    def allocate_statistics(self) -> dict[str, Tensor]:
        """Eigenvalues."""
        return {"eigenvalues": _allocate_zeros(self.params, _count_weights(self.params))}

    def compute_statistics(self, examples: Examples, loss_fn: LossFn) -> dict[str, Tensor]:
        """The diagonal, exactly."""
        found, params = self.allocate_statistics(), self.params
        for inputs, targets in examples:
            found["eigenvalues"] += ggn_diagonal(self.model, params, inputs, targets, loss_fn)
        return found

    def compute_offsets(
        self, statistics: Mapping[str, Tensor], coordinates: Float[Tensor, " params"]
    ) -> list[Tensor]:
        """The coordinates as they are."""
        return unflatten(coordinates, list(self.params.values()))


@dataclass(frozen=True, eq=False)
class LastLayerEigenbasis(Eigenbasis):
    """The whole GGN of one layer."""

    model: nn.Module
    layer: nn.Module

    @property
    def params(self) -> dict[str, nn.Parameter]:
        """The layer's weight and bias."""
        return _collect_layer_parameters(self.model, [self.layer])

    def allocate_statistics(self) -> dict[str, Tensor]:
        """Eigenvalues, and eigenvectors as columns."""
        size = _count_weights(self.params)
        return {
            "eigenvalues": _allocate_zeros(self.params, size),
            "eigenvectors": _allocate_zeros(self.params, size, size),
        }

    def compute_statistics(self, examples: Examples, loss_fn: LossFn) -> dict[str, Tensor]:
        """Those of the exact GGN."""
        matrix, params = self.allocate_statistics()["eigenvectors"], self.params
        for inputs, targets in examples:
            matrix += ggn_matrix(self.model, params, inputs, targets, loss_fn)
        values, vectors = decompose_psd(matrix)
        return {"eigenvalues": values, "eigenvectors": vectors}

    def compute_offsets(
        self, statistics: Mapping[str, Tensor], coordinates: Float[Tensor, " params"]
    ) -> list[Tensor]:
        """Eigenvectors times coordinates."""
        return unflatten(statistics["eigenvectors"] @ coordinates, list(self.params.values()))


@dataclass(frozen=True, eq=False)
class KroneckerEigenbasis(Eigenbasis):
    """KFAC's approximation of the GGN; a layer's basis is the Kronecker product of those of its two factors."""

    model: nn.Module
    layers: Mapping[str, nn.Module]

    @property
    def params(self) -> dict[str, nn.Parameter]:
        """Weights and biases of linear and convolutional layers."""
        return _collect_layer_parameters(self.model, list(self.layers.values()))

    def allocate_statistics(self) -> dict[str, Tensor]:
        """Eigenvalues, and for each layer the eigenvectors of its two factors as columns."""
        found = {"eigenvalues": _allocate_zeros(self.params, _count_weights(self.params))}
        for name, layer in self.layers.items():
            rows, columns = layer_shape(layer)
            found[f"outputs.{name}"] = _allocate_zeros(self.params, rows, rows)
            found[f"inputs.{name}"] = _allocate_zeros(self.params, columns, columns)
        return found

    def compute_statistics(self, examples: Examples, loss_fn: LossFn) -> dict[str, Tensor]:
        """Those of KFAC; an eigenvalue of a Kronecker product is the product of the factors'."""
        found = self.allocate_statistics()
        factors = {name: KroneckerFactors(found[f"inputs.{name}"], found[f"outputs.{name}"]) for name in self.layers}
        for inputs, targets in examples:
            add_factors(factors, self.layers, self.model, inputs, targets, loss_fn)
        values = []
        for name, factor in factors.items():
            of_inputs, found[f"inputs.{name}"] = decompose_psd(factor.input_factor)
            of_outputs, found[f"outputs.{name}"] = decompose_psd(factor.output_factor / factor.num_positions)
            values.append(torch.outer(of_outputs, of_inputs).flatten())
        return found | {"eigenvalues": torch.cat(values)}

    def compute_offsets(
        self, statistics: Mapping[str, Tensor], coordinates: Float[Tensor, " params"]
    ) -> list[Tensor]:
        """U_outputs C U_inputsᵀ for each layer, with C its coordinates as a matrix."""
        shapes = [layer_shape(layer) for layer in self.layers.values()]
        pieces = coordinates.split([rows * columns for rows, columns in shapes])
        offsets = []
        for (name, layer), shape, piece in zip(self.layers.items(), shapes, pieces, strict=True):
            matrix = statistics[f"outputs.{name}"] @ piece.view(shape) @ statistics[f"inputs.{name}"].T
            offsets += split_columns(matrix, layer)
        return offsets


def find_last_linear(model: nn.Module) -> nn.Module:
    """The last linear layer with trainable weights, in the order of registration.

    Raises:
        ValueError: There is none.
    """
    found = [layer for layer in model.modules() if isinstance(layer, nn.Linear) and get_layer_parameters(layer)]
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no torch.nn.Linear with trainable weights, which structure='last_layer' is "
            "about. Use structure='kron' or 'diag'."
        )
    return found[-1]


def _collect_layer_parameters(model: nn.Module, layers: list[nn.Module]) -> dict[str, nn.Parameter]:
    names = {id(param): name for name, param in model.named_parameters()}
    return {names[id(param)]: param for layer in layers for param in get_layer_parameters(layer).values()}


def _count_weights(params: Mapping[str, Tensor]) -> int:
    return sum(param.numel() for param in params.values())


def _allocate_zeros(params: Mapping[str, Tensor], *shape: int) -> Tensor:
    return next(iter(params.values())).new_zeros(*shape, requires_grad=False)
