"""Detection: does a score tell one kind of example from the other, whatever the threshold?"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from flatbayes.metrics.checks import checked_probs


def auroc(scores: Float[Tensor, " examples"], positive: Bool[Tensor, " examples"]) -> float:
    """Area under the ROC curve: P(score of a positive > score of a negative), ties counted half.

    Computed as the Mann-Whitney statistic from average ranks. NaN where either kind is absent.

    Args:
        scores: Higher for what looks positive; infinite ones are allowed.
        positive: Which examples are.

    Raises:
        ValueError: Scores and examples do not match, or a score is NaN.
    """
    if scores.ndim != 1 or scores.shape != positive.shape or positive.dtype != torch.bool:
        raise ValueError(
            f"Expected one score and one bool for each example, got scores of shape {tuple(scores.shape)} "
            f"and {positive.dtype} of shape {tuple(positive.shape)}. Pass two vectors, the second a mask."
        )
    scores, positive = scores.detach().cpu().double(), positive.cpu()
    if scores.isnan().any():
        raise ValueError(
            f"Scores must be numbers, got {int(scores.isnan().sum())} that are NaN. Leave these examples out."
        )
    num_positive = int(positive.sum())
    num_negative = len(positive) - num_positive
    if not num_positive or not num_negative:
        return math.nan
    _, place, counts = torch.unique(scores, return_inverse=True, return_counts=True)
    # Those that tie share their average rank; twice that is a whole number, so nothing is rounded.
    twice_ranks = 2 * counts.cumsum(0) - counts + 1
    twice_wins = int(twice_ranks[place][positive].sum()) - num_positive * (num_positive + 1)
    return twice_wins / (2 * num_positive * num_negative)


def auroc_correct(probs: Float[Tensor, "examples classes"], labels: Int[Tensor, " examples"]) -> float:
    """AUROC of telling right predictions from wrong ones by the top probability.

    NaN where all predictions are right, or all wrong: there is nothing to tell apart.

    Raises:
        ValueError: Probabilities or labels are not what they should be.
    """
    probs, labels = checked_probs(probs, labels)
    top = probs.argmax(-1)
    return auroc(probs.gather(1, top[:, None]).squeeze(1), top == labels)
