"""What training minimises: the likelihood's loss, or for classes one whose targets are smoothed."""

from flatbayes.core import LossFn
from flatbayes.likelihoods import Categorical, Likelihood
from flatbayes.training.config import TrainingConfig


def make_training_loss(likelihood: Likelihood, config: TrainingConfig) -> LossFn:
    """The loss that the recipe asks for; nothing but training sees it.

    Args:
        likelihood: How targets depend on outputs.
        config: How to train.

    Raises:
        ValueError: Labels are to be smoothed, and the targets are no classes.
    """
    if not config.optimization.label_smoothing:
        return likelihood.loss
    if not isinstance(likelihood, Categorical):
        raise ValueError(
            f"label_smoothing is for classes, and the likelihood is {type(likelihood).__name__}: leave it out."
        )
    return likelihood.make_smoothed_loss(config.optimization.label_smoothing)
