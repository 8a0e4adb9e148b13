"""Trainings of the choice half of the benchmark of the defaults, with radii in several units.

    FLATBAYES_DATA=... python -m studies.radius runs/radius docs/results/radius.json

The first argument is the folder in which finished trainings are kept, so that a stopped study continues.
"""

import argparse
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from flatbayes.core.files import read_json, write_json
from flatbayes.core.spec import short_name
from flatbayes.data import DataSplits
from flatbayes.flatness import Flatness, Plain
from flatbayes.models import MLP
from flatbayes.posteriors import MAP, SWAG, Posterior
from flatbayes.prediction import evaluate
from flatbayes.training import TrainingConfig
from flatbayes.training.sharing import try_fit_together
from studies.defaults.tasks import select_tasks
from studies.radius.summary import summarize
from studies.radius.units import UNITS, get_value

TASKS = (
    "breast-cancer",
    "digits",
    "iris",
    "noisy-labels",
    "wide-classes",
    "concrete",
    "energy",
    "high-noise",
    "table-numbers",
    "wine-quality-red",
)
"""The choice half, without its large sets and the one that needs the most memory."""
POSTERIORS: dict[str, Posterior] = {"MAP": MAP(), "SWAG": SWAG()}
NUM_SEEDS, NUM_STEPS = 2, 1500


def make_config(data: DataSplits) -> TrainingConfig:
    """About 1500 steps; regressions with clipped gradients, as on the command line."""
    steps_per_epoch = max(1, len(data.train) // 64)
    return TrainingConfig(
        epochs=math.ceil(NUM_STEPS / steps_per_epoch),
        num_validations=1,
        optimization={"clip_norm": 1.0 if data.is_regression else None},  # type: ignore[arg-type]
    )


def list_flatnesses() -> Iterator[tuple[str, float, Flatness]]:
    """Plain training, and every value in every unit."""
    yield "plain", 0.0, Plain()
    for unit, flatnesses in UNITS.items():
        for flatness in flatnesses:
            yield unit, get_value(flatness), flatness


def run_training(data: DataSplits, flatness: Flatness, seed: int) -> dict[str, Any]:
    """Validation and test NLL of every posterior; None where the training failed."""
    config = make_config(data)
    outcomes = try_fit_together(MLP, data, [(p, config) for p in POSTERIORS.values()], flatness, seed=seed)
    scores: dict[str, Any] = {}
    for name, outcome in zip(POSTERIORS, outcomes, strict=True):
        for split in ("val", "test"):
            part = getattr(data, split)
            scores[f"{name} {split}"] = (
                None
                if outcome.fitted is None
                else evaluate(outcome.fitted, part.inputs, part.targets, 20, seed=seed).metrics["nll"]
            )
    return scores


def main() -> None:
    """Run what is missing, and write the summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    options.folder.mkdir(parents=True, exist_ok=True)
    for seed in range(NUM_SEEDS):
        for task in select_tasks(TASKS):
            path, data = options.folder / f"{task.name}.{seed}.json", task.split(seed).splits
            records: dict[str, Any] = read_json(path) if path.exists() else {}  # type: ignore[assignment]
            for unit, value, flatness in list_flatnesses():
                key = f"{unit}|{value:g}"
                if key not in records:
                    records[key] = run_training(data, flatness, seed)
                    write_json(path, records)
                    print(task.name, seed, short_name(flatness), records[key], flush=True)
    write_json(options.out, summarize(options.folder))


if __name__ == "__main__":
    main()
