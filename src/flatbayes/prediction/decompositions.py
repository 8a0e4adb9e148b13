"""Functions that ONNX or onnxruntime lacks, made of others: log gamma, and activations in double precision.

Moments of a `DistributionLikelihood` are computed in double precision, where onnxruntime has no softplus, ELU and
leaky ReLU. ONNX has no log gamma function, of which the mean of a Weibull distribution is made.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

NUM_SHIFTS = 10
"""Number by which arguments of log gamma are increased, so that Stirling's series is exact to rounding."""


def decompose_missing(program: ExportedProgram) -> ExportedProgram:
    """A program without these functions, equal up to rounding; the same program if it has none."""
    has_any = any(node.target in _DECOMPOSITIONS for node in program.graph.nodes)
    return program.run_decompositions(_DECOMPOSITIONS) if has_any else program


def log_gamma(values: Tensor) -> Tensor:
    """Logarithm of Gamma(x) for x > 0: Stirling's series at x + 10, with the recurrence Gamma(x + 1) = x Gamma(x).

    Args:
        values: Of any shape; in double precision the relative error of Gamma(x) is below 1e-11 up to x = 200.
    """
    shifts = torch.arange(NUM_SHIFTS, dtype=values.dtype, device=values.device)
    product, x = (values.unsqueeze(-1) + shifts).log().sum(-1), values + NUM_SHIFTS
    inverse = (x * x).reciprocal()
    series = (1 / 12 - inverse * (1 / 360 - inverse * (1 / 1260 - inverse * (1 / 1680 - inverse / 1188)))) / x
    return (x - 0.5) * x.log() - x + 0.5 * math.log(2 * math.pi) + series - product


def softplus(values: Tensor, beta: float = 1, threshold: float = 20) -> Any:
    """`torch.nn.functional.softplus` in double precision; `NotImplemented`, which keeps it, in others."""
    if values.dtype != torch.float64:
        return NotImplemented
    scaled = beta * values
    return (scaled.clamp_min(0) + (-scaled.abs()).exp().log1p()) / beta


def elu(values: Tensor, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Any:
    """`torch.nn.functional.elu` and `selu` in double precision."""
    if values.dtype != torch.float64:
        return NotImplemented
    return scale * (values.clamp_min(0) + alpha * (input_scale * values.clamp_max(0)).expm1())


def leaky_relu(values: Tensor, negative_slope: float = 0.01) -> Any:
    """`torch.nn.functional.leaky_relu` in double precision."""
    return (
        values.clamp_min(0) + negative_slope * values.clamp_max(0)
        if values.dtype == torch.float64
        else NotImplemented
    )


_DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.lgamma.default: log_gamma,
    torch.ops.aten.softplus.default: softplus,
    torch.ops.aten.elu.default: elu,
    torch.ops.aten.leaky_relu.default: leaky_relu,
}
