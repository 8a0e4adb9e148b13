"""GGN of a linear last layer by blocks of classes, and the square root of the covariance from its Cholesky factor.

The outputs are W φ(x) with features φ. The GGN block of the weights of classes c and d is the sum over examples of
H_cd φ φᵀ, with H the Hessian of the example's loss in the outputs (Daxberger et al., NeurIPS 2021). It needs neither
gradients nor the vectors Jᵀ s, which have as many entries as the matrix [W, bias].
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flatbayes.core.devices import to_double
from flatbayes.posteriors.ggn import MAX_VECTOR_ENTRIES, check_finite_curvature, decompose_psd
from flatbayes.posteriors.layer_calls import get_layer_parameters

MAX_TRIANGLE_SIZE = 256
"""Largest triangular matrix that is inverted by substitution."""


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
