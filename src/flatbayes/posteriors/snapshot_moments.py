"""Moments of the snapshots of a training, of all or from one to another, without keeping them.

    after 4, 8, 16 ... snapshots: keep their number n, mean m and sum of squared deviations S
    of N snapshots those after the first n have
        mean        M' = M + (M - m) n / (N - n)
        sum         S' = S_N - S - (M' - m)² n (N - n) / N
    a few snapshots, evenly spaced over all, are stored as differences d from the first one, w
        deviation   d - (M' - w)

This is the update of moments by a group of samples (Chan, Golub and LeVeque, 1979), solved for the second group. The
best window is known after training only: fine-tuning starts far from the posterior or near to it, and the snapshots
of its end are overconfident or not.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from flatbayes.core.devices import is_accelerator
from flatbayes.posteriors.snapshots import select_snapshot_indices

EARLY = "early_"
"""First part of the names of the statistics of early snapshots."""
EARLY_COUNTS = f"{EARLY}counts"
FIRST = "first_snapshot"
KEPT = ("mean", "sum_squares", "mean_of_others")
"""Statistics whose values after early snapshots are kept; the last one where some weights have no distribution."""
NUM_KEPT, FIRST_KEPT = 3, 4
"""Number of times at which moments are kept, the last ones, and snapshots of the first one."""


@dataclass(frozen=True)
class Boundary:
    """A number of snapshots after which the moments are known.

    Attributes:
        count: Number of snapshots.
        row: Row of the kept moments; None for no snapshots, or all.
    """

    count: int
    row: int | None = None


@dataclass(frozen=True, eq=False)
class Window:
    """The snapshots that draws are made from.

    Attributes:
        statistics: Statistics of all snapshots.
        start: The snapshots before the window.
        end: Those before its end.
    """

    statistics: Mapping[str, Tensor]
    start: Boundary
    end: Boundary

    @classmethod
    def find(cls, statistics: Mapping[str, Tensor], burn_in: float = 0.0, end_fraction: float = 1.0) -> "Window":
        """The window whose ends are next to the given ones, among the numbers of snapshots with known moments.

        Of the snapshots before its end, which is after `end_fraction` of all, `burn_in` is left out; at most three
        quarters are.
        """
        total = int(statistics["count"])
        counts = statistics[EARLY_COUNTS].tolist() if EARLY_COUNTS in statistics else []
        kept = [Boundary(count, counts.index(count)) for count in sorted(counts) if 0 < count < total]
        end = _select_nearest([Boundary(total), *kept], end_fraction * total)
        usable = [boundary for boundary in kept if boundary.count <= 3 * end.count / 4]
        return cls(statistics, _select_nearest([Boundary(0), *usable], burn_in * end.count), end)

    @property
    def count(self) -> int:
        """Number of snapshots in the window."""
        return self.end.count - self.start.count

    def get_mean(self, block: slice, name: str = "mean") -> Float[Tensor, " params"]:
        """Mean of the snapshots in the window."""
        mean = self._get(name, self.end, block)
        if not self.start.count:
            return mean
        return mean + (mean - self._get(name, self.start, block)) * (self.start.count / self.count)

    def get_variance(self, block: slice) -> Float[Tensor, " params"]:
        """Their variance, with their number as divisor, at least zero."""
        sums = self._get("sum_squares", self.end, block)
        if not self.start.count:
            return sums / self.count
        between = (self.get_mean(block) - self._get("mean", self.start, block)).square_()
        between *= self.start.count * self.count / self.end.count
        return (sums - self._get("sum_squares", self.start, block) - between).clamp_min_(0) / self.count

    def get_deviations(self, block: slice) -> Float[Tensor, "rank params"]:
        """Stored deviations of snapshots in the window, from its mean; those of SWAG from the means so far."""
        rows, mean = self.get_rows(block), self.get_mean(block)
        offset = self.get_offset(block, mean)
        return rows if offset is None else rows.to(mean) - offset

    def get_rows(self, block: slice) -> Float[Tensor, "rank params"]:
        """What is stored of the snapshots in the window: deviations, or these plus `get_offset`."""
        return self.statistics["deviations"][self._stored_rows, block]

    def get_offset(self, block: slice, mean: Float[Tensor, " params"]) -> Float[Tensor, " params"] | None:
        """What the rows have in addition to the deviations from the mean of the window; None for nothing."""
        return mean - self.statistics[FIRST][block].to(mean) if FIRST in self.statistics else None

    @property
    def num_deviations(self) -> int:
        """Number of stored deviations of snapshots in the window, at least 2 or 0."""
        return len(range(*self._stored_rows.indices(len(self.statistics["deviations"]))))

    @property
    def _stored_rows(self) -> slice:
        total, rank = int(self.statistics["count"]), len(self.statistics["deviations"])
        if FIRST not in self.statistics:
            return slice(min(total, rank))
        numbers = select_snapshot_indices(total, rank) if rank else range(0)
        rows = [row for row, number in enumerate(numbers) if self.start.count < number <= self.end.count]
        return slice(rows[0], rows[-1] + 1) if len(rows) > 1 else slice(0)  # a single one has no variance

    def _get(self, name: str, boundary: Boundary, block: slice) -> Float[Tensor, " params"]:
        value = self.statistics[name][block]
        return value if boundary.row is None else self.statistics[EARLY + name][boundary.row, block].to(value)


def _select_nearest(boundaries: list[Boundary], count: float) -> Boundary:
    return min(boundaries, key=lambda boundary: abs(boundary.count - count))


def allocate_early_moments(statistics: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Empty statistics of early snapshots, with a row for each time at which they are kept, and of the first one.

    The counts are in main memory.
    """
    kept = {name: statistics[name] for name in KEPT if name in statistics}
    rows = {EARLY + name: value.new_zeros(NUM_KEPT, len(value), device=device) for name, value in kept.items()}
    counts = torch.zeros(NUM_KEPT, dtype=torch.int64, device="cpu")
    return {EARLY_COUNTS: counts, FIRST: torch.zeros_like(statistics["mean"], device=device), **rows}


def keep_early_moments(statistics: Mapping[str, Tensor], count: int) -> None:
    """Keep the moments of the snapshots so far if their number is a power of 2, in place of the oldest kept ones."""
    if EARLY_COUNTS not in statistics or count < FIRST_KEPT or count.bit_count() > 1:
        return
    row = count.bit_length() % NUM_KEPT
    statistics[EARLY_COUNTS][row] = count
    for name in KEPT:
        if name in statistics:
            statistics[EARLY + name][row].copy_(statistics[name])


def update_moments(
    mean: Float[Tensor, " params"],
    sum_squares: Float[Tensor, " params"],
    weights: Float[Tensor, " params"],
    count: int,
    out: Float[Tensor, " params"] | None = None,
) -> Float[Tensor, " params"]:
    """Update `mean` and the sum of squared deviations in place, by Welford's algorithm.

    The textbook formula E[w²] - E[w]² is negative for half of all weights in float32; this one never is. `count`
    includes the new snapshot; the result is in `out`, or in new memory.

    Returns:
        Deviation of the new snapshot from the new mean (zero for the first snapshot).
    """
    deviation = torch.sub(weights, mean, out=out)
    mean.add_(deviation, alpha=1 / count)
    shrinkage = 1 - 1 / count  # ratio of the deviations from the new and from the old mean
    sum_squares.addcmul_(deviation, deviation, value=shrinkage)
    return deviation.mul_(shrinkage)


def snapshot_block_size(weights: Tensor) -> int:
    """The number of weights per block of a snapshot, which has fewer intermediate results than a draw."""
    return 2**22 if is_accelerator(weights) else 2**19
