"""Selective prediction: how good are the predictions if the least confident ones are left to somebody else?

The risk-coverage curve and its area are those of Geifman and El-Yaniv (NeurIPS 2017), the excess over the best order
that of Geifman et al. (ICLR 2019). Where confidences tie, risks are exact averages over all orders of those that tie.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def risk_coverage_curve(
    confidence: Float[Tensor, " examples"], losses: Float[Tensor, " examples"]
) -> tuple[Float[Tensor, " examples"], Float[Tensor, " examples"]]:
    """Coverage k / n, and risk: the mean loss of the k most confident examples, for k = 1 ... n.

    Args:
        confidence: Higher for what should be kept longer, such as the top probability or minus the entropy.
        losses: Of each prediction, such as 1 where it is wrong and 0 where it is right.

    Returns:
        Two float64 vectors, in the order of k.

    Raises:
        ValueError: The two do not match, are empty, or there is a NaN.
    """
    confidence, losses = _check_confidence_losses(confidence, losses)
    _, place, counts = torch.unique(-confidence, return_inverse=True, return_counts=True)
    means = torch.bincount(place, weights=losses) / counts
    number = torch.arange(1, len(losses) + 1, dtype=torch.float64)
    return number / len(losses), means.repeat_interleave(counts).cumsum(0) / number


def aurc(confidence: Float[Tensor, " examples"], losses: Float[Tensor, " examples"]) -> float:
    """Area under the risk-coverage curve: the mean over k of the risk at coverage k / n. Lower is better.

    Args:
        confidence: As in `risk_coverage_curve`.
        losses: As there.

    Raises:
        ValueError: The two do not match, are empty, or there is a NaN.
    """
    return float(risk_coverage_curve(confidence, losses)[1].mean())


def excess_aurc(confidence: Float[Tensor, " examples"], losses: Float[Tensor, " examples"]) -> float:
    """AURC minus that of the best order of the same losses: what the confidences themselves cost. At least 0.

    Args:
        confidence: As in `risk_coverage_curve`.
        losses: As there.

    Raises:
        ValueError: The two do not match, are empty, or there is a NaN.
    """
    return max(aurc(confidence, losses) - aurc(-losses.double(), losses), 0.0)


def _check_confidence_losses(confidence: Tensor, losses: Tensor) -> tuple[Tensor, Tensor]:
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
