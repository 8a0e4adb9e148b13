"""A fitted posterior against held-out targets."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from flatbayes.likelihoods import CategoricalPredictive
from flatbayes.metrics import classification_metrics, reliability
from flatbayes.prediction.fitted import FittedPosterior


@dataclass(frozen=True)
class Evaluation:
    """How good the predictions are.

    Attributes:
        metrics: Each metric by its name.
        reliability: Accuracy against confidence, as plain data for a diagram.
        num_networks: Networks that were averaged.
    """

    metrics: dict[str, float]
    reliability: dict[str, Any]
    num_networks: int


def evaluate(
    fitted: FittedPosterior,
    inputs: Tensor,
    targets: Tensor,
    num_draws: int = 30,
    *,
    batch_size: int = 256,
    seed: int = 0,
    progress: bool = False,
) -> Evaluation:
    """Predict, and compare with the targets. Nothing is trained, weights come out as they went in.

    Args:
        fitted: The posterior.
        inputs: Examples, as the training data had them.
        targets: Class indices, shape (examples,).
        num_draws: Networks to average, as in `FittedPosterior.predict`.
        batch_size: Examples a forward pass sees at a time.
        seed: Decides which networks are drawn.
        progress: Show a progress bar on standard error.
    """
    predictive = fitted.predict(inputs, num_draws, batch_size=batch_size, seed=seed, progress=progress)
    if not isinstance(predictive, CategoricalPredictive):
        raise TypeError(f"There are no metrics for a {type(predictive).__name__} yet.")
    log_probs, labels = predictive.log_probs.cpu(), targets.cpu()
    return Evaluation(
        metrics=classification_metrics(log_probs, labels),
        reliability=reliability(log_probs.exp(), labels).to_dict(),
        num_networks=len(fitted.draw_keys(num_draws, seed)),
    )
