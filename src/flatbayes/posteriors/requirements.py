"""What a posterior states of its training and its draws: losses, snapshots, and the weights that training visits."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, NamedTuple

LossRequirement = Literal["never", "at_end", "while_collecting"]
"""When the gradients must be those of one fixed loss function of the weights.

`never`: the method accepts any gradients. `at_end`: it minimises an objective, which must be fixed by the end of
training. `while_collecting`: it samples from a density, which must be fixed while snapshots are collected.
"""

RENAMED_MEMBERS = {
    "finish": "finalize",
    "moves_weights": "needs_norm_reestimation",
    "needs_one_loss": "requires_stationary_loss",
}
"""Members of version 0.1 -> 0.2. A class with an old name would get the default of the new one without notice."""

DEPENDENT_MEMBERS = {
    "gradients_per_step": ("step",),
    "uses_gradient_only": ("step",),
    "trajectory": ("init", "step", "collect"),
    "find_varying_layer": ("draw", "count_stored_snapshots", "load_snapshot"),
    "draw_layer": ("draw",),
    "draw_options": ("draw", "load_snapshot"),
    "describe_random_layers": ("draw",),
}
"""Member -> members whose behaviour it describes. A subclass that overrides one of the latter and not the former gets
the default of the former: the inherited value describes the training or the draws of the base class."""


class SnapshotRequirements(NamedTuple):
    """Number of collected snapshots that a draw needs.

    Attributes:
        min_count: Smallest number of snapshots with which `draw` works.
        max_used: Largest number of snapshots that the posterior makes use of; 0 for a posterior without snapshots.
    """

    min_count: int
    max_used: int


@dataclass(frozen=True)
class Trajectory:
    """Weights that training visits, by what a posterior contributes to them.

    Posteriors with equal trajectories are trained alike: with the same network, data, flatness, optimizer,
    configuration and seed their weights are equal, bit for bit, at every step.

    Attributes:
        update: Name of the update rule of `step`.
        hyperparameters: Values that the update depends on, by name. Without those that are None.
        statistics: Names of the statistics that the update changes, such as a velocity.
    """

    update: str
    hyperparameters: tuple[tuple[str, float], ...] = ()
    statistics: frozenset[str] = frozenset()

    @classmethod
    def of(cls, update: str, *, statistics: Collection[str] = (), **hyperparameters: float | None) -> "Trajectory":
        """The trajectory of an update rule.

        Args:
            update: Name of the rule; that of a rule of your own begins with the name of your package.
            statistics: Names of the statistics that it changes.
            hyperparameters: Values that it depends on; None if it does without.
        """
        values = sorted((name, float(value)) for name, value in hyperparameters.items() if value is not None)
        return cls(update, tuple(values), frozenset(statistics))
