"""Several ways to do the same, timed in turn, so that whatever else the machine does meets all of them.

Every figure is a ratio to a baseline that was measured in the same minute: the median over rounds of the ratios of
neighbouring measurements. On one thread the clock counts the time that the process had the processor, which is blind
to what else the machine does; on several it is the clock on the wall.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch

Work = Callable[[], object]
SHORTEST = 2e-3  # seconds of one measurement; what is over sooner is repeated


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Inside, torch computes with that many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def seconds(work: Work, calls: int = 1) -> float:
    """Seconds of one call, the mean of several in a row."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    begin = clock()
    for _ in range(calls):
        work()
    return (clock() - begin) / calls


def in_turn(works: Mapping[str, Work], rounds: int) -> tuple[dict[str, float], dict[str, float]]:
    """Median seconds of each work, and the median over rounds of its ratio to the one called `baseline`."""
    calls, taken = {}, {name: [] for name in works}
    for name, work in works.items():
        work()
        calls[name] = max(1, round(SHORTEST / max(seconds(work, 2), 1e-9)))
    for _ in range(rounds):
        for name, work in works.items():
            taken[name].append(seconds(work, calls[name]))
    ratios = {
        name: statistics.median(one / base for one, base in zip(times, taken["baseline"], strict=True))
        for name, times in taken.items()
        if name != "baseline"
    }
    return {name: statistics.median(times) for name, times in taken.items()}, ratios


def ratio(work: Work, baseline: Work, rounds: int) -> float:
    """How many times the baseline a work takes."""
    return in_turn({"baseline": baseline, "work": work}, rounds)[1]["work"]


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
    """One line of the table, for the number of threads that torch has now.

    Args:
        group: What the line belongs to.
        case: What is measured.
        ours: What is judged.
        baseline: What everything is a ratio to.
        rounds: Measurements of each.
        peers: Others that do the same job.
        least: What nobody can do without, if the limit is to be measured beside the rest.
        limit: The least ratio that is possible, if it is known.
        target: The ratio to reach.
        note: What a reader must know.
    """
    works = {"baseline": baseline, "ours": ours, **(peers or {}), **({"least": least} if least else {})}
    taken, ratios = in_turn(works, rounds)
    return {
        "group": group,
        "case": case,
        "threads": torch.get_num_threads(),
        "ours": taken["ours"],
        "baseline": taken["baseline"],
        "ratio": ratios["ours"],
        "limit": ratios["least"] if least else limit,
        "target": target,
        "peers": {name: ratios[name] for name in peers or {}},
        "note": note,
    }
