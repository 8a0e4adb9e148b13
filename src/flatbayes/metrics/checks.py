"""Validation of metric inputs, and their conversion to float64 on the CPU, so that results agree on all devices."""

import torch
from torch import Tensor

RANGE_TOLERANCE = 1e-6
"""Probabilities may exceed the range [0, 1] by this much."""
SUM_TOLERANCE = 1e-3
"""The sum of an example's probabilities may differ from 1 by this much."""


def check_probs(probs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Check class probabilities and labels, and clamp the probabilities to [0, 1].

    Args:
        probs: Class probabilities of each example, [examples, classes].
        labels: Index of the true class of each example, [examples].

    Returns:
        Float64 and int64 tensors on the CPU.

    Raises:
        ValueError: The probabilities or labels are invalid.
    """
    probs = _check_matrix(probs, "probabilities")
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
    _check_sums(probs.sum(-1), "Pass one probability for every class, or normalise them.")
    return probs.clamp(0, 1), _check_labels(labels, probs)


def check_log_probs(log_probs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Check log probabilities and labels, and clamp the log probabilities to at most 0.

    Args:
        log_probs: Log probabilities of the classes of each example, [examples, classes]; -inf is allowed.
        labels: Index of the true class of each example, [examples].

    Returns:
        Float64 and int64 tensors on the CPU.

    Raises:
        ValueError: The log probabilities or labels are invalid.
    """
    log_probs = _check_matrix(log_probs, "log probabilities")
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
    _check_sums(log_probs.exp().sum(-1), "If these are logits, pass logits.log_softmax(-1).")
    return log_probs.clamp(max=0), _check_labels(labels, log_probs)


def _check_matrix(values: Tensor, name: str) -> Tensor:
    if values.ndim != 2 or 0 in values.shape or not values.is_floating_point():
        raise ValueError(
            f"Expected {name} of shape (examples, classes) with at least 1 example, got {values.dtype} of "
            f"shape {tuple(values.shape)}. Pass one row of floating-point numbers for each example."
        )
    return values.detach().cpu().double()


def _check_sums(sums: Tensor, advice: str) -> None:
    errors = (sums - 1).abs()
    if (errors > SUM_TOLERANCE).any():
        row = int(errors.argmax())
        raise ValueError(
            f"The probabilities of an example must sum to 1, got {float(sums[row]):g} for example {row}. {advice}"
        )


def _check_labels(labels: Tensor, probs: Tensor) -> Tensor:
    if labels.dtype != torch.int64 or labels.shape != probs.shape[:1]:
        raise ValueError(
            f"Expected one int64 class index for each of the {len(probs)} examples, got {labels.dtype} of "
            f"shape {tuple(labels.shape)}. Try labels.long(), for one-hot ones labels.argmax(-1)."
        )
    labels = labels.detach().cpu()
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= probs.shape[1]:
        raise ValueError(
            f"Labels must lie between 0 and {probs.shape[1] - 1} for {probs.shape[1]} classes, got {low} to "
            f"{high}. Leave unlabelled examples out, and number the classes from 0."
        )
    return labels
