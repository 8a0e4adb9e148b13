"""Classification metrics: accuracy and proper scoring rules (NLL, Brier score) of class probabilities."""

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from flatbayes.metrics.calibration import ece
from flatbayes.metrics.checks import check_log_probs, check_probs
from flatbayes.metrics.detection import auroc_correct


def classification_metrics(
    log_probs: Float[Tensor, "examples classes"], labels: Int[Tensor, " examples"]
) -> dict[str, float]:
    """Compute all metrics of `CLASSIFICATION_METRICS`.

    Args:
        log_probs: Log of the averaged probabilities.
        labels: Index of the true class.

    Returns:
        Values by name; `nll` may be infinite, and `auroc_correct` is NaN where no prediction is wrong.

    Raises:
        ValueError: The log probabilities or labels are invalid.

    Examples:
        >>> log_probs = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7]]).log()
        >>> metrics = classification_metrics(log_probs, torch.tensor([0, 1, 1, 1]))
        >>> {name: round(metrics[name], 3) for name in ("accuracy", "nll", "brier")}
        {'accuracy': 0.75, 'nll': 0.4, 'brier': 0.25}
    """
    score = nll(log_probs, labels)  # first, because its error messages are about log probabilities
    probs = log_probs.detach().cpu().double().exp()
    return {
        "accuracy": accuracy(probs, labels),
        "nll": score,
        "ece": ece(probs, labels),
        "brier": brier_score(probs, labels),
        "auroc_correct": auroc_correct(probs, labels),
    }


def accuracy(probs: Float[Tensor, "examples classes"], labels: Int[Tensor, " examples"]) -> float:
    """Fraction of examples whose most probable class is the label; the first one where several are tied.

    Args:
        probs: Class probabilities.
        labels: Index of the true class.

    Raises:
        ValueError: The probabilities or labels are invalid.

    Examples:
        >>> probs = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7]])
        >>> accuracy(probs, torch.tensor([0, 1, 1, 1]))
        0.75
    """
    probs, labels = check_probs(probs, labels)
    return float((probs.argmax(-1) == labels).double().mean())


def nll(log_probs: Float[Tensor, "examples classes"], labels: Int[Tensor, " examples"]) -> float:
    """Negative log likelihood in nats: -mean_i log p_i(y_i).

    It takes log probabilities, because very confident predictions underflow in `exp`. It is infinite if a label has
    probability 0.

    Args:
        log_probs: Log probabilities of the classes.
        labels: Index of the true class.

    Raises:
        ValueError: The log probabilities or labels are invalid.

    Examples:
        >>> log_probs = torch.tensor([[0.9, 0.1], [0.6, 0.4]]).log()
        >>> round(nll(log_probs, torch.tensor([0, 1])), 3)
        0.511
    """
    log_probs, labels = check_log_probs(log_probs, labels)
    return float(log_probs.gather(1, labels[:, None]).abs().mean())  # abs: -log p without a negative zero


def brier_score(probs: Float[Tensor, "examples classes"], labels: Int[Tensor, " examples"]) -> float:
    """Brier score: mean_i sum_c (p_ic - [y_i = c])^2, from 0 to 2 (not divided by the number of classes).

    Args:
        probs: Class probabilities.
        labels: Index of the true class.

    Raises:
        ValueError: The probabilities or labels are invalid.

    Examples:
        >>> probs = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7]])
        >>> round(brier_score(probs, torch.tensor([0, 1, 1, 1])), 3)
        0.25
    """
    probs, labels = check_probs(probs, labels)
    return float((probs - F.one_hot(labels, probs.shape[1])).square().sum(-1).mean())
