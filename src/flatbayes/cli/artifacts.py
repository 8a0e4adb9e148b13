"""What the verbs that work on a fitted posterior share: reading it, measuring it."""

import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from flatbayes.cli.models import rebuild_model
from flatbayes.core.spec import short_name
from flatbayes.data import Split
from flatbayes.experiments.run_folder import RunFolder
from flatbayes.metrics import DEFINITIONS
from flatbayes.prediction import FittedPosterior, evaluate
from flatbayes.prediction.metadata import read_metadata

console = Console()


def load_on_device(folder: Path, model: str | None) -> FittedPosterior:
    """The posterior of a run, on the accelerator if there is one."""
    fitted = load_on_cpu(folder, model)
    return fitted.to("cuda") if torch.cuda.is_available() else fitted


def load_on_cpu(folder: Path, model: str | None) -> FittedPosterior:
    """The posterior of a run, in main memory."""
    architecture = None
    if model is not None:
        architecture = rebuild_model(read_metadata(folder)["info"].get("model"), model)
    return FittedPosterior.load(folder, architecture)


def evaluate_run(
    fitted: FittedPosterior,
    folder: RunFolder,
    split: Split,
    split_name: str,
    num_draws: int,
    batch_size: int,
    seed: int,
) -> None:
    """Evaluate on a part of the data, keep the result in the run folder, and show it."""
    config = folder.read_config()
    show, known = sys.stderr.isatty(), len(fitted.norm_statistics)
    found = evaluate(
        fitted, split.inputs, split.targets, num_draws, batch_size=batch_size, seed=seed, show_progress=show
    )
    if len(fitted.norm_statistics) > known:  # estimating them again would cost more than keeping them
        folder.save(fitted)
    run = {key: short_name(config[key]) for key in ("data", "model", "posterior", "flatness")} | {
        "seed": config["seed"],
        "split": split_name,
        "num_networks": found.num_networks,
        "metrics": found.metrics,
        "cost": fitted.info.get("cost", {}),
        "reliability": found.reliability,
    }
    folder.add_result(run)
    table = Table(title=f"{run['posterior']} x {run['flatness']} on {len(split)} {split_name} examples")
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("definition")
    for metric, value in found.metrics.items():
        table.add_row(metric, f"{value:.4f}", DEFINITIONS[metric])
    console.print(table)
