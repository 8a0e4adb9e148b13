"""Largest eigenvalues and trace of the Hessian of a network's loss, from Hessian-vector products.

Products are exact, by double backward; fused attention, which cannot be differentiated twice, is replaced by the same
operations one by one. For other operations without a second derivative, products are central differences of
gradients, and the result records that with an estimate of the error. Eigenvalues come from the Lanczos method of
ARPACK, the trace from Hutchinson's estimator (Communications in Statistics 1989) with its standard error.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from flatbayes.core.devices import to_double
from flatbayes.core.display import format_fields
from flatbayes.core.names import format_count
from flatbayes.core.norms import global_norm
from flatbayes.core.randomness import Stream, make_generator
from flatbayes.core.tensor_lists import flatten, unflatten
from flatbayes.core.weights import promoted_dtype
from flatbayes.diagnostics.loss_surface import LossSurface
from flatbayes.diagnostics.sharpness import mean_and_standard_error, sample_normal_like

MAX_DENSE_PARAMS = 64
"""Up to this number of weights the Hessian is computed as a dense matrix, since Lanczos needs larger ones."""

DOUBLE_BACKWARD_ERRORS = ("not implemented", "not supported", "differentiate twice", "once_differentiable")
DOUBLE_BACKWARD = "double backward"
UNFUSED_ATTENTION = "double backward, with attention that is not fused"
NUM_STEP_LENGTHS = 12
"""Number of step lengths of central differences that are tried."""
NUM_POWER_ITERATIONS = 3
"""Number of products that turn the gradient towards the sharpest direction, for which the length is chosen."""


class HessianVectorProduct:
    """v -> H v at the weights of a network, by double backward or by central differences.

    Attributes:
        method: Description of how products are computed, for the record.
        relative_error: Estimated relative error of the products; 0 by double backward.

    Examples:
        >>> hvp = HessianVectorProduct(surface)
        >>> hvp.matvec(torch.ones(surface.num_params)).shape
        torch.Size([15])
    """

    def __init__(self, surface: LossSurface) -> None:
        """Differentiate one batch twice to determine whether double backward is possible.

        Args:
            surface: Loss of the network.
        """
        self.surface = surface
        self.relative_error, self._step = 0.0, 0.0
        for self.method in (DOUBLE_BACKWARD, UNFUSED_ATTENTION):
            try:
                with self._attention_kernel():
                    surface.check_double_backward()
                return
            except RuntimeError as error:
                if not any(text in str(error) for text in DOUBLE_BACKWARD_ERRORS):
                    raise
                reason = str(error).partition("\n")[0]
        self._step, self.relative_error = calibrate_step(surface)
        self.method = f"central differences of gradients, since double backward is not available: {reason}"

    def __call__(self, direction: Sequence[Tensor]) -> list[Tensor]:
        """H v.

        Args:
            direction: v, a tensor for each trainable parameter.
        """
        if self.method not in (DOUBLE_BACKWARD, UNFUSED_ATTENTION):
            return central_difference(self.surface, direction, self._step)
        with self._attention_kernel():
            return self.surface.hessian_vector_product(direction)

    def _attention_kernel(self) -> AbstractContextManager[None]:
        return sdpa_kernel(SDPBackend.MATH) if self.method == UNFUSED_ATTENTION else nullcontext()

    def matvec(self, direction: Float[Tensor, " params"]) -> Float[Tensor, " params"]:
        """H v for a flat vector v; float64 outside the network.

        Args:
            direction: v, all trainable parameters in one vector.
        """
        params = self.surface.params
        on_device = direction.to(params[0].device, promoted_dtype(params))  # one transfer
        pieces = [piece.to(param) for piece, param in zip(unflatten(on_device, params), params, strict=True)]
        return to_double(flatten(self(pieces)))


def central_difference(surface: LossSurface, direction: Sequence[Tensor], length: float) -> list[Tensor]:
    """(g(w + h v) - g(w - h v)) / (2 h): H v up to a truncation error in h² and a rounding error in 1 / h.

    `length` is h ||v||, the distance from the weights; see `calibrate_step`.
    """
    norm = float(global_norm(direction))
    if norm == 0:
        return [torch.zeros_like(tensor) for tensor in direction]
    step = length / norm
    forward_step = list(torch._foreach_mul(list(direction), step))
    _, forward_grads = surface.gradient(forward_step)
    _, backward_grads = surface.gradient(list(torch._foreach_neg(forward_step)))
    return list(torch._foreach_div(torch._foreach_sub(forward_grads, backward_grads), 2 * step))


def calibrate_step(surface: LossSurface) -> tuple[float, float]:
    """The length of the step of central differences at which truncation and rounding together are smallest.

    Products with one direction are computed for a range of lengths. From one length to the next, a tenth to a third
    of it, the product changes by the truncation error of the longer and the rounding error of the shorter one. The
    length with the smallest change is taken. The direction is a sharp one, where truncation is largest: the gradient
    after some power iterations.

    Returns:
        The length, and the smallest change relative to the product, an estimate of its error.
    """
    precision = torch.finfo(surface.params[0].dtype).eps
    size = max(float(global_norm([p.detach() for p in surface.params])), math.sqrt(precision))
    lengths = [float(size * x) for x in np.geomspace(0.1, precision**0.75, NUM_STEP_LENGTHS)]
    _, direction = surface.gradient()
    if not 0 < float(global_norm(direction)) < math.inf:
        direction = sample_normal_like(surface.params, 0, 0)
    for _ in range(NUM_POWER_ITERATIONS):
        product = central_difference(surface, direction, size * math.sqrt(precision))
        direction = product if 0 < float(global_norm(product)) < math.inf else direction
    products = [to_double(flatten(central_difference(surface, direction, length))) for length in lengths]
    changes = [float((longer - shorter).norm()) for longer, shorter in pairwise(products)]
    best = int(np.nanargmin([change if math.isfinite(change) else math.inf for change in changes]))
    norm = float(products[best].norm())
    return lengths[best], changes[best] / norm if norm > 0 else 0.0


@dataclass(frozen=True)
class Curvature:
    """Summary of the Hessian of the loss.

    Attributes:
        eigenvalues: The algebraically largest eigenvalues, in descending order.
        trace: Estimate of the trace.
        trace_error: Standard error of the estimate, over random vectors.
        method: Description of how Hessian-vector products were computed.
        product_error: Estimated relative error of the products, and so of the largest eigenvalue: 0 for exact ones,
            and that of the best step for central differences.

    Examples:
        >>> curvature = compute_curvature(surface, num_eigenvalues=2, num_trace_probes=10)
        >>> len(curvature.eigenvalues), curvature.trace > 0
        (2, True)
    """

    eigenvalues: tuple[float, ...]
    trace: float
    trace_error: float
    method: str
    product_error: float = 0.0

    __repr__ = format_fields


def compute_curvature(
    surface: LossSurface, num_eigenvalues: int = 5, num_trace_probes: int = 100, seed: int = 0
) -> Curvature:
    """Largest eigenvalues and trace of the Hessian at the weights of a network.

    Args:
        surface: Loss of the network.
        num_eigenvalues: Number of eigenvalues; all if there are fewer weights.
        num_trace_probes: Random vectors for the trace; each costs one product.
        seed: Seed of these vectors and of the start vector of Lanczos.

    Raises:
        RuntimeError: Lanczos did not converge.

    Examples:
        >>> curvature = compute_curvature(surface, num_eigenvalues=2, num_trace_probes=10)
        >>> curvature.eigenvalues[0] >= curvature.eigenvalues[1]
        True
    """
    products = HessianVectorProduct(surface)
    largest = largest_eigenvalues(products, num_eigenvalues, seed=seed)
    trace, trace_error = estimate_trace(products, num_trace_probes, seed)
    return Curvature(largest, trace, trace_error, products.method, products.relative_error)


def largest_eigenvalues(
    hvp: HessianVectorProduct, num_eigenvalues: int = 5, *, tolerance: float = 1e-4, seed: int = 0
) -> tuple[float, ...]:
    """The algebraically largest eigenvalues of the Hessian, in descending order.

    Args:
        hvp: Hessian-vector product.
        num_eigenvalues: Number of eigenvalues; all if there are fewer weights.
        tolerance: Relative accuracy at which Lanczos stops.
        seed: Seed of the start vector.

    Raises:
        ValueError: `num_eigenvalues` is below 1.
        RuntimeError: Lanczos did not converge, or a product is not finite.

    Examples:
        >>> first, second = largest_eigenvalues(HessianVectorProduct(surface), num_eigenvalues=2)
        >>> first >= second
        True
    """
    if num_eigenvalues < 1:
        raise ValueError(f"num_eigenvalues must be at least 1, got {num_eigenvalues}.")
    size = hvp.surface.num_params
    if size <= max(MAX_DENSE_PARAMS, 2 * num_eigenvalues):
        values: Tensor = torch.linalg.eigvalsh(_require_finite(materialize_hessian(hvp)))
        return tuple(values.flip(0)[:num_eigenvalues].tolist())
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh  # slow to import

    def matvec(vector: NDArray[np.float64]) -> NDArray[np.float64]:
        product: NDArray[np.float64] = _require_finite(
            hvp.matvec(torch.from_numpy(vector.reshape(-1).copy()))
        ).numpy()
        return product

    start = flatten(sample_normal_like(hvp.surface.params, seed, 0)).cpu().double().numpy()
    try:
        eigenvalues = eigsh(
            LinearOperator((size, size), matvec=matvec, dtype=np.float64),
            k=num_eigenvalues,
            which="LA",
            v0=start,
            tol=tolerance,
            return_eigenvectors=False,
        )
    except ArpackNoConvergence as error:
        raise RuntimeError(
            f"Lanczos converged for {len(error.eigenvalues)} of {format_count(num_eigenvalues, 'eigenvalue')} only; "
            f"use fewer, or a tolerance above {tolerance:g}."
        ) from error
    return tuple(sorted((float(value) for value in eigenvalues), reverse=True))


def estimate_trace(hvp: HessianVectorProduct, num_probes: int = 100, seed: int = 0) -> tuple[float, float]:
    """Hutchinson's estimate of the trace, the mean of zᵀ H z over random signs z, and its standard error.

    Unbiased, since E z zᵀ = I; exact for a diagonal Hessian.

    Args:
        hvp: Hessian-vector product.
        num_probes: Number of random vectors, at least 2.
        seed: Seed of these vectors.

    Returns:
        Estimate and standard error.

    Examples:
        >>> trace, standard_error = estimate_trace(HessianVectorProduct(surface), num_probes=20)
        >>> trace > 0
        True
    """
    if num_probes < 2:
        raise ValueError(f"A standard error needs at least 2 probes, got {num_probes}.")
    size, values = hvp.surface.num_params, []
    for k in range(num_probes):
        generator = make_generator(Stream.TRACE_PROBES, seed, k)
        signs = torch.randint(0, 2, (size,), generator=generator).double() * 2 - 1
        values.append(float(signs @ hvp.matvec(signs).cpu()))
    return mean_and_standard_error(values)


def materialize_hessian(hvp: HessianVectorProduct) -> Float[Tensor, "params params"]:
    """The Hessian as a dense symmetric matrix, one product for each column; for few weights."""
    columns = [hvp.matvec(unit).cpu() for unit in torch.eye(hvp.surface.num_params, dtype=torch.float64)]
    matrix = torch.stack(columns)
    return (matrix + matrix.T) / 2


def _require_finite(product: Tensor) -> Tensor:
    if not math.isfinite(float(product.sum())):
        raise RuntimeError(
            "A Hessian-vector product is not finite: check that the loss is finite around the weights."
        )
    return product.cpu()
