"""The log evidence against validation examples, as a judge of radii and of widths.

    python -m studies.evidence docs/results/evidence.json

On each data set a network is trained with every radius of SAM, 0 included, and one with every width. A judge chooses
one of them: the log evidence by each structure of the curvature, the validation NLL, or nothing (radius 0, the usual
width). What counts is the test NLL of the choice.
"""

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from scipy.stats import spearmanr
from sklearn.datasets import load_breast_cancer, load_digits, load_wine

from flatbayes import MAP, MLP, SAM, ConvNet, Plain, TrainingConfig, evaluate, fit
from flatbayes.core.files import write_json
from flatbayes.diagnostics import estimate_evidence
from flatbayes.experiments.run_folder import describe_environment

NUM_SEEDS = 5
RADII, WIDTHS, USUAL_WIDTH = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8), (8, 16, 32, 64, 128, 256, 512), 128
STRUCTURES = ("kron", "diag", "last_layer")
JUDGES = (*STRUCTURES, "validation", "none")
Example = tuple[torch.Tensor, torch.Tensor]


def load_task(name: str, seed: int) -> dict[str, Example]:
    """Training, validation and test examples: digits as images, or a table of scikit-learn."""
    load = {"cancer": load_breast_cancer, "wine": load_wine}.get(name, load_digits)
    values, labels = load(return_X_y=True)
    inputs, targets = torch.tensor(values).float(), torch.tensor(labels)
    if name == "digits, ConvNet":
        inputs = inputs.view(-1, 1, 8, 8)
    rows = torch.randperm(len(targets), generator=torch.Generator().manual_seed(seed))
    num_train, num_val = (500, 200) if name.startswith("digits") else (len(targets) // 3, len(targets) // 6)
    parts = {
        "train": rows[:num_train],
        "val": rows[num_train : num_train + num_val],
        "test": rows[num_train + num_val :],
    }
    return {part: (inputs[chosen], targets[chosen]) for part, chosen in parts.items()}


def make_config(epochs: int, lr: float, batch_size: int) -> TrainingConfig:
    """SGD with a weak weight decay, until the training loss is small."""
    optimizer = partial(torch.optim.SGD, lr=lr, momentum=0.9, weight_decay=1e-4)
    return TrainingConfig(epochs=epochs, batch_size=batch_size, optimizer=optimizer)


TASKS = {
    "digits, MLP": (lambda width: partial(MLP, hidden=(width, width)), make_config(40, 0.05, 128)),
    "digits, ConvNet": (lambda width: partial(ConvNet, width=max(2, width // 8)), make_config(60, 0.1, 64)),
    "cancer": (lambda width: partial(MLP, hidden=(width, width)), make_config(60, 0.05, 32)),
    "wine": (lambda width: partial(MLP, hidden=(width, width)), make_config(60, 0.05, 32)),
}
"""Network by width, and training, by name of the task."""


def measure(name: str, parts: Mapping[str, Example], rho: float, width: int, seed: int) -> dict[str, float]:
    """Log evidence for each training example, validation NLL and test NLL of one training."""
    make_network, config = TASKS[name]
    flatness = SAM(rho=rho) if rho else Plain()
    fitted = fit(make_network(width), parts["train"], MAP(), flatness, config, seed=seed, show_progress=False)
    evidence = {s: estimate_evidence(fitted, parts["train"], structure=s) for s in STRUCTURES}
    nlls = {f"{part}_nll": evaluate(fitted, parts[part]).metrics["nll"] for part in ("val", "test")}
    scores = {s: estimate.log_evidence / estimate.num_data for s, estimate in evidence.items()}
    return {"rho": rho, "width": width, **scores, **nlls}


def choose(trainings: Sequence[Mapping[str, float]], judge: str) -> Mapping[str, float]:
    """The training that a judge prefers."""
    if judge == "none":
        return next(t for t in trainings if t["rho"] == 0 and t["width"] == USUAL_WIDTH)
    if judge == "validation":
        return min(trainings, key=lambda t: t["val_nll"])
    return max(trainings, key=lambda t: t[judge])


def summarize(trials: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each task and question: test NLL of every judge's choice, and its rank correlation with the test NLL."""
    rows = []
    for name in TASKS:
        for question in ("radii", "widths"):
            groups = [trial[question] for trial in trials if trial["task"] == name]
            best = fmean(min(t["test_nll"] for t in group) for group in groups)
            row: dict[str, Any] = {"task": name, "question": question, "best": best, "judges": {}}
            for judge in JUDGES:
                nlls = [choose(group, judge)["test_nll"] for group in groups]
                row["judges"][judge] = {"nll": fmean(nlls), "sd": stdev(nlls)}
                if judge != "none":
                    sign, key = (1, "val_nll") if judge == "validation" else (-1, judge)
                    ranks = [spearmanr([sign * t[key] for t in g], [t["test_nll"] for t in g])[0] for g in groups]
                    row["judges"][judge]["rank_correlation"] = fmean(map(float, ranks))
            rows.append(row)
    return rows


def main(path: Path) -> None:
    """Run all trials, and write and print their summary."""
    trials = []
    for name in TASKS:
        for seed in range(NUM_SEEDS):
            parts = load_task(name, seed)
            plain = {width: measure(name, parts, 0.0, width, seed) for width in WIDTHS}
            flat = [measure(name, parts, rho, USUAL_WIDTH, seed) for rho in RADII[1:]]
            radii = [plain[USUAL_WIDTH], *flat]
            trials.append({"task": name, "seed": seed, "radii": radii, "widths": [*plain.values()]})
    summary = summarize(trials)
    write_json(path, {"environment": describe_environment(), "summary": summary, "trials": trials})
    for row in summary:
        print(f"{row['task']}, {row['question']}: best {row['best']:.3f}")
        for judge, numbers in row["judges"].items():
            print(f"  {judge:10}", *(f"{key} {value:+.3f}" for key, value in numbers.items()))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
