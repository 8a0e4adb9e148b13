"""GGN of a linear last layer, and the square root of the covariance that belongs to it.

The outputs are W φ(x) with features φ. The GGN block of the weights of classes c and d is the sum over examples of
H_cd φ φᵀ, with H the Hessian of the example's loss in the outputs (Daxberger et al., NeurIPS 2021). It needs neither
gradients nor the vectors Jᵀ s, which have as many entries as the matrix [W, bias]. The square root is then that of
the Cholesky factor. Few examples have few vectors, the columns of V. The GGN V Vᵀ has as many eigenvalues other
than zero, which are those of the small matrix Vᵀ V, and its square root needs no factorization of a large one.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flatbayes.core.devices import to_double
from flatbayes.core.tensor_lists import widen
from flatbayes.core.weights import promoted_dtype
from flatbayes.posteriors.ggn import MAX_VECTOR_ENTRIES, check_finite_curvature, decompose_psd
from flatbayes.posteriors.layer_calls import get_layer_parameters

MAX_TRIANGLE_SIZE = 256
"""Largest triangular matrix that is inverted by substitution."""
MIN_LOW_RANK_SIZE, MIN_WEIGHTS_PER_VECTOR = 1024, 4
"""Fewest weights, in all and for each vector, with which the vectors are kept in place of the matrix."""


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


class LastLayerGgn:
    """Adds up the GGN of batches, as vectors while they are few for the number of weights, then as a matrix.

    Args:
        layer: The layer.
        allocate: Returns a matrix of zeros in the size and dtype of the sum.
    """

    def __init__(self, layer: nn.Linear, allocate: Callable[[], Tensor]) -> None:
        params = get_layer_parameters(layer)
        self.num_outputs, self.has_bias = layer.out_features, "bias" in params
        size = sum(param.numel() for param in params.values())
        self._dtype = widen(promoted_dtype(params.values()))
        self._num_free = size // MIN_WEIGHTS_PER_VECTOR if size >= MIN_LOW_RANK_SIZE else 0
        self._allocate, self._vectors = allocate, list[Tensor]()
        self._matrix: Tensor | None = None
        self._blocks: Tensor | None = None

    def add_vectors(self, vectors: Float[Tensor, "params vectors"]) -> None:
        """Add vectors Jᵀ s, one per column."""
        vectors = vectors.to(self._dtype)
        if self._reserve(vectors.shape[1]):
            self._vectors.append(vectors)
            return
        self._matrix = self._allocate() if self._matrix is None else self._matrix
        self._matrix.addmm_(vectors, vectors.T)

    def add_features(
        self, features: Float[Tensor, "batch features"], factor: Float[Tensor, "batch outputs columns"]
    ) -> None:
        """Add examples by their features, with an appended 1 if there is a bias, and roots S of the loss Hessians."""
        features, factor = features.to(self._dtype), factor.to(self._dtype)
        if self._reserve(len(features) * factor.shape[2]):
            self._vectors.append(make_vectors(features, factor, self.has_bias))
            return
        self._blocks = self._allocate() if self._blocks is None else self._blocks
        add_class_blocks(self._blocks, features, factor @ factor.mT)

    def compute(self) -> dict[str, Tensor]:
        """The GGN V Vᵀ by its `vectors` V, or as a `matrix`."""
        if self._blocks is None and self._matrix is None and self._vectors:
            return {"vectors": torch.cat(self._vectors, 1)}
        matrix = self._allocate() if self._matrix is None else self._matrix
        for vectors in self._vectors:
            matrix.addmm_(vectors, vectors.T)
        if self._blocks is not None:
            matrix += symmetrize_blocks(self._blocks, self.num_outputs, self.has_bias)
        return {"matrix": matrix}

    def _reserve(self, num_vectors: int) -> bool:
        """Whether so many more vectors are kept; after the first that are not, no others are."""
        self._num_free -= num_vectors
        return self._num_free >= 0


def make_vectors(
    features: Float[Tensor, "batch features"], factor: Float[Tensor, "batch outputs columns"], has_bias: bool
) -> Float[Tensor, "params vectors"]:
    """Return the vectors Jᵀ s of all examples and columns s, with the parameters in the order of W, then bias."""
    products = torch.einsum("bf,boc->ofbc", features, factor).flatten(2)
    if not has_bias:
        return products.flatten(0, 1)
    return torch.cat([products[:, :-1].flatten(0, 1), products[:, -1]])


def add_class_blocks(
    total: Float[Tensor, "params params"],
    features: Float[Tensor, "batch features"],
    hessians: Float[Tensor, "batch classes classes"],
) -> None:
    """Add the GGN of a batch to the upper triangle of blocks, in place.

    The order is that of the rows of [W, bias]; features have an appended 1 if there is a bias.
    """
    num_classes, size = hessians.shape[1], features.shape[1]
    num_examples = max(1, MAX_VECTOR_ENTRIES // (num_classes * size))
    for phi, hessian in zip(features.split(num_examples), hessians.split(num_examples), strict=True):
        for row in range(num_classes):
            weighted = hessian[:, row, row:, None] * phi[:, None, :]
            total[row * size : (row + 1) * size, row * size :].addmm_(phi.T, weighted.flatten(1))


def symmetrize_blocks(
    blocks: Float[Tensor, "params params"], num_classes: int, has_bias: bool
) -> Float[Tensor, "params params"]:
    """Return the symmetric matrix of the upper triangle of `add_class_blocks`, in the order of W, then bias."""
    upper = blocks.triu()
    matrix = upper + upper.triu(1).T
    if not has_bias:
        return matrix
    rows = torch.arange(len(blocks), device=blocks.device).view(num_classes, -1)
    order = torch.cat([rows[:, :-1].flatten(), rows[:, -1]])
    return matrix[order][:, order]


def factorize_covariance(
    curvature: Float[Tensor, "params params"], precision: Tensor
) -> Float[Tensor, "params params"]:
    """Return A with A Aᵀ = (curvature + precision I)⁻¹, computed in double precision.

    A is the inverse of the Cholesky factor. Where rounding makes the matrix indefinite, it comes from an
    eigendecomposition.

    Raises:
        RuntimeError: The curvature is not finite.
    """
    check_finite_curvature(curvature)
    exact = to_double(curvature).clone()
    exact.diagonal().add_(to_double(precision).to(exact))
    factor, error = torch.linalg.cholesky_ex(exact, upper=True)
    if not error:
        return invert_triangle(factor).to(curvature)
    values, vectors = decompose_psd(to_double(curvature))
    root: Tensor = (vectors * (values + to_double(precision).to(values)).rsqrt()).to(curvature)
    return root


def factorize_low_rank_covariance(
    vectors: Float[Tensor, "params vectors"], precision: Tensor
) -> Float[Tensor, "params params"]:
    """Return the symmetric A with A Aᵀ = (V Vᵀ + precision I)⁻¹, for few columns of V, computed in double precision.

    With the eigenvalues λ and the eigenvectors Q of Vᵀ V, and δ for the precision, A is I / √δ + (V Q) D (V Q)ᵀ. The
    diagonal D of ((λ + δ)^-1/2 - δ^-1/2) / λ is computed as -1 / (√δ √(λ + δ) (√δ + √(λ + δ))), without cancellation.

    Raises:
        RuntimeError: The vectors are not finite.
    """
    exact = to_double(vectors)
    values, rotation = decompose_psd(exact.T @ exact)
    basis, prior = exact @ rotation, to_double(precision).to(exact).sqrt()
    precisions = (values + prior.square()).sqrt()
    root = (basis / (prior * precisions * (prior + precisions))) @ -basis.T
    root.diagonal().add_(1 / prior)
    result: Tensor = root.to(vectors)
    return result


def compute_eigenvalues(curvature: Float[Tensor, "params params"]) -> Float[Tensor, " params"]:
    """Return the eigenvalues of a symmetric positive semidefinite matrix, in ascending order and at least zero.

    Raises:
        RuntimeError: It is not finite.
    """
    check_finite_curvature(curvature)
    values: Tensor = torch.linalg.eigvalsh(to_double(curvature)).clamp(min=0).to(curvature)
    return values


def invert_triangle(triangle: Float[Tensor, "size size"]) -> Float[Tensor, "size size"]:
    """Return the inverse of an upper triangular matrix, by halves: products are faster than substitution."""
    size = len(triangle)
    if size <= MAX_TRIANGLE_SIZE:
        identity = torch.eye(size, dtype=triangle.dtype, device=triangle.device)
        solution: Tensor = torch.linalg.solve_triangular(triangle, identity, upper=True)
        return solution
    half = size // 2
    inverse = torch.zeros_like(triangle)
    inverse[:half, :half] = invert_triangle(triangle[:half, :half])
    inverse[half:, half:] = invert_triangle(triangle[half:, half:])
    inverse[:half, half:] = -(inverse[:half, :half] @ triangle[:half, half:]) @ inverse[half:, half:]
    return inverse
