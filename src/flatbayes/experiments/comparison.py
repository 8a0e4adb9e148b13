"""Flat against plain: every posterior in both versions, over seeds, in parallel, and safe to interrupt."""

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import nn

from flatbayes.core.environment import describe_environment
from flatbayes.core.files import read_json, write_json
from flatbayes.core.lock import hold, let_go
from flatbayes.core.spec import short_name, to_spec
from flatbayes.data import DataSource
from flatbayes.experiments.evaluations import EvaluationConfig
from flatbayes.experiments.method import Method, build_methods
from flatbayes.experiments.run import ExperimentRun
from flatbayes.experiments.run_folder import clear_folder
from flatbayes.experiments.statistics import summarize_runs
from flatbayes.flatness import SAM, Flatness, Plain
from flatbayes.metrics import HIGHER_IS_BETTER, METRIC_FAMILIES
from flatbayes.posteriors import Posterior
from flatbayes.prediction import check_num_draws
from flatbayes.training import TrainingConfig
from flatbayes.training.distributed.launch import get_process_layout
from flatbayes.training.distributed.workers import ParallelBackend, parallel_backend

CONFIG_FILE = "config.json"
SPLIT_NAMES = ("test", "val", "train")
FAMILY_BY_METRIC = {metric: family for family, metrics in METRIC_FAMILIES.items() for metric in metrics}
EXTENDABLE_FIELDS = ("posteriors", "flatness", "num_seeds", "evaluations")


@dataclass(frozen=True)
class Comparison:
    """Posteriors x flatness x seeds on one data set, with one network and one recipe.

    Attributes:
        source: The data.
        model: Builds the network.
        posteriors: Those to compare; as a `Method` where one has a recipe or flatness of its own.
        flatness: The flat version of each; the other one is `Plain()`.
        config: How they are trained.
        num_seeds: Number of seeds, from 0 on; twins share theirs.
        num_draws: Networks averaged in a prediction.
        split: Evaluate on the test part, or on the validation part to choose hyperparameters.
        evaluations: What is measured beside the usual metrics.
    """

    source: DataSource
    model: Callable[..., nn.Module]
    posteriors: Sequence[Posterior | Method]
    flatness: Flatness = SAM()
    config: TrainingConfig = TrainingConfig()
    num_seeds: int = 5
    num_draws: int = 30
    split: str = "test"
    evaluations: EvaluationConfig = EvaluationConfig()

    def __post_init__(self) -> None:
        if self.num_seeds < 1:
            raise ValueError(f"A comparison needs at least 1 seed, got {self.num_seeds}.")
        check_num_draws(self.num_draws)
        if not self.posteriors:
            raise ValueError("A comparison needs at least one posterior, got none.")
        build_methods(self.posteriors)
        if self.split not in SPLIT_NAMES:
            raise ValueError(f"split must be {', '.join(SPLIT_NAMES)}, got {self.split!r}.")
        if self.flatness == Plain():
            raise ValueError("A comparison sets a flatness against Plain: choose another one, such as SAM.")

    def list_runs(self) -> list[ExperimentRun]:
        """Every run, the seeds outermost: an interrupted comparison then has whole seeds."""
        return [
            ExperimentRun(
                source=self.source,
                model=self.model,
                posterior=method.posterior,
                flatness=flatness,
                config=method.apply_overrides(self.config),
                seed=seed,
                num_draws=self.num_draws,
                split=self.split,
                posterior_name=method.label,
                evaluations=self.evaluations,
            )
            for seed in range(self.num_seeds)
            for method in build_methods(self.posteriors)
            for flatness in (Plain(), method.flatness or self.flatness)
        ]

    def claim_folder(self, folder: Path, *, overwrite: bool) -> None:
        """Make the folder that of this comparison, or go on with it.

        A comparison may be continued with other posteriors, flatness or numbers of seeds; it is another one if
        data, network, recipe, draws or part differ. No other process may have it until `results` or this process
        ends.

        Raises:
            ValueError: The folder already holds something else, and `overwrite` is not set; or another process is
                writing there.
        """
        claim_folder(folder, to_spec(self)["init_args"], EXTENDABLE_FIELDS, overwrite=overwrite)

    def run(
        self,
        folder: Path,
        *,
        jobs: int | None = None,
        show_progress: bool | None = None,
        backend: ParallelBackend = "loky",
    ) -> dict[str, Any]:
        """Do what is not in the folder yet, and write `results.json`.

        Args:
            folder: Where finished runs are kept; with `ray` on several machines, one that all of them can write to.
            jobs: Processes; by default one per core, or one if there is a GPU.
            show_progress: Show a progress bar; by default if standard error is a terminal.
            backend: What starts the processes: `loky` on this machine, `ray` on those of a cluster.

        Returns:
            The content of `results.json`; `failures` says which runs came to nothing, and why.

        Raises:
            ValueError: Another process is writing to the folder.
            RuntimeError: A process of this comparison was killed; the runs that were done are kept.
        """
        tasks = self.list_runs()
        hold(folder)
        try:
            failures = execute_runs(tasks, folder / "runs", jobs, show_progress, backend)
            runs = [found for found in (task.load_result(folder / "runs") for task in tasks) if found is not None]
            return write_results(folder, to_spec(self)["init_args"], runs, failures)
        finally:
            let_go(folder)


def claim_folder(folder: Path, config: dict[str, Any], extendable_keys: Sequence[str], *, overwrite: bool) -> None:
    """Make the folder that of what is described, or go on with it.

    Args:
        folder: The folder.
        config: What is to be done, as plain data.
        extendable_keys: Keys that may differ from what was done before.
        overwrite: Throw away what the folder holds.

    Raises:
        ValueError: The folder already holds something else, and `overwrite` is not set; or another process is
            writing there.
    """
    path = folder / CONFIG_FILE
    hold(folder)
    if path.is_file() and not overwrite:
        found = read_json(path)
        fixed = [key for key in config if key not in extendable_keys]
        other = [key for key in fixed if not isinstance(found, dict) or found.get(key) != config[key]]
        if other:
            raise ValueError(
                f"{folder} already holds another run (it differs in {', '.join(other)}): choose another --out, "
                "or --overwrite."
            )
    if overwrite:
        clear_folder(folder)
    write_json(path, config)


def write_results(
    folder: Path, config: dict[str, Any], runs: Sequence[dict[str, Any]], failures: Sequence[str] = ()
) -> dict[str, Any]:
    """Write `results.json`, which reports are made from, and return its content.

    Args:
        folder: Where to.
        config: What was asked for.
        runs: What `Task.execute` returns.
        failures: Which runs came to nothing, and why.
    """
    results = {
        "flatbayes": version("flatbayes"),
        "environment": describe_environment(),
        "config": config,
        "runs": list(runs),
        "summary": summarize_runs(runs, short_name(Plain()), HIGHER_IS_BETTER, FAMILY_BY_METRIC),
        "failures": list(failures),
    }
    write_json(folder / "results.json", results)
    return results


def execute_runs(
    runs: Sequence[ExperimentRun],
    folder: Path,
    jobs: int | None = None,
    show_progress: bool | None = None,
    backend: ParallelBackend = "loky",
) -> list[str]:
    """Do the tasks whose results are not in the folder yet.

    Args:
        runs: All of them; a task that is there twice is done once.
        folder: Where results are kept.
        jobs: Processes; by default one per core, or one if there is a GPU.
        show_progress: Show a progress bar; by default if standard error is a terminal.
        backend: What starts the processes.

    Raises:
        ValueError: A run is to be trained on several devices.
        ImportError: A package is missing.
        RuntimeError: One of the processes was killed; the runs that were done are kept.

    Returns:
        Which came to nothing, and why.
    """
    several = [task.name for task in runs if prod(get_process_layout(task.config)) > 1]
    if several:
        raise ValueError(
            f"Runs go side by side, each on one device, and {several[0]} asks for several. Leave devices out, "
            "start this without torchrun, and choose by jobs how many runs there are at a time."
        )
    unique = {task.cache_key(): task for task in runs}
    missing = [task for task in unique.values() if task.load_result(folder) is None]
    if not missing:
        return []
    from joblib import Parallel, delayed  # here, since it is slow to import

    bar = Progress(
        TextColumn("comparing"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("runs  {task.fields[last]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not (sys.stderr.isatty() if show_progress is None else show_progress),
    )
    try:
        with bar:
            shown = bar.add_task("", total=len(unique), completed=len(unique) - len(missing), last="")
            calls = (delayed(task.try_execute)(folder) for task in missing)
            with parallel_backend(backend) as most:
                number, failures = min(jobs or most, len(missing)), []
                order = "generator_unordered" if backend == "loky" else "list"  # Ray's joblib gives all at the end
                for task, reason in Parallel(n_jobs=number, return_as=order)(calls):
                    bar.update(shown, advance=1, last=task.name)
                    if reason is not None:
                        failures.append(f"{task.name}: {reason}")
    except BrokenExecutor as error:
        raise RuntimeError(
            f"A process was killed, as happens when memory runs out. Finished runs are kept in {folder}, and the "
            "same command goes on with them; --jobs 1 needs the least memory."
        ) from error
    return sorted(failures)
