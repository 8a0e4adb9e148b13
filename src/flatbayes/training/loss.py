"""What training minimises: the likelihood's loss, or for classes one whose targets are smoothed."""

from flatbayes.core import LossFn
from flatbayes.likelihoods import Categorical, Likelihood
from flatbayes.training.recipe import Recipe


def training_loss(likelihood: Likelihood, recipe: Recipe) -> LossFn:
    """The loss that the recipe asks for; nothing but training sees it.

    Args:
        likelihood: How targets depend on outputs.
        recipe: How to train.

    Raises:
        ValueError: Labels are to be smoothed, and the targets are no classes.
    """
    if not recipe.label_smoothing:
        return likelihood.loss
    if not isinstance(likelihood, Categorical):
        raise ValueError(
            f"label_smoothing is for classes, and the likelihood is {type(likelihood).__name__}: leave it out."
        )
    return likelihood.smoothed_loss(recipe.label_smoothing)
