"""How far the best values of a unit are apart, and what one value for all data sets costs.

python -m studies.radius.summary runs/radius docs/results/radius.json
"""

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean, median
from typing import Any

from flatbayes.core.files import read_json, write_json

Scores = dict[str, dict[float, float]]
"""Validation NLL by unit and value."""


def read_scores(path: Path, posterior: str) -> Scores:
    """Validation NLLs of a data set; infinity where training failed."""
    scores: Scores = {}
    records: Mapping[str, Any] = read_json(path)  # type: ignore[assignment]
    for key, record in records.items():
        unit, _, value = key.partition("|")
        nll = record[f"{posterior} val"]
        scores.setdefault(unit, {})[float(value)] = math.inf if nll is None else nll
    return scores


def summarize_unit(data: Mapping[str, Scores], unit: str) -> dict[str, Any]:
    """Best values of a unit, their spread, and the regret of the one value that is best for all data sets.

    The regret of a value on a data set is the share of the gain of the best radius in any unit over plain training
    that it does not reach, at most 2.
    """
    best = {name: min(scores[unit], key=scores[unit].__getitem__) for name, scores in data.items()}
    logs = [math.log10(value) for value in best.values()]
    spread = math.sqrt(fmean((log - fmean(logs)) ** 2 for log in logs))
    values = sorted(next(iter(data.values()))[unit])
    regrets = {
        value: fmean(compute_regret(scores, scores[unit][value]) for scores in data.values()) for value in values
    }
    one = min(regrets, key=regrets.__getitem__)
    own = fmean(compute_regret(scores, min(scores[unit].values())) for scores in data.values())
    return {
        "best": best,
        "median": median(best.values()),
        "spread": spread,
        "one": one,
        "regret": regrets[one],
        "own": own,
    }


def compute_regret(scores: Scores, nll: float) -> float:
    """The regret of `summarize_unit` for an NLL."""
    plain = scores["plain"][0.0]
    lowest = min(min(values.values()) for values in scores.values())
    return min(2.0, (nll - lowest) / max(plain - lowest, 1e-9))


def summarize(folder: Path) -> dict[str, Any]:
    """Summary of all units, by posterior."""
    result: dict[str, Any] = {}
    for posterior in ("MAP", "SWAG"):
        data = {path.stem: read_scores(path, posterior) for path in sorted(folder.glob("*.json"))}
        units = {unit: len(values) for scores in data.values() for unit, values in scores.items()}
        data = {n: s for n, s in data.items() if all(len(s.get(unit, {})) == size for unit, size in units.items())}
        result[posterior] = {unit: summarize_unit(data, unit) for unit in units if unit != "plain"}
    return result


if __name__ == "__main__":
    write_json(Path(sys.argv[2]), summarize(Path(sys.argv[1])))
