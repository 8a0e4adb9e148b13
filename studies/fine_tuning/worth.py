"""Gains of flat training in units of practice: labelled examples, and networks of an ensemble."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from flatbayes.metrics import ensemble_equivalent
from studies.fine_tuning.labels import is_without_warmup

Twins = Mapping[str, Sequence[dict[str, Any]]]
"""Trainings of the `plain` and of the `flat` twin."""


def measure_ensemble_equivalents(twins: Twins) -> dict[str, dict[str, float]]:
    """Size of the plain ensemble of the same calibrated NLL, 1 to 3, averaged over the seeds of both twins."""
    curves = {
        t["seed"]: t["test"]["Ensemble"]["ensemble_nlls"]
        for t in twins["plain"]
        if "ensemble_nlls" in t.get("test", {}).get("Ensemble", {})
    }
    values: dict[str, dict[str, dict[int, float]]] = {}
    for twin, trainings in twins.items():
        for training in trainings:
            for name, metrics in training.get("test", {}).items():
                value = metrics.get("nll_calibrated")
                if training["seed"] in curves and value is not None:
                    size = ensemble_equivalent(value, curves[training["seed"]])
                    values.setdefault(name, {}).setdefault(twin, {})[training["seed"]] = size
    seeds = {name: set.intersection(*map(set, by.values())) for name, by in values.items()}
    return {
        name: {twin: fmean(sizes[seed] for seed in seeds[name]) for twin, sizes in by.items()}
        for name, by in values.items()
        if seeds[name]
    }


def compare_sizes(settings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """How many more labelled examples plain training needs for the NLL of flat training, trained alike."""
    results = []
    groups: dict[tuple[str, bool], list[Mapping[str, Any]]] = {}
    for setting in settings:
        groups.setdefault((setting["trained"], is_without_warmup(setting)), []).append(setting)
    for (trained, _), group in groups.items():
        nlls: dict[str, dict[int, tuple[float, float]]] = {}
        for setting in group:
            for row in setting["rows"]:
                if row["metric"] == "nll" and row["interval"] is not None:
                    nlls.setdefault(row["posterior"], {})[setting["size"]] = row["plain"], row["flat"]
        for name, by_size in nlls.items():
            sizes = sorted(by_size)
            curve = [by_size[size][0] for size in sizes]
            results += [
                {
                    "trained": trained,
                    "warmup": group[0].get("warmup", 0.0),
                    "posterior": name,
                    "size": size,
                    "plain": by_size[size][0],
                    "flat": by_size[size][1],
                    "equal_plain_size": find_equal_size(by_size[size][1], sizes, curve),
                }
                for size in sizes
            ]
    return results


def find_equal_size(nll: float, sizes: Sequence[int], nlls: Sequence[float]) -> float | None:
    """Number of training examples with which plain training has an NLL, interpolated in the logarithm of the number.

    Args:
        nll: The NLL.
        sizes: Numbers of training examples, in ascending order.
        nlls: NLL of plain training for each.

    Returns:
        The first number at which the curve crosses the NLL; None if all its values are above it (more than the
        largest size), or the first is already below (fewer than the smallest).
    """
    if not sizes or nlls[0] < nll:
        return None
    if nlls[0] == nll:
        return float(sizes[0])
    for (n0, y0), (n1, y1) in zip(zip(sizes, nlls), zip(sizes[1:], nlls[1:])):  # noqa: B905  # pairs of neighbours
        if y1 <= nll:
            fraction = (y0 - nll) / (y0 - y1)
            return math.exp(math.log(n0) + fraction * math.log(n1 / n0))
    return None
