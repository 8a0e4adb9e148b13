"""Validation of metric inputs, and their conversion to float64 on the CPU, so that results agree on all devices.

Predictions are checked and converted in blocks of rows that fit the cache, so that a metric reads them once and takes
hardly any memory beside them.
"""

from collections.abc import Iterator
from typing import NoReturn

import torch
from torch import Tensor

from flatbayes.core.devices import iter_row_blocks
from flatbayes.core.names import format_count

RANGE_TOLERANCE = 1e-6
"""Probabilities may exceed the range [0, 1] by this much."""
SUM_TOLERANCE = 1e-3
"""The sum of an example's probabilities may differ from 1 by this much."""


def iter_probs(probs: Tensor, labels: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Check class probabilities and labels, and clamp the probabilities to [0, 1], block by block.

    Yields:
        The rows of a block, its probabilities, and its labels: float64 and int64 on the CPU. The probabilities may be
        changed, and are overwritten by the next block.

    Raises:
        ValueError: The probabilities or labels are invalid.
    """
    probs, labels = _check_matrix(probs, "probabilities"), _check_labels(labels, probs)
    buffer: Tensor | None = None
    for rows in iter_row_blocks(probs):
        buffer = _make_buffer(probs[rows]) if buffer is None else buffer
        block = buffer[: rows.stop - rows.start].copy_(probs[rows])
        low, high = map(float, block.aminmax())
        # NaN fails every comparison.
        if not (low >= -RANGE_TOLERANCE and high <= 1 + RANGE_TOLERANCE) or not _sum_to_one(block):
            _refuse_probs(probs)
        yield rows, block.clamp_(0, 1), labels[rows]


def iter_log_probs(log_probs: Tensor, labels: Tensor) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """Check log probabilities and labels, and clamp the log probabilities to at most 0, block by block.

    A log probability may be -inf.

    Yields:
        The rows of a block, its log probabilities, its probabilities, and its labels: float64 and int64 on the CPU.
        Both kinds of probabilities may be changed, and are overwritten by the next block.

    Raises:
        ValueError: The log probabilities or labels are invalid.
    """
    log_probs = _check_matrix(log_probs, "log probabilities")
    labels = _check_labels(labels, log_probs)
    buffers: tuple[Tensor, Tensor] | None = None
    for rows in iter_row_blocks(log_probs):
        if buffers is None:
            buffers = _make_buffer(log_probs[rows]), _make_buffer(log_probs[rows])
        block, probs = (buffer[: rows.stop - rows.start] for buffer in buffers)
        is_in_range = float(block.copy_(log_probs[rows]).max()) <= RANGE_TOLERANCE
        torch.exp(block.clamp_(max=0), out=probs)
        if not is_in_range or not _sum_to_one(probs):
            _refuse_log_probs(log_probs)
        yield rows, block, probs, labels[rows]


def check_same_probs(probs: Tensor, other_probs: Tensor) -> tuple[Tensor, Tensor]:
    """Check the class probabilities of two predictions of the same examples; returns them in float64 on the CPU.

    Raises:
        ValueError: They are invalid, or their shapes differ.
    """
    if probs.shape != other_probs.shape:
        raise ValueError(
            f"Predictions of the shape {tuple(probs.shape)} cannot be compared with others of the shape "
            f"{tuple(other_probs.shape)}. Give predictions of the same examples in the same order."
        )
    labels = torch.zeros(len(probs), dtype=torch.int64)
    first, second = (
        torch.cat([block.clone() for _, block, _ in iter_probs(values, labels)]) for values in (probs, other_probs)
    )
    return first, second


def _make_buffer(block: Tensor) -> Tensor:
    return torch.empty(block.shape, dtype=torch.float64)


def _sum_to_one(probs: Tensor) -> bool:
    return bool(((probs.sum(-1) - 1).abs() <= SUM_TOLERANCE).all())


def _refuse_probs(probs: Tensor) -> NoReturn:
    """Raise the error that describes all probabilities."""
    advice = _explain_rounding(probs, "softmax") or "Pass one probability for every class, or normalise them."
    probs = probs.double()
    if not probs.isfinite().all():
        raise ValueError(
            f"Probabilities must be finite, got {int((~probs.isfinite()).sum())} that are not. "
            "Check whether the training diverged."
        )
    low, high = float(probs.min()), float(probs.max())
    if low < -RANGE_TOLERANCE or high > 1 + RANGE_TOLERANCE:
        raise ValueError(
            f"Probabilities must lie between 0 and 1, got values from {low:g} to {high:g}. "
            "If these are logits, pass logits.softmax(-1); if these are log probabilities, log_probs.exp()."
        )
    _refuse_sums(probs.sum(-1), advice)


def _refuse_log_probs(log_probs: Tensor) -> NoReturn:
    """Raise the error that describes all log probabilities."""
    advice = _explain_rounding(log_probs, "log_softmax") or "If these are logits, pass logits.log_softmax(-1)."
    log_probs = log_probs.double()
    if log_probs.isnan().any():
        raise ValueError(
            f"Log probabilities must be numbers or -inf, got {int(log_probs.isnan().sum())} that are NaN. "
            "Check whether the training diverged."
        )
    if (log_probs > RANGE_TOLERANCE).any():
        raise ValueError(
            f"Log probabilities must be at most 0, got values up to {float(log_probs.max()):g}. "
            "If these are logits, pass logits.log_softmax(-1); if these are probabilities, probs.log()."
        )
    _refuse_sums(log_probs.exp().sum(-1), advice)


def _explain_rounding(values: Tensor, function: str) -> str:
    """What to do where 16 bits may be the cause of a wrong sum; empty for other types."""
    if values.dtype not in (torch.float16, torch.bfloat16):
        return ""
    return f"They are rounded to {values.dtype}: compute them in float32, logits.float().{function}(-1)."


def _refuse_sums(sums: Tensor, advice: str) -> NoReturn:
    row = int((sums - 1).abs().argmax())
    raise ValueError(
        f"The probabilities of an example must sum to 1, got {float(sums[row]):g} for example {row}. {advice}"
    )


def require_tensors(*values: Tensor) -> None:
    """Refuse arrays and lists, with what to pass in their place.

    Raises:
        TypeError: A value is no tensor.
    """
    for value in values:
        if not isinstance(value, Tensor):
            raise TypeError(
                f"Metrics take tensors, got a {type(value).__name__}: pass torch.as_tensor(values). evaluate(fitted, "
                "inputs, targets) takes arrays, data frames and lists."
            )


def _check_matrix(values: Tensor, name: str) -> Tensor:
    require_tensors(values)
    if values.ndim != 2 or 0 in values.shape or not values.is_floating_point():
        raise ValueError(
            f"Expected {name} of shape (examples, classes) with at least 1 example, got {values.dtype} of "
            f"shape {tuple(values.shape)}. Pass one row of floating-point numbers for each example."
        )
    return values.detach().cpu()


def _check_labels(labels: Tensor, probs: Tensor) -> Tensor:
    require_tensors(labels)
    if labels.dtype != torch.int64 or labels.shape != probs.shape[:1]:
        raise ValueError(
            f"Expected one int64 class index for each of the {format_count(len(probs), 'example')}, got "
            f"{labels.dtype} of shape {tuple(labels.shape)}. Try labels.long(), for one-hot ones labels.argmax(-1)."
        )
    labels = labels.detach().cpu()
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= probs.shape[1]:
        raise ValueError(
            f"Labels must lie between 0 and {probs.shape[1] - 1} for {probs.shape[1]} classes, got {low} to "
            f"{high}. Leave unlabelled examples out, and number the classes from 0."
        )
    return labels
