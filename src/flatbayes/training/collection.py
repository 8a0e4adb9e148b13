"""Whether a recipe collects enough snapshots for a posterior: known before the first step, not after the last."""

from flatbayes.core.spec import short_name
from flatbayes.posteriors import Posterior
from flatbayes.training.config import TrainingConfig

MIN_USEFUL_SNAPSHOT_FRACTION = 0.5
"""Share of the snapshots that a posterior makes use of, below which something is said."""


def count_snapshots(config: TrainingConfig, steps_per_epoch: int) -> int:
    """Snapshots that a run collects."""
    return sum(config.is_collection_step(step, steps_per_epoch) for step in range(steps_per_epoch * config.epochs))


def check_collection(posterior: Posterior, config: TrainingConfig, steps_per_epoch: int) -> str | None:
    """What there is to say about the number of snapshots, if anything.

    Raises:
        ValueError: There will be too few to draw from.
    """
    least, useful = posterior.snapshot_requirements
    if useful == 0:
        return None
    found = count_snapshots(config, steps_per_epoch)
    begin, often = config.collection.start_fraction, config.collection.snapshots_per_epoch or "automatic"
    way = f"Lower collection.start_fraction (now {begin:g}), raise collection.snapshots_per_epoch (now {often})"
    if found < least:
        raise ValueError(
            f"{_get_display_name(posterior)} needs at least {least} collected snapshots before a draw, and this recipe "
            f"(epochs={config.epochs}) collects {found}. {way}, or train longer."
        )
    if found < MIN_USEFUL_SNAPSHOT_FRACTION * useful:
        return (
            f"{_get_display_name(posterior)} makes use of {useful} snapshots, and this recipe (epochs={config.epochs}) collects "
            f"{found}: its spread will be that of a few points. {way}, or train longer."
        )
    return None


def _get_display_name(posterior: Posterior) -> str:
    try:
        return short_name(posterior)
    except TypeError:  # a class of the user's without a name
        return type(posterior).__name__
