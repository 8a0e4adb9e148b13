"""How much isotropic noise adapters tolerate (TFB) after a plain training and after one with SAM.

    FLATBAYES_DATA=... python -m studies.adapters docs/results/adapters.json

Adapters of MiniLM are trained on 200 sentences of SST-2, those of `studies.sentences`. TFB chooses the largest
standard deviation with which the NLL of 120 validation sentences rises by at most 0.3 %. Test sentences enter no
choice. Every training is written when it is finished; the same command continues.
"""

import sys
import time
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

from flatbayes import MAP, SAM, TFB, Categorical, FittedPosterior, Plain, TrainingConfig, evaluate, fit, tune_draws
from flatbayes.core.files import read_json, replace_nonfinite, write_json
from flatbayes.flatness import Flatness
from studies.sentences.task import Task, load_task

NUM_SEEDS, NUM_TRAIN, NUM_TEST, NUM_DRAWS, BATCH_SIZE, EPOCHS, LEARNING_RATE = 3, 200, 200, 10, 20, 5, 2e-3
FLATNESSES: dict[str, Flatness] = {"Plain": Plain(), "SAM": SAM(rho=0.05)}


def run(task: Task, flatness: str, seed: int) -> dict[str, Any]:
    """Train adapters, choose the noise, and evaluate the network and the posterior on test sentences.

    Args:
        task: The data.
        flatness: Name of the flatness.
        seed: Seed of the sentences, the initial adapters, and the order of batches.
    """
    start = time.process_time()
    trained = fit(
        task.builders["lora"],
        task.draw_training(NUM_TRAIN, seed).make_loader(BATCH_SIZE),
        MAP(),
        FLATNESSES[flatness],
        TrainingConfig(
            epochs=EPOCHS, num_validations=0, optimizer=partial(torch.optim.Adam, lr=LEARNING_RATE, fused=True)
        ),
        likelihood=Categorical(2),
        num_data=NUM_TRAIN,
        seed=seed,
        show_progress=False,
    )
    network = trained.states[0].model
    posterior: FittedPosterior = replace(trained, posterior=TFB(), states=[TFB().init(network, None, NUM_TRAIN)])
    posterior = tune_draws(posterior, task.val.sort_into_batches())
    choice = posterior.info["training"]["draw_options"]["std"]
    test = task.test.select(range(NUM_TEST)).sort_into_batches()
    metrics = {
        name: evaluate(fitted, test, num_draws=NUM_DRAWS).metrics
        for name, fitted in (("MAP", trained), ("TFB", posterior))
    }
    return {
        "flatness": flatness,
        "seed": seed,
        "std": choice["value"],
        "changes": choice["changes"],
        "test": metrics,
        "cpu_seconds": time.process_time() - start,
    }


def main(path: Path) -> None:
    """Write one row for every training; rows that the file has are kept."""
    torch.set_num_threads(1)
    rows = read_json(path) if path.exists() else []
    done = {(row["seed"], row["flatness"]) for row in rows}
    task = load_task()
    for seed, flatness in product(range(NUM_SEEDS), FLATNESSES):
        if (seed, flatness) not in done:
            rows.append(replace_nonfinite(run(task, flatness, seed)))
            write_json(path, rows)
            nll = {name: round(metrics["nll"], 4) for name, metrics in rows[-1]["test"].items()}
            print(seed, flatness, rows[-1]["std"], nll, round(rows[-1]["cpu_seconds"]), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
