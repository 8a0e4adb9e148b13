"""What the verbs that work on a fitted posterior share: reading it, measuring it."""

import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from flatbayes.cli.models import rebuilt
from flatbayes.core.spec import label
from flatbayes.data import Part
from flatbayes.metrics import DEFINITIONS
from flatbayes.prediction import FittedPosterior, evaluate
from flatbayes.prediction.description import read_description
from flatbayes.training.run_folder import RunFolder

console = Console()


def load(folder: Path, model: str | None) -> FittedPosterior:
    """The posterior of a run, on the accelerator if there is one."""
    fitted = read(folder, model)
    return fitted.to("cuda") if torch.cuda.is_available() else fitted


def read(folder: Path, model: str | None) -> FittedPosterior:
    """The posterior of a run, in main memory."""
    architecture = None
    if model is not None:
        architecture = rebuilt(read_description(folder)["info"].get("model"), model)
    return FittedPosterior.load(folder, architecture)


def measure(
    fitted: FittedPosterior, folder: RunFolder, part: Part, name: str, draws: int, batch_size: int, seed: int
) -> None:
    """Evaluate on a part of the data, keep the result in the run folder, and show it."""
    config = folder.config()
    show, known = sys.stderr.isatty(), len(fitted.statistics_of_draws)
    found = evaluate(fitted, part.inputs, part.targets, draws, batch_size=batch_size, seed=seed, progress=show)
    if len(fitted.statistics_of_draws) > known:  # estimating them again would cost more than keeping them
        folder.save(fitted)
    run = {key: label(config[key]) for key in ("data", "model", "posterior", "flatness")} | {
        "seed": config["seed"],
        "part": name,
        "num_networks": found.num_networks,
        "metrics": found.metrics,
        "cost": fitted.info.get("cost", {}),
        "reliability": found.reliability,
    }
    folder.add_result(run)
    table = Table(title=f"{run['posterior']} x {run['flatness']} on {len(part)} {name} examples")
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("definition")
    for metric, value in found.metrics.items():
        table.add_row(metric, f"{value:.4f}", DEFINITIONS[metric])
    console.print(table)
