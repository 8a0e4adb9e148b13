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
from flatbayes.posteriors.curvature import decomposed, ggn_diagonal, ggn_matrix
from flatbayes.posteriors.kfac import Factors, add_factors, kronecker_layers, layer_shape, learnt, split_columns

Structure = Literal["diag", "kron", "last_layer"]
"""How the curvature is approximated, see `Laplace`."""


class Eigenbasis(ABC):
    """Parameters with a distribution, and the form that the curvature of the loss in them is held in."""

    @property
    @abstractmethod
    def params(self) -> dict[str, nn.Parameter]:
        """The parameters by name, in the order of their coordinates."""

    @abstractmethod
    def empty(self) -> dict[str, Tensor]:
        """Zeros of the names and shapes that `measured` returns, of which one is `eigenvalues`, shape (params,)."""

    @abstractmethod
    def measured(self, examples: Examples, loss_fn: LossFn) -> dict[str, Tensor]:
        """Eigenvalues and basis of the curvature of the sum of the losses of the examples, the model in eval mode."""

    @abstractmethod
    def offsets(self, found: Mapping[str, Tensor], coordinates: Float[Tensor, " params"]) -> list[Tensor]:
        """The displacement, in the shapes of `params`, that has the given coordinates in a measured basis."""


def eigenbasis(structure: Structure, model: nn.Module) -> Eigenbasis:
    """The basis of a structure.

    Raises:
        ValueError: The model has no layer that the structure is about, or one that it cannot treat.
    """
    if structure == "diag":
        return Diagonal(model)
    return Kronecker(model, kronecker_layers(model)) if structure == "kron" else LastLayer(model, last_linear(model))


@dataclass(frozen=True, eq=False)
class Diagonal(Eigenbasis):
    """The diagonal of the GGN of any network; the basis is that of the weights themselves."""

    model: nn.Module

    @property
    def params(self) -> dict[str, nn.Parameter]:
        """All that are trainable."""
        return {name: param for name, param in self.model.named_parameters() if param.requires_grad}

    def empty(self) -> dict[str, Tensor]:
        """Eigenvalues."""
        return {"eigenvalues": _zeros(self.params, _size(self.params))}

    def measured(self, examples: Examples, loss_fn: LossFn) -> dict[str, Tensor]:
        """The diagonal, exactly."""
        found, params = self.empty(), self.params
        for inputs, targets in examples:
            found["eigenvalues"] += ggn_diagonal(self.model, params, inputs, targets, loss_fn)
        return found

    def offsets(self, found: Mapping[str, Tensor], coordinates: Float[Tensor, " params"]) -> list[Tensor]:
        """The coordinates as they are."""
        return unflatten(coordinates, list(self.params.values()))


@dataclass(frozen=True, eq=False)
class LastLayer(Eigenbasis):
    """The whole GGN of one layer."""

    model: nn.Module
    layer: nn.Module

    @property
    def params(self) -> dict[str, nn.Parameter]:
        """The layer's weight and bias."""
        return _named(self.model, [self.layer])

    def empty(self) -> dict[str, Tensor]:
        """Eigenvalues, and eigenvectors as columns."""
        size = _size(self.params)
        return {"eigenvalues": _zeros(self.params, size), "eigenvectors": _zeros(self.params, size, size)}

    def measured(self, examples: Examples, loss_fn: LossFn) -> dict[str, Tensor]:
        """Those of the exact GGN."""
        matrix, params = self.empty()["eigenvectors"], self.params
        for inputs, targets in examples:
            matrix += ggn_matrix(self.model, params, inputs, targets, loss_fn)
        values, vectors = decomposed(matrix)
        return {"eigenvalues": values, "eigenvectors": vectors}

    def offsets(self, found: Mapping[str, Tensor], coordinates: Float[Tensor, " params"]) -> list[Tensor]:
        """Eigenvectors times coordinates."""
        return unflatten(found["eigenvectors"] @ coordinates, list(self.params.values()))


@dataclass(frozen=True, eq=False)
class Kronecker(Eigenbasis):
    """KFAC's approximation of the GGN; a layer's basis is the Kronecker product of those of its two factors."""

    model: nn.Module
    layers: Mapping[str, nn.Module]

    @property
    def params(self) -> dict[str, nn.Parameter]:
        """Weights and biases of linear and convolutional layers."""
        return _named(self.model, list(self.layers.values()))

    def empty(self) -> dict[str, Tensor]:
        """Eigenvalues, and for each layer the eigenvectors of its two factors as columns."""
        found = {"eigenvalues": _zeros(self.params, _size(self.params))}
        for name, layer in self.layers.items():
            rows, columns = layer_shape(layer)
            found[f"outputs.{name}"] = _zeros(self.params, rows, rows)
            found[f"inputs.{name}"] = _zeros(self.params, columns, columns)
        return found

    def measured(self, examples: Examples, loss_fn: LossFn) -> dict[str, Tensor]:
        """Those of KFAC; an eigenvalue of a Kronecker product is the product of the factors'."""
        found = self.empty()
        factors = {name: Factors(found[f"inputs.{name}"], found[f"outputs.{name}"]) for name in self.layers}
        for inputs, targets in examples:
            add_factors(factors, self.layers, self.model, inputs, targets, loss_fn)
        values = []
        for name, factor in factors.items():
            of_inputs, found[f"inputs.{name}"] = decomposed(factor.inputs)
            of_outputs, found[f"outputs.{name}"] = decomposed(factor.outputs / factor.places)
            values.append(torch.outer(of_outputs, of_inputs).flatten())
        return found | {"eigenvalues": torch.cat(values)}

    def offsets(self, found: Mapping[str, Tensor], coordinates: Float[Tensor, " params"]) -> list[Tensor]:
        """U_outputs C U_inputsᵀ for each layer, with C its coordinates as a matrix."""
        shapes = [layer_shape(layer) for layer in self.layers.values()]
        pieces = coordinates.split([rows * columns for rows, columns in shapes])
        offsets = []
        for (name, layer), shape, piece in zip(self.layers.items(), shapes, pieces, strict=True):
            matrix = found[f"outputs.{name}"] @ piece.view(shape) @ found[f"inputs.{name}"].T
            offsets += split_columns(matrix, layer)
        return offsets


def last_linear(model: nn.Module) -> nn.Module:
    """The last linear layer with trainable weights, in the order of registration.

    Raises:
        ValueError: There is none.
    """
    found = [layer for layer in model.modules() if isinstance(layer, nn.Linear) and learnt(layer)]
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no torch.nn.Linear with trainable weights, which structure='last_layer' is "
            "about. Use structure='kron' or 'diag'."
        )
    return found[-1]


def _named(model: nn.Module, layers: list[nn.Module]) -> dict[str, nn.Parameter]:
    names = {id(param): name for name, param in model.named_parameters()}
    return {names[id(param)]: param for layer in layers for param in learnt(layer).values()}


def _size(params: Mapping[str, Tensor]) -> int:
    return sum(param.numel() for param in params.values())


def _zeros(params: Mapping[str, Tensor], *shape: int) -> Tensor:
    return next(iter(params.values())).new_zeros(*shape, requires_grad=False)
