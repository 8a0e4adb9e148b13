"""Alternating time measurements, so that other load of the machine affects all cases alike.

Every number is a ratio to a baseline measured at the same time: the median over rounds of the ratios of neighbouring
measurements. On one thread the clock is the CPU time of the process, which other load does not affect; on several it
is the wall-clock time.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

Work = Callable[[], object]
MIN_SECONDS = 2e-3
"""Seconds of a measurement; shorter calls are repeated."""


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Context in which torch uses `count` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def seconds(work: Work, calls: int = 1) -> float:
    """Seconds of one call, the mean of several in a row."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    for _ in range(calls):
        work()
    return (clock() - start) / calls


def measure_alternately(works: Mapping[str, Work], rounds: int) -> tuple[dict[str, float], dict[str, float]]:
    """Median seconds of each work, and the median over rounds of its ratio to the work `baseline`."""
    calls, measurements = {}, {name: [] for name in works}
    for name, work in works.items():
        work()
        calls[name] = max(1, round(MIN_SECONDS / max(seconds(work, 2), 1e-9)))
    for _ in range(rounds):
        for name, work in works.items():
            measurements[name].append(seconds(work, calls[name]))
    return summarize(measurements)


def summarize(measurements: Mapping[str, Sequence[float]]) -> tuple[dict[str, float], dict[str, float]]:
    """Median seconds of each work, and the median over rounds of its ratio to the work `baseline`."""
    ratios = {
        name: statistics.median(time / base for time, base in zip(times, measurements["baseline"], strict=True))
        for name, times in measurements.items()
        if name != "baseline"
    }
    return {name: statistics.median(times) for name, times in measurements.items()}, ratios


def ratio(work: Work, baseline: Work, rounds: int) -> float:
    """Time of a work relative to the baseline."""
    return measure_alternately({"baseline": baseline, "work": work}, rounds)[1]["work"]


def row(
    group: str,
    case: str,
    ours: Work,
    baseline: Work,
    *,
    rounds: int,
    peers: Mapping[str, Work] | None = None,
    least: Work | None = None,
    limit: float | None = None,
    target: float | None = None,
    note: str = "",
) -> dict:
    """A row of the table, for the current number of threads.

    Args:
        group: Name of the group of rows.
        case: Name of the case.
        ours: Work of flatbayes.
        baseline: Work that all ratios refer to.
        rounds: Measurements of each work.
        peers: The same work by other libraries.
        least: Work that no implementation can avoid, to measure the limit.
        limit: The smallest possible ratio, if it is known.
        target: The ratio to reach.
        note: What a reader must know.
    """
    works = {"baseline": baseline, "ours": ours, **(peers or {}), **({"least": least} if least else {})}
    seconds_by_name, ratios = measure_alternately(works, rounds)
    return make_row(
        group,
        case,
        ratios["ours"],
        ours=seconds_by_name["ours"],
        baseline=seconds_by_name["baseline"],
        limit=ratios["least"] if least else limit,
        target=target,
        peers={name: ratios[name] for name in peers or {}},
        note=note,
    )


def make_row(
    group: str,
    case: str,
    ratio: float,
    *,
    ours: float | None = None,
    baseline: float | None = None,
    limit: float | None = None,
    target: float | None = None,
    peers: Mapping[str, float] | None = None,
    note: str = "",
) -> dict:
    """A row of the table from numbers, for the current number of threads.

    Args:
        group: Name of the group of rows.
        case: Name of the case.
        ratio: The number to compare: time or memory relative to the baseline.
        ours: Seconds of flatbayes; None for a row of memory.
        baseline: Seconds of the baseline.
        limit: The smallest possible ratio, if it is known.
        target: The ratio to reach.
        peers: Ratios of other libraries.
        note: What a reader must know.
    """
    return {
        "group": group,
        "case": case,
        "threads": torch.get_num_threads(),
        "ours": ours,
        "baseline": baseline,
        "ratio": ratio,
        "limit": limit,
        "target": target,
        "peers": dict(peers or {}),
        "note": note,
    }
