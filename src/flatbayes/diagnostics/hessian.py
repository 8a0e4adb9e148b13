"""The Hessian of a network's loss, without ever writing it down: largest eigenvalues and trace from its products.

Products are exact by double backward; networks with operations that cannot be differentiated twice, such as fused
attention, get central differences of gradients instead, and the result says so. Eigenvalues are Lanczos's, as ARPACK
has it, and the trace is Hutchinson's estimate (Communications in Statistics 1989) with its standard error.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from flatbayes.core.norms import global_norm
from flatbayes.core.randomness import spawn_seeds
from flatbayes.core.weights import flatten, unflatten
from flatbayes.diagnostics.loss_surface import LossSurface
from flatbayes.diagnostics.sharpness import mean_and_standard_error, sample_normal_like

MAX_DENSE_PARAMS = 64
"""Up to so many weights the Hessian is written down after all: Lanczos needs room to work in."""

DOUBLE_BACKWARD_ERRORS = ("not implemented", "not supported", "differentiate twice", "once_differentiable")
DOUBLE_BACKWARD = "double backward"


class HessianVectorProduct:
    """v -> H v at the weights of a network, in whichever way the network allows.

    Attributes:
        method: How products are made, in words, for the record.
    """

    def __init__(self, surface: LossSurface) -> None:
        """Find out, at the cost of one product, whether double backward is possible.

        Args:
            surface: The network's loss.
        """
        self.surface = surface
        self.method = DOUBLE_BACKWARD
        try:
            surface.hessian_vector_product([torch.zeros_like(param) for param in surface.params])
        except RuntimeError as error:
            if not any(text in str(error) for text in DOUBLE_BACKWARD_ERRORS):
                raise
            reason = str(error).partition("\n")[0]
            self.method = f"central differences of gradients, since there is no double backward: {reason}"

    def __call__(self, direction: Sequence[Tensor]) -> list[Tensor]:
        """H v.

        Args:
            direction: v, a tensor for each trainable parameter.
        """
        if self.method == DOUBLE_BACKWARD:
            return self.surface.hessian_vector_product(direction)
        return central_difference(self.surface, direction)

    def matvec(self, direction: Float[Tensor, " params"]) -> Float[Tensor, " params"]:
        """H v for v in one vector, in float64 outside the network."""
        params = self.surface.params
        pieces = [piece.to(param) for piece, param in zip(unflatten(direction, params), params, strict=True)]
        return flatten([product.double() for product in self(pieces)])


def central_difference(surface: LossSurface, direction: Sequence[Tensor]) -> list[Tensor]:
    """(g(w + h v) - g(w - h v)) / (2 h), which is H v up to a term in h² and to rounding in 1 / h.

    The step makes both small: h ||v|| = eps^(1/3) max(1, ||w||), with eps the precision of the weights.

    Args:
        surface: The network's loss.
        direction: v, a tensor for each trainable parameter.
    """
    norm = float(global_norm(direction))
    if norm == 0:
        return [torch.zeros_like(tensor) for tensor in direction]
    precision = torch.finfo(surface.params[0].dtype).eps
    step = precision ** (1 / 3) * max(1.0, float(global_norm([p.detach() for p in surface.params]))) / norm
    forwards = list(torch._foreach_mul(list(direction), step))
    _, above = surface.gradient(forwards)
    _, below = surface.gradient(list(torch._foreach_neg(forwards)))
    return list(torch._foreach_div(torch._foreach_sub(above, below), 2 * step))


@dataclass(frozen=True)
class Curvature:
    """What the Hessian of the loss is like.

    Attributes:
        eigenvalues: The largest ones (algebraically), in falling order.
        trace: Estimate of the sum of all.
        trace_error: Its standard error, over random vectors.
        method: How products with the Hessian were made.
    """

    eigenvalues: tuple[float, ...]
    trace: float
    trace_error: float
    method: str


def compute_curvature(
    surface: LossSurface, num_eigenvalues: int = 5, num_trace_probes: int = 100, seed: int = 0
) -> Curvature:
    """Largest eigenvalues and trace of the Hessian at the weights of a network.

    Args:
        surface: The network's loss.
        num_eigenvalues: How many; all, where there are fewer weights.
        num_trace_probes: Random vectors for the trace, each a product.
        seed: Decides these, and where Lanczos starts.

    Raises:
        RuntimeError: Lanczos did not converge.
    """
    products = HessianVectorProduct(surface)
    largest = largest_eigenvalues(products, num_eigenvalues, seed=seed)
    trace, trace_error = estimate_trace(products, num_trace_probes, seed)
    return Curvature(largest, trace, trace_error, products.method)


def largest_eigenvalues(
    hvp: HessianVectorProduct, num_eigenvalues: int = 5, *, tolerance: float = 1e-4, seed: int = 0
) -> tuple[float, ...]:
    """The algebraically largest eigenvalues of the Hessian, in falling order.

    Args:
        hvp: With the Hessian.
        num_eigenvalues: How many; all, where there are fewer weights.
        tolerance: Relative accuracy to stop at.
        seed: Decides where Lanczos starts.

    Raises:
        RuntimeError: Lanczos did not converge, or a product is not finite.
    """
    if num_eigenvalues < 1:
        raise ValueError(f"num_eigenvalues is a number of eigenvalues: it must be at least 1, got {num_eigenvalues}.")
    size = hvp.surface.num_params
    if size <= max(MAX_DENSE_PARAMS, 2 * num_eigenvalues):
        values: Tensor = torch.linalg.eigvalsh(_require_finite(materialize_hessian(hvp)))
        return tuple(values.flip(0)[:num_eigenvalues].tolist())
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh  # here, since it is slow to import

    def matvec(vector: NDArray[np.float64]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = _require_finite(hvp.matvec(torch.from_numpy(vector.reshape(-1).copy()))).numpy()
        return found

    start = flatten(sample_normal_like(hvp.surface.params, seed, 0)).double().cpu().numpy()
    try:
        found = eigsh(
            LinearOperator((size, size), matvec=matvec, dtype=np.float64),
            k=num_eigenvalues,
            which="LA",
            v0=start,
            tol=tolerance,
            return_eigenvectors=False,
        )
    except ArpackNoConvergence as error:
        raise RuntimeError(
            f"Lanczos found {len(error.eigenvalues)} of {num_eigenvalues} eigenvalues before it gave up; ask for fewer, or for "
            f"a tolerance above {tolerance:g}."
        ) from error
    return tuple(sorted((float(value) for value in found), reverse=True))


def estimate_trace(hvp: HessianVectorProduct, num_probes: int = 100, seed: int = 0) -> tuple[float, float]:
    """Estimate of the trace, the mean of zᵀ H z over z with random signs, and its standard error.

    Unbiased, since E z zᵀ = I; exact for a diagonal Hessian.

    Args:
        hvp: With the Hessian.
        num_probes: Number of random vectors, at least 2.
        seed: Decides these.
    """
    if num_probes < 2:
        raise ValueError(f"A standard error needs at least 2 probes, got {num_probes}.")
    size, values = hvp.surface.num_params, []
    for k in range(num_probes):
        generator = torch.Generator().manual_seed(spawn_seeds(seed, k, count=1)[0])
        signs = torch.randint(0, 2, (size,), generator=generator).double() * 2 - 1
        values.append(float(signs @ hvp.matvec(signs).cpu()))
    return mean_and_standard_error(values)


def materialize_hessian(hvp: HessianVectorProduct) -> Float[Tensor, "params params"]:
    """The Hessian written down, a product a column, and made symmetric; for few weights."""
    columns = [hvp.matvec(unit).cpu() for unit in torch.eye(hvp.surface.num_params, dtype=torch.float64)]
    found = torch.stack(columns)
    return (found + found.T) / 2


def _require_finite(product: Tensor) -> Tensor:
    if not math.isfinite(float(product.sum())):
        raise RuntimeError("A product with the Hessian is not finite; is the loss finite around the weights?")
    return product.cpu()
