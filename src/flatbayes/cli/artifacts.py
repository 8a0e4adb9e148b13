"""What the verbs that work on a fitted posterior share: reading it, measuring it."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from flatbayes.cli.models import rebuild_model
from flatbayes.core.spec import instantiate, short_name
from flatbayes.data import DataSource, Split
from flatbayes.experiments.results import RunCost, RunResult
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


def load_source(config: Mapping[str, Any], torch_dataset: str | None) -> DataSource:
    """The data source of a run.

    Args:
        config: Configuration of the run folder.
        torch_dataset: Dotted path that the user gives with `--data`; the configuration may name no other.

    Raises:
        ValueError: The source is a torch dataset of another path; nothing is imported.
    """
    allowed_paths = () if torch_dataset is None else (torch_dataset,)
    source: DataSource = instantiate(
        config["data"], package="flatbayes.data", base_class=DataSource, allowed_paths=allowed_paths
    )
    return source


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
    run = RunResult(
        data=short_name(config["data"]),
        model=short_name(config["model"]),
        posterior=short_name(config["posterior"]),
        flatness=short_name(config["flatness"]),
        seed=config["seed"],
        split=split_name,
        num_networks=found.num_networks,
        metrics=found.metrics,
        cost=RunCost(**fitted.info.get("cost", {})),
        reliability=found.reliability,
    )
    folder.add_result(run)
    table = Table(title=f"{run.posterior} x {run.flatness} on {len(split)} {split_name} examples")
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("definition")
    for metric, value in found.metrics.items():
        table.add_row(metric, f"{value:.4f}", DEFINITIONS[metric])
    console.print(table)
