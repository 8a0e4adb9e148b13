"""Selective prediction: risk-coverage curves of a classifier that abstains on its least confident predictions.

The risk-coverage curve and its area (AURC) are those of Geifman and El-Yaniv (NeurIPS 2017), the excess AURC over the
optimal order that of Geifman et al. (ICLR 2019). Risks are averages over all orders of tied confidences.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from flatbayes.metrics.checks import require_tensors


def risk_coverage_curve(
    confidence: Float[Tensor, " examples"], losses: Float[Tensor, " examples"]
) -> tuple[Float[Tensor, " examples"], Float[Tensor, " examples"]]:
    """Coverage k / n and risk, the mean loss of the k most confident examples, for k = 1 ... n.

    Args:
        confidence: Higher for predictions to retain longer, such as the top probability or the negative entropy.
        losses: Loss of each prediction, such as 1 for a wrong and 0 for a right one.

    Returns:
        Coverage and risk, two float64 vectors in the order of k.

    Raises:
        ValueError: The shapes do not match, there are no examples, or a value is NaN.

    Examples:
        >>> confidence, losses = (
        ...     torch.tensor([0.9, 0.8, 0.7, 0.6]),
        ...     torch.tensor([0.0, 0.0, 1.0, 0.0]),
        ... )
        >>> coverage, risk = risk_coverage_curve(confidence, losses)
        >>> risk
        tensor([0.0000, 0.0000, 0.3333, 0.2500], dtype=torch.float64)
    """
    confidence, losses = _check_confidence_losses(confidence, losses)
    _, group, counts = torch.unique(-confidence, return_inverse=True, return_counts=True)
    means = torch.bincount(group, weights=losses) / counts
    num_retained = torch.arange(1, len(losses) + 1, dtype=torch.float64)
    return num_retained / len(losses), means.repeat_interleave(counts).cumsum(0) / num_retained


def aurc(confidence: Float[Tensor, " examples"], losses: Float[Tensor, " examples"]) -> float:
    """Area under the risk-coverage curve: the mean over k of the risk at coverage k / n. Lower is better.

    Args:
        confidence: As in `risk_coverage_curve`.
        losses: As in `risk_coverage_curve`.

    Raises:
        ValueError: The shapes do not match, there are no examples, or a value is NaN.

    Examples:
        >>> losses = torch.tensor([0.0, 0.0, 1.0, 0.0])  # the third is wrong
        >>> round(aurc(torch.tensor([0.9, 0.8, 0.7, 0.6]), losses), 4)
        0.1458
    """
    return float(risk_coverage_curve(confidence, losses)[1].mean())


def excess_aurc(confidence: Float[Tensor, " examples"], losses: Float[Tensor, " examples"]) -> float:
    """AURC minus the AURC of the optimal order of the same losses, at least 0: the cost of a wrong ranking.

    Args:
        confidence: As in `risk_coverage_curve`.
        losses: As in `risk_coverage_curve`.

    Raises:
        ValueError: The shapes do not match, there are no examples, or a value is NaN.

    Examples:
        >>> losses = torch.tensor([0.0, 0.0, 1.0, 0.0])
        >>> round(excess_aurc(torch.tensor([0.9, 0.8, 0.7, 0.6]), losses), 4)
        0.0833
    """
    return max(aurc(confidence, losses) - aurc(-losses.cpu().double(), losses), 0.0)


def _check_confidence_losses(confidence: Tensor, losses: Tensor) -> tuple[Tensor, Tensor]:
    require_tensors(confidence, losses)
    if confidence.ndim != 1 or confidence.shape != losses.shape or not len(losses):
        raise ValueError(
            f"Expected one confidence and one loss for each of at least 1 example, got shapes "
            f"{tuple(confidence.shape)} and {tuple(losses.shape)}. Pass two vectors."
        )
    confidence, losses = confidence.detach().cpu().double(), losses.detach().cpu().double()
    if confidence.isnan().any() or not losses.isfinite().all():
        raise ValueError(
            f"Confidences must be numbers and losses finite, got {int(confidence.isnan().sum())} and "
            f"{int((~losses.isfinite()).sum())} that are not. Leave these examples out."
        )
    return confidence, losses
