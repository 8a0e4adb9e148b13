"""Two ways to do the same, timed in turn, so that whatever else the machine does meets both."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Inside, torch computes with that many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def seconds(run: Callable[[], object], repeats: int = 1) -> float:
    """Seconds of one call, the mean of several in a row; with one thread, those that it had the processor."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    begin = clock()
    for _ in range(repeats):
        run()
    return (clock() - begin) / repeats


def compared(
    ours: Callable[[], object], baseline: Callable[[], object], rounds: int, repeats: int = 1
) -> tuple[float, float, float]:
    """Median seconds of both, and the median of the ratios ours / baseline of neighbouring calls.

    Args:
        ours: What is judged.
        baseline: What it is judged by.
        rounds: Pairs of measurements; one more is thrown away.
        repeats: Calls that a measurement is the mean of, for what is over in microseconds.
    """
    pairs = [(seconds(ours, repeats), seconds(baseline, repeats)) for _ in range(rounds + 1)][1:]
    mine, others = zip(*pairs, strict=True)
    ratio = statistics.median(a / b for a, b in pairs)
    return statistics.median(mine), statistics.median(others), ratio


def row(
    group: str,
    case: str,
    ours: Callable[[], object],
    baseline: Callable[[], object],
    *,
    rounds: int,
    repeats: int = 1,
    limit: float | None = None,
    target: float | None = None,
    note: str = "",
) -> dict:
    """One line of the table, for the number of threads that torch has now."""
    mine, other, ratio = compared(ours, baseline, rounds, repeats)
    return {
        "group": group,
        "case": case,
        "threads": torch.get_num_threads(),
        "ours": mine,
        "baseline": other,
        "ratio": ratio,
        "limit": limit,
        "target": target,
        "peers": {},
        "note": note,
    }


def show(rows: list[dict]) -> None:
    """The table as text."""
    for r in rows:
        limit, target = (f"{r[k]:.2f}" if r[k] else "-" for k in ("limit", "target"))
        print(
            f"{r['group']:11} {r['case']:44} {r['threads']} thread(s)  {1e3 * r['ours']:10.3f} ms  "
            f"ratio {r['ratio']:6.2f}  limit {limit}  target {target}  {r['note']}"
        )
