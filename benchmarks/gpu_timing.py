"""Alternating time measurements on a device: CUDA events on a GPU; on the CPU as in `timing.py`."""

import statistics
from collections.abc import Mapping

import torch
from timing import Work, seconds

MIN_SECONDS = 5e-3
"""Seconds of a measurement; shorter calls are repeated."""


def measure_seconds(work: Work, device: str, calls: int = 1) -> float:
    """Seconds of one call, the mean of several in a row, from the first kernel to the end of the last."""
    if device != "cuda":
        return seconds(work, calls)
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    first.record()
    for _ in range(calls):
        work()
    last.record()
    last.synchronize()
    return float(first.elapsed_time(last)) / 1e3 / calls


def count_calls(work: Work, device: str, seconds: float = MIN_SECONDS, warmups: int = 3) -> int:
    """Number of calls that take about `seconds`, after some calls to warm up."""
    for _ in range(warmups):
        work()
    return max(1, round(seconds / max(measure_seconds(work, device, 2), 1e-9)))


def measure_median(work: Work, device: str, rounds: int = 5) -> float:
    """Median seconds of a call over rounds."""
    calls = count_calls(work, device)
    return statistics.median(measure_seconds(work, device, calls) for _ in range(rounds))


def measure_alternately(works: Mapping[str, Work], device: str, rounds: int) -> dict[str, dict[str, float]]:
    """Seconds and ratios of several works, measured in turn.

    Args:
        works: Works by name; the first is the baseline of the ratios.
        device: `cuda` or `cpu`.
        rounds: Measurements of each.

    Returns:
        By name: `ms`, the median time of a call; `ratio`, the median over rounds of the ratio of neighbouring
        measurements to the baseline; `quartiles` of the ratio.
    """
    calls = {name: count_calls(work, device) for name, work in works.items()}
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            times[name].append(measure_seconds(work, device, calls[name]))
    baseline = times[next(iter(works))]
    results = {}
    for name, values in times.items():
        ratios = [value / base for value, base in zip(values, baseline, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4) if rounds > 1 else ratios * 3
        results[name] = {"ms": 1e3 * statistics.median(values), "ratio": middle, "quartiles": [low, high]}
    return results
