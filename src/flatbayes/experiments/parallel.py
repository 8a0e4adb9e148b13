"""Parallel execution of runs with joblib, with a progress bar."""

import sys
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor
from math import prod
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from flatbayes.core.console import PlainConsole
from flatbayes.experiments.run import ExperimentRun
from flatbayes.training.distributed.launch import get_process_layout
from flatbayes.training.distributed.workers import (
    ParallelBackend,
    get_worker_options,
    parallel_backend,
    share_devices,
)


def execute_runs(
    runs: Sequence[ExperimentRun],
    folder: Path,
    jobs: int | None = None,
    show_progress: bool | None = None,
    backend: ParallelBackend = "loky",
) -> list[str]:
    """Execute the runs whose results are not in the folder yet.

    Args:
        runs: All runs; equal runs are executed once.
        folder: Folder of the results.
        jobs: Number of processes, which are spread over the GPUs; by default one per GPU, or one per core if there is
            none or the runs use the CPU.
        show_progress: Show a progress bar on standard error; by default if that is a terminal.
        backend: How processes are started: `loky` on this machine, `ray` on those of a cluster.

    Returns:
        Names of the failed runs, with the reason.

    Raises:
        ValueError: A run is configured for several devices.
        ImportError: A package is missing.
        RuntimeError: A process was killed; finished runs are kept.

    Examples:
        >>> comparison = Comparison(
        ...     source, MLP, [MAP()], config=config, num_seeds=2
        ... )
        >>> execute_runs(comparison.list_runs(), Path("runs"), jobs=1)  # no run failed
        []
    """
    multi_device = [run.name for run in runs if prod(get_process_layout(run.config)) > 1]
    if multi_device:
        raise ValueError(
            f"Each run of a comparison is trained on one device, and {multi_device[0]} is configured for several. "
            "Leave out devices, start this without torchrun, and set the number of parallel runs by jobs."
        )
    unique = {run.cache_key(): run for run in runs}
    missing = [run for run in unique.values() if run.load_result(folder) is None]
    if not missing:
        return []
    from joblib import Parallel, delayed  # here, since it is slow to import

    accelerators = {run.config.distribution.accelerator for run in missing}
    accelerator = accelerators.pop() if len(accelerators) == 1 else "auto"
    calls = (delayed(run.try_execute)(folder) for run in missing)
    failures = []
    try:
        with (
            _progress_bar(show_progress) as bar,
            parallel_backend(backend, accelerator) as max_jobs,
            share_devices(accelerator) as device_queue,
        ):
            task = bar.add_task("", total=len(unique), completed=len(unique) - len(missing), last="")
            order = "generator_unordered" if backend == "loky" else "list"  # joblib on Ray returns all at the end
            options = get_worker_options(device_queue)
            num_jobs = min(jobs or max_jobs, len(missing))
            for run, reason in Parallel(n_jobs=num_jobs, return_as=order, **options)(calls):
                bar.update(task, advance=1, last=run.name)
                if reason is not None:
                    failures.append(f"{run.name}: {reason}")
    except BrokenExecutor as error:
        raise RuntimeError(
            f"A process was killed, as happens when memory runs out. Finished runs are kept in {folder}, and the "
            "same call or command goes on with them; one process (num_jobs 1) needs the least memory."
        ) from error
    return sorted(failures)


def _progress_bar(show_progress: bool | None) -> Progress:
    return Progress(
        TextColumn("comparing"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("runs  {task.fields[last]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=PlainConsole(stderr=True),
        disable=not (sys.stderr.isatty() if show_progress is None else show_progress),
    )
