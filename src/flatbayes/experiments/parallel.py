"""Parallel execution of runs with joblib, with a progress bar, where it is faster than one run after the other."""

import math
import sys
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor
from math import prod
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from flatbayes.core.accelerators import count_accelerators
from flatbayes.core.console import PlainConsole
from flatbayes.experiments.run import ExperimentRun, group_runs, try_execute_together
from flatbayes.training.distributed.launch import get_process_layout
from flatbayes.training.distributed.workers import (
    ParallelBackend,
    get_worker_options,
    parallel_backend,
    share_devices,
)
from flatbayes.training.dry_run import measure_step_seconds

WORKER_START_SECONDS = 4.0
"""Time that a worker takes to start, to import torch and to take its first step, on a core of 2024."""


def execute_runs(
    runs: Sequence[ExperimentRun],
    folder: Path,
    jobs: int | None = None,
    show_progress: bool | None = None,
    backend: ParallelBackend = "loky",
    *,
    share_trainings: bool = True,
) -> list[str]:
    """Execute the runs whose results are not in the folder yet.

    A process trains the networks that several runs need once, and evaluates these runs one after the other.

    Args:
        runs: All runs; equal runs are executed once.
        folder: Folder of the results.
        jobs: Number of processes, which are spread over the GPUs; by default one per GPU. Without GPUs, or if the
            runs use the CPU, it is one per core, or this process alone where workers would need longer to start
            than they save: see `choose_num_jobs`.
        show_progress: Show a progress bar on standard error; by default if that is a terminal.
        backend: How processes are started: `loky` on this machine, `ray` on those of a cluster.
        share_trainings: Whether runs whose networks are trained alike share a training. The results are the same
            without; a process then holds the networks of one run at a time.

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
    missing[0].evaluations.check(missing[0].load_data(), missing[0].split)
    from joblib import Parallel, delayed  # here, since it is slow to import

    accelerators = {run.config.distribution.accelerator for run in missing}
    accelerator = accelerators.pop() if len(accelerators) == 1 else "auto"
    groups = group_runs(missing) if share_trainings else [[run] for run in missing]
    keys = [group[0].training_key() if share_trainings else None for group in groups]
    calls = (delayed(try_execute_together)(group, folder, None, key) for group, key in zip(groups, keys, strict=True))
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
            num_jobs = min(jobs or max_jobs, len(groups))
            if jobs is None and num_jobs > 1 and backend == "loky" and not count_accelerators(accelerator):
                num_jobs = choose_num_jobs(estimate_seconds(groups), num_jobs)
            for outcomes in Parallel(n_jobs=num_jobs, return_as=order, **options)(calls):
                bar.update(task, advance=len(outcomes), last=outcomes[-1][0].name)
                failures += [f"{run.name}: {reason}" for run, reason in outcomes if reason is not None]
    except BrokenExecutor as error:
        raise RuntimeError(
            f"A process was killed, as happens when memory runs out. Finished runs are kept in {folder}, and the "
            "same call or command goes on with them; one process (num_jobs 1) needs the least memory."
        ) from error
    return sorted(failures)


def choose_num_jobs(seconds: Sequence[float], max_jobs: int) -> int:
    """The number of processes with which runs end first: all that are allowed, or 1.

    Workers start together and take `WORKER_START_SECONDS`, most of it to import torch. Later calls in the same
    program use the same workers. They are not forked: a fork of a process in which torch has threads can hang, and
    CUDA refuses it.
    """
    alone = sum(seconds)
    together = WORKER_START_SECONDS + max(alone / max_jobs, *seconds)
    return 1 if alone <= together else max_jobs


def estimate_seconds(groups: Sequence[Sequence[ExperimentRun]]) -> list[float]:
    """Time of each group of runs on the CPU: that of a gradient, from a few training steps, times their number.

    A prediction costs a third of a gradient for each network and example. NaN if the steps fail: the run reports why.
    """
    first, num_threads = groups[0][0], torch.get_num_threads()
    torch.set_num_threads(1)  # as in a run
    try:
        data = first.load_data()
        method = first.posterior, first.flatness, first.config
        seconds = measure_step_seconds(first.model, data, *method, **first.options.to_arguments())
    except (RuntimeError, ValueError):
        return [math.nan] * len(groups)
    finally:
        torch.set_num_threads(num_threads)
    num_examples, num_evaluated = len(data.train), len(getattr(data, first.split))

    def count_gradients_per_step(run: ExperimentRun) -> float:
        return run.flatness.gradients_per_step * run.posterior.gradients_per_step

    per_example = seconds / count_gradients_per_step(first) / min(first.config.batch_size, num_examples)

    def count_gradients(runs: Sequence[ExperimentRun]) -> float:
        num_trained = max(run.posterior.num_members for run in runs)
        steps_per_epoch = max(1, num_examples // runs[0].config.batch_size)
        num_epochs = runs[0].config.resolve_epochs(steps_per_epoch).num_epochs
        trained = num_epochs * num_examples * count_gradients_per_step(runs[0]) * num_trained
        return trained + sum(run.num_draws for run in runs) * num_evaluated / 3

    return [per_example * count_gradients(runs) for runs in groups]


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
