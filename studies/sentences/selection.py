"""Choices on validation sentences: the radius of flat training, and the number of epochs of plain training."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from flatbayes.core.files import read_json, replace_nonfinite


def select_value(key: str, paths: Mapping[float, Sequence[Path]]) -> dict[str, Any]:
    """The value with the lowest validation NLL, averaged over posteriors and seeds; and the scores.

    Args:
        key: What is chosen, the key of the choice in the result.
        paths: By value, the files of its trainings, one for each seed.
    """
    scores = {value: average_val_nlls(files) for value, files in paths.items()}
    means = {value: fmean(by_name.values()) for value, by_name in scores.items()}
    names = next(iter(scores.values()))
    record = {
        key: min(means, key=means.__getitem__),
        "num_seeds": len(next(iter(paths.values()))),
        "val_nll": [[value, means[value], scores[value]] for value in scores],
        "best_by_method": {name: min(scores, key=lambda value: scores[value][name]) for name in names},
    }
    plain: dict[str, Any] = replace_nonfinite(record)
    return plain


def average_val_nlls(paths: Sequence[Path]) -> dict[str, float]:
    """Validation NLL by posterior, averaged over trainings; infinite where one has failed.

    Args:
        paths: Files of the trainings.
    """
    results: list[Any] = [read_json(path)["val"] for path in paths]
    return {
        name: fmean(math.inf if (nll := result[name]["nll"]) is None else nll for result in results)
        for name in results[0]
    }
