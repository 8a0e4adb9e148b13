"""Choices on validation examples: the radius of flat training, and numbers of epochs."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any


def select_value(key: str, trials: Mapping[float, Sequence[Any]]) -> dict[str, Any]:
    """The value with the lowest validation NLL, averaged over posteriors and seeds; and the scores.

    Args:
        key: What is chosen, the key of the choice in the result.
        trials: By value, the results of its trainings, one for each seed.
    """
    first = next(iter(trials.values()))
    names = list(first[0]["val"])
    scores = {value: {name: average_nll(results, name) for name in names} for value, results in trials.items()}
    means = {value: fmean(by_name.values()) for value, by_name in scores.items()}
    return {
        key: min(means, key=means.__getitem__),
        "seeds": list(range(len(first))),
        "val_nll": [[value, means[value], scores[value]] for value in scores],
        "best_by_method": {name: min(scores, key=lambda value: scores[value][name]) for name in names},
    }


def select_radius(trials: Mapping[float, Sequence[Any]]) -> dict[str, Any]:
    """The radius above 0 with the lowest validation NLL, whether it is lower than that of radius 0, and the scores.

    Args:
        trials: By radius, the results of its trainings, one for each seed.
    """
    record = select_value("rho", trials)
    means = {rho: mean for rho, mean, _ in record["val_nll"]}
    flat = min((rho for rho in means if rho), key=means.__getitem__)
    return record | {"rho": flat, "is_flat_better": means[flat] < means[0.0]}


def average_nll(results: Sequence[Any], name: str) -> float:
    """Validation NLL of a posterior averaged over trainings; infinite if one failed.

    Args:
        results: Results of the trainings.
        name: Name of the posterior.
    """
    values = [result["val"][name]["nll"] for result in results]
    return math.inf if None in values else fmean(values)
