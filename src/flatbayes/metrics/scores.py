"""Accuracy, and two proper scores: averages that nobody improves by saying what they do not believe."""

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from flatbayes.metrics.checks import check_log_probs, check_probs


def accuracy(probs: Float[Tensor, "examples classes"], labels: Int[Tensor, " examples"]) -> float:
    """Fraction of examples whose most probable class is the label; the first one where several are tied.

    Raises:
        ValueError: Probabilities or labels are not what they should be.
    """
    probs, labels = check_probs(probs, labels)
    return float((probs.argmax(-1) == labels).double().mean())


def nll(log_probs: Float[Tensor, "examples classes"], labels: Int[Tensor, " examples"]) -> float:
    """Negative log likelihood in nats: -mean_i log p_i(y_i).

    From log probabilities, since those of very confident predictions have no logarithm after exp. A label
    that was given probability 0 makes it infinite.

    Raises:
        ValueError: Log probabilities or labels are not what they should be.
    """
    log_probs, labels = check_log_probs(log_probs, labels)
    return float(log_probs.gather(1, labels[:, None]).abs().mean())  # abs: -log p without a negative zero


def brier_score(probs: Float[Tensor, "examples classes"], labels: Int[Tensor, " examples"]) -> float:
    """Brier score: mean_i sum_c (p_ic - [y_i = c])^2, from 0 to 2 (not divided by the number of classes).

    Raises:
        ValueError: Probabilities or labels are not what they should be.
    """
    probs, labels = check_probs(probs, labels)
    return float((probs - F.one_hot(labels, probs.shape[1])).square().sum(-1).mean())
