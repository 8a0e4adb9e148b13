"""Moments of late snapshots, without keeping the snapshots: those of all of them minus those of the first ones.

    after 4, 8, 16 ... snapshots: keep their number n, mean m and sum of squared deviations S
    of N snapshots those after the first n have
        mean        M' = M + (M - m) n / (N - n)
        sum         S' = S_N - S - (M' - m)² n (N - n) / N

This is the update of moments by a group of samples (Chan, Golub and LeVeque, 1979), solved for the second group. The
best burn-in is known after training only: fine-tuning starts far from the posterior, or near to it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

EARLY = "early_"
"""First part of the names of the statistics of early snapshots."""
EARLY_COUNTS = f"{EARLY}counts"
KEPT = ("mean", "sum_squares", "mean_of_others")
"""Statistics whose values after early snapshots are kept; the last one where some weights have no distribution."""
NUM_KEPT, FIRST_KEPT = 3, 4
"""Number of times at which moments are kept, the last ones, and snapshots of the first one."""


@dataclass(frozen=True, eq=False)
class Window:
    """The snapshots that draws are made from, those after the burn-in.

    Attributes:
        statistics: Statistics of all snapshots.
        row: Row of the early statistics with those of the burn-in; None for no burn-in.
        num_early: Number of snapshots of the burn-in.
    """

    statistics: Mapping[str, Tensor]
    row: int | None
    num_early: int

    @classmethod
    def find(cls, statistics: Mapping[str, Tensor], fraction: float) -> "Window":
        """The window whose burn-in is next to a fraction of the snapshots, and at most three quarters of them.

        Args:
            statistics: Statistics of all snapshots.
            fraction: Fraction of the snapshots that is left out.
        """
        total = int(statistics["count"])
        counts = statistics[EARLY_COUNTS].tolist() if EARLY_COUNTS in statistics else []
        usable = {count: row for row, count in enumerate(counts) if 0 < count <= 3 * total / 4}
        num_early = min((0, *sorted(usable)), key=lambda count: abs(count - fraction * total))
        return cls(statistics, usable.get(num_early), num_early)

    @property
    def count(self) -> int:
        """Number of snapshots in the window."""
        return int(self.statistics["count"]) - self.num_early

    def get_mean(self, block: slice, name: str = "mean") -> Float[Tensor, " params"]:
        """Mean of the snapshots in the window.

        Args:
            block: Some of the weights.
            name: Name of the mean.
        """
        mean = self.statistics[name][block]
        if self.row is None:
            return mean
        early = self.statistics[EARLY + name][self.row, block].to(mean)
        return mean + (mean - early) * (self.num_early / self.count)

    def get_variance(self, block: slice) -> Float[Tensor, " params"]:
        """Their variance, with their number as divisor, at least zero.

        Args:
            block: Some of the weights.
        """
        sums = self.statistics["sum_squares"][block]
        if self.row is None:
            return sums / self.count
        early_mean, early_sums = (self.statistics[EARLY + name][self.row, block].to(sums) for name in KEPT[:2])
        between = (self.get_mean(block) - early_mean).square_() * (self.num_early * self.count)
        return (sums - early_sums - between / (self.num_early + self.count)).clamp_min_(0) / self.count

    def get_deviations(self, block: slice) -> Float[Tensor, "rank params"]:
        """Stored deviations of snapshots in the window, from its mean.

        Args:
            block: Some of the weights.
        """
        deviations, total = self.statistics["deviations"], int(self.statistics["count"])
        rank, mean = min(len(deviations), total), self.statistics["mean"][block]
        if self.row is None:
            return deviations[:rank, block]
        if self.count >= rank:
            stored = deviations[:rank, block]
        else:
            stored = deviations[[index % rank for index in range(total - self.count, total)], block]
        return stored.to(mean) + (mean - self.get_mean(block))

    @property
    def num_deviations(self) -> int:
        """Number of stored deviations of snapshots in the window."""
        return min(len(self.statistics["deviations"]), self.count)


def allocate_early_moments(statistics: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Empty statistics of early snapshots, with a row for each time at which they are kept.

    Args:
        statistics: Statistics of all snapshots.
        device: Where they are stored; their counts are in main memory.
    """
    kept = {name: statistics[name] for name in KEPT if name in statistics}
    rows = {EARLY + name: value.new_zeros(NUM_KEPT, len(value), device=device) for name, value in kept.items()}
    return {EARLY_COUNTS: torch.zeros(NUM_KEPT, dtype=torch.int64, device="cpu"), **rows}


def keep_early_moments(statistics: Mapping[str, Tensor], count: int) -> None:
    """Keep the moments of the snapshots so far if their number is a power of 2, in place of the oldest kept ones.

    Args:
        statistics: Statistics of all snapshots, and those of early ones.
        count: Number of snapshots.
    """
    if EARLY_COUNTS not in statistics or count < FIRST_KEPT or count.bit_count() > 1:
        return
    row = count.bit_length() % NUM_KEPT
    statistics[EARLY_COUNTS][row] = count
    for name in KEPT:
        if name in statistics:
            statistics[EARLY + name][row].copy_(statistics[name])
