"""Whether a recipe collects enough snapshots for a posterior: known before the first step, not after the last."""

from flatbayes.core.spec import label
from flatbayes.posteriors import Posterior
from flatbayes.training.recipe import Recipe

ENOUGH = 0.5
"""Share of the snapshots that a posterior makes use of, below which something is said."""


def collected(recipe: Recipe, steps_per_epoch: int) -> int:
    """Snapshots that a run collects."""
    return sum(recipe.collects(step, steps_per_epoch) for step in range(steps_per_epoch * recipe.epochs))


def check_collection(posterior: Posterior, recipe: Recipe, steps_per_epoch: int) -> str | None:
    """What there is to say about the number of snapshots, if anything.

    Raises:
        ValueError: There will be too few to draw from.
    """
    least, useful = posterior.snapshots
    if useful == 0:
        return None
    found = collected(recipe, steps_per_epoch)
    begin, often = recipe.collect_from, recipe.collect_per_epoch or "automatic"
    way = f"Lower collect_from (now {begin:g}), raise collect_per_epoch (now {often})"
    if found < least:
        raise ValueError(
            f"{_name(posterior)} needs at least {least} collected snapshots before a draw, and this recipe "
            f"(epochs={recipe.epochs}) collects {found}. {way}, or train longer."
        )
    if found < ENOUGH * useful:
        return (
            f"{_name(posterior)} makes use of {useful} snapshots, and this recipe (epochs={recipe.epochs}) collects "
            f"{found}: its spread will be that of a few points. {way}, or train longer."
        )
    return None


def _name(posterior: Posterior) -> str:
    try:
        return label(posterior)
    except TypeError:  # a class of the user's without a name
        return type(posterior).__name__
