"""Readers and writers of one run folder at the same time: run as a script, prints the counts as JSON.

In each round two `evaluate` with different seeds, a `predict`, and a process that loads and saves the artefact run at
once. Every command ends well, the artefact predicts the same numbers, and both results of a round are kept.
"""

import json
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cases import Case, complaints, whole
from faults import BATCH_NORM, predict_with_artefact
from forked import call, run

from flatbayes.prediction import FittedPosterior

FIT = ["fit", *BATCH_NORM, "--epochs=3", "--out=run"]


def save_again(folder: Path) -> int:
    """Load the artefact and save it a few times."""
    for _ in range(5):
        FittedPosterior.load(folder).save(folder)
    return 0


def main(rounds: int) -> dict[str, Any]:
    """Run the rounds."""
    bad: list[str] = []
    with tempfile.TemporaryDirectory() as below:
        evaluate = ["evaluate", "run", "--num_draws=2"]
        done = whole(Case([*evaluate, "--seed=100000"], [FIT]), Path(below) / "whole")
        folder = done.folder
        expected = predict_with_artefact(folder)
        for number in range(rounds):
            predict = ["predict", "run", "--input=new.npz", f"--output=out-{number}.csv", "--num_draws=2"]
            with ThreadPoolExecutor(4) as pool:
                commands = [[*evaluate, f"--seed={2 * number}"], [*evaluate, f"--seed={2 * number + 1}"], predict]
                futures = [pool.submit(call, words, folder) for words in commands]
                futures.append(pool.submit(run, lambda: save_again(folder / "run"), folder))
                ended = [future.result() for future in futures]
            bad += [f"round {number}: {end.err[-500:]}" for end in ended if end.code]
            bad += [f"round {number}: {text}" for text in complaints(folder, ended[0])]
            if predict_with_artefact(folder) != expected:
                bad.append(f"round {number}: the artefact is lost or changed")
        runs = json.loads((folder / "run" / "results.json").read_text())["runs"]
        seeds = {entry["settings"]["draw_seed"] for entry in runs if entry["split"] == "test"}
        bad += [f"the result of seed {seed} is lost" for seed in sorted(set(range(2 * rounds)) - seeds)]
    return {"counts": {"rounds": rounds, "commands": 4 * rounds, "wrong": len(bad)}, "bad": bad}


if __name__ == "__main__":
    json.dump(main(int(sys.argv[1])), sys.stdout, indent=1)
