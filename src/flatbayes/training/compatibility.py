"""Whether a posterior and a flatness go together, told by what each says of itself."""

from math import inf

from flatbayes.core.spec import short_name
from flatbayes.flatness import Flatness
from flatbayes.posteriors import Posterior
from flatbayes.training.config import TrainingConfig

REQUIREMENT_REASONS = {
    "at_end": "minimises an objective, which must be one and the same at least by the end of training",
    "while_collecting": "samples from a density, which must be one and the same for all snapshots collected",
}


def check_compatibility(posterior: Posterior, flatness: Flatness, config: TrainingConfig) -> None:
    """Refuse a flatness whose gradients are not those of a loss where the posterior is right for a loss only.

    Raises:
        ValueError: They are not, or not from when on they have to be.
    """
    kind = posterior.requires_stationary_loss
    first = config.collection.start_fraction / config.schedule.num_cycles  # each cycle collects
    wanted = {"never": inf, "at_end": 1.0, "while_collecting": first}[kind]
    found = flatness.stationary_after
    if found <= wanted:
        return
    pair = f"{short_name(posterior)} does not go with {short_name(flatness)}: the posterior {REQUIREMENT_REASONS[kind]}, and the gradients of "
    if found < inf:
        raise ValueError(
            f"{pair}this flatness are those of one loss from {found:g} of training on, when snapshots have been "
            f"collected since {wanted:g}. Collect from {found:g} on, or let it start earlier."
        )
    raise ValueError(
        f"{pair}this flatness are not those of any one loss. Use SAM, which may aim with a `part` of the batch or "
        "move some of the `params` only, or Smoothing, which costs one gradient a step."
    )
