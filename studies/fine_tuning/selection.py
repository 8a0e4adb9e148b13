"""Choices on validation examples: the number of epochs of plain training, and radius and epochs of flat training.

Also what is trained where nothing is chosen.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from flatbayes.posteriors import MAP, SWAG, Laplace, MCDropout, Posterior

DEFAULTS: dict[str, Posterior] = {
    "MAP": MAP(),
    "MC-Dropout": MCDropout(),
    "SWAG": SWAG(),
    "Laplace": Laplace(),
}
"""Posteriors of one training with the default options of `fit` for a pretrained network."""
DEFAULT_RADIUS = 0.05
Candidate = tuple[float, int]
"""A radius of SAM, 0 for plain training, and a number of epochs."""


def select_twins(trials: Mapping[Candidate, Sequence[Any]]) -> dict[str, Any]:
    """The `plain` and the `flat` candidate of the lowest validation NLL, averaged over posteriors and seeds.

    The flat twin has a radius above 0, also where plain training has the lower NLL, which `is_flat_better` says.
    Without candidates for a twin there is none.

    Args:
        trials: By candidate, the results of its trainings, one for each seed.

    Returns:
        Both candidates, the seeds, and the NLL of every candidate: its mean, and by posterior.
    """
    candidates = [describe_candidate(candidate, results) for candidate, results in trials.items()]
    groups = {"plain": [c for c in candidates if not c["rho"]], "flat": [c for c in candidates if c["rho"]]}
    best = {name: min(group, key=lambda candidate: candidate["nll"]) for name, group in groups.items() if group}
    return {
        **{name: {key: candidate[key] for key in ("rho", "epochs", "nll")} for name, candidate in best.items()},
        "is_flat_better": len(best) == len(groups) and best["flat"]["nll"] < best["plain"]["nll"],
        "seeds": list(range(len(next(iter(trials.values()))))),
        "candidates": candidates,
    }


def describe_candidate(candidate: Candidate, results: Sequence[Any]) -> dict[str, Any]:
    """Radius, number of epochs, and validation NLL of a candidate."""
    rho, epochs = candidate
    nlls = {name: average_nll(results, name) for name in results[0]["val"]}
    return {"rho": rho, "epochs": epochs, "nll": fmean(nlls.values()), "nll_by_posterior": nlls}


def average_nll(results: Sequence[Any], name: str) -> float:
    """Validation NLL of a posterior averaged over trainings; infinite if one failed."""
    values = [result["val"][name]["nll"] for result in results]
    return math.inf if None in values else fmean(values)
