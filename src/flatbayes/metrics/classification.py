"""The metrics of a classifier, all at once, and what they mean."""

from collections.abc import Mapping
from types import MappingProxyType

from jaxtyping import Float, Int
from torch import Tensor

from flatbayes.metrics.calibration import ece
from flatbayes.metrics.detection import auroc_correct
from flatbayes.metrics.scores import accuracy, brier_score, nll

CLASSIFICATION_HIGHER_IS_BETTER: Mapping[str, bool] = MappingProxyType(
    {"accuracy": True, "nll": False, "ece": False, "brier": False, "auroc_correct": True}
)
"""Direction of each metric."""

CLASSIFICATION_DEFINITIONS: Mapping[str, str] = MappingProxyType(
    {
        "accuracy": "Accuracy: fraction of examples whose most probable class is the label",
        "nll": "NLL: mean negative log probability of the label, in nats",
        "ece": "ECE: 20 equal-width bins (a, b] of the top probability",
        "brier": "Brier score: squared error of the probabilities, summed over the classes, from 0 to 2",
        "auroc_correct": "AUROC (correct): right and wrong predictions told apart by the top probability",
    }
)
"""One line on each metric, for reports."""


def classification_metrics(
    log_probs: Float[Tensor, "examples classes"], labels: Int[Tensor, " examples"]
) -> dict[str, float]:
    """Accuracy, NLL, ECE, Brier score and AUROC of right against wrong predictions, as in `DEFINITIONS`.

    Args:
        log_probs: Log of the averaged probabilities.
        labels: Index of the true class.

    Returns:
        Values by name; `nll` may be infinite, and `auroc_correct` is NaN where no prediction is wrong.

    Raises:
        ValueError: Log probabilities or labels are not what they should be.
    """
    score = nll(log_probs, labels)  # first, since its complaints are about log probabilities
    probs = log_probs.detach().cpu().double().exp()
    return {
        "accuracy": accuracy(probs, labels),
        "nll": score,
        "ece": ece(probs, labels),
        "brier": brier_score(probs, labels),
        "auroc_correct": auroc_correct(probs, labels),
    }
