"""MAP by SAM with and without a warm-up of the learning rate, by SAM that begins late, or trains longer.

FLATBAYES_DATA=... python -m studies.sentences.slow_start --warmup 0 --start 0.2 --out runs/slow-start.json

On one sample of 2,000 sentences SAM without a warm-up hardly learns with default options.

Adds a record of the training to the file: the losses by epoch, and the metrics on validation and test sentences.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from flatbayes import MAP, SAM, evaluate, fit
from flatbayes.core.files import read_json, write_json
from flatbayes.flatness import Delayed
from flatbayes.training import FINE_TUNING
from studies.fine_tuning.selection import DEFAULT_RADIUS
from studies.sentences.study import BATCH_SIZE
from studies.sentences.task import Task, load_task


def measure(task: Task, size: int, seed: int, start: float, min_epochs: int, warmup: float) -> dict[str, Any]:
    """The record of a training.

    Args:
        task: The data.
        size: Number of sentences.
        seed: Seed of the sentences, the head and the batches, as in the study.
        start: Fraction of training after which SAM begins.
        min_epochs: Largest number of epochs; `FINE_TUNING` has 5.
        warmup: Fraction of training over which the learning rate rises; `FINE_TUNING` has 0.1.
    """
    sam = SAM(rho=DEFAULT_RADIUS)
    schedule = replace(FINE_TUNING.schedule, warmup=warmup)  # type: ignore[type-var]  # a dataclass
    fitted = fit(
        task.builders["default"],
        task.draw_training(size, seed).make_loader(BATCH_SIZE),
        MAP(),
        Delayed(sam, start=start) if start else sam,
        replace(FINE_TUNING, min_epochs=min_epochs, schedule=schedule),
        val=task.val.sort_into_batches(),
        seed=seed,
    )
    history = fitted.info["training"]["history"]
    options = {"start": start, "min_epochs": min_epochs, "warmup": warmup}
    record = {"size": size, "seed": seed, **options, "history": history}
    for name, examples in {"val": task.val, "test": task.test}.items():
        evaluation = evaluate(fitted, examples.sort_into_batches(), precision="bf16-mixed")
        record[name] = {metric: evaluation.metrics[metric] for metric in ("accuracy", "nll", "ece")}
    return record


def main(arguments: list[str] | None = None) -> None:
    """Train once, and add the record to the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=2000, help="number of sentences")
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--start", type=float, default=0.0, help="fraction of training after which SAM begins")
    parser.add_argument("--min_epochs", type=int, default=FINE_TUNING.min_epochs, help="largest number of epochs")
    parser.add_argument("--warmup", type=float, default=0.1, help="fraction over which the learning rate rises")
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    records = read_json(options.out) if options.out.is_file() else []
    record = measure(load_task(), options.size, options.seed, options.start, options.min_epochs, options.warmup)
    write_json(options.out, [*records, record])


if __name__ == "__main__":
    main()
