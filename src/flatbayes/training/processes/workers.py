"""Trainings that know nothing of each other, side by side: in processes of this machine, or on a Ray cluster."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import torch

from flatbayes.training.checkpoint import Checkpoints, Keeper
from flatbayes.training.processes.launch import fabric_of
from flatbayes.training.runs import Runs, kept_of
from flatbayes.training.watching.watch import Watch

Backend = Literal["loky", "ray"]
"""What starts processes, by the name that joblib has for it."""


@contextmanager
def workers(backend: Backend) -> Iterator[int]:
    """Inside, joblib does its work there. Gives the number of processes to use where nobody has said.

    A Ray cluster that this program is connected to already is used, and left as it is. Otherwise the one at
    RAY_ADDRESS is connected to, or a local one started, which is shut down at the end.

    Args:
        backend: What starts processes.

    Raises:
        ImportError: Ray is to do it, and is not installed.
    """
    if backend == "loky":
        yield default_jobs()
        return
    try:
        import ray
        from ray.util.joblib import register_ray
    except ImportError as error:
        raise ImportError("Runs on a Ray cluster need ray: pip install 'flatbayes[cluster]'.") from error
    from joblib import parallel_config

    own = not ray.is_initialized()
    if own:
        ray.init(include_dashboard=False, log_to_driver=False)
    register_ray()  # type: ignore[no-untyped-call]
    try:
        number = max(1, int(ray.cluster_resources().get("CPU", 1)))  # type: ignore[no-untyped-call]
        with parallel_config(backend="ray", n_jobs=number):
            yield number
    finally:
        if own:
            ray.shutdown()


def default_jobs() -> int:
    """One process per core; one in all where a GPU is shared."""
    return 1 if torch.cuda.is_available() else os.cpu_count() or 1


def trained_by_workers(
    runs: Runs, which: Sequence[int], checkpoints: Checkpoints | None
) -> dict[int, dict[str, Any]]:
    """What has come of some runs of a fit, as `kept_of`, each trained in a process of its own.

    Within joblib's `parallel_config`, or `workers`, these are where that says; otherwise on this machine.
    """
    from joblib import Parallel, delayed  # here, since it is slow to import
    from joblib.parallel import get_active_backend

    _, asked = get_active_backend()
    number = min(len(which), asked if asked not in (None, 1) else default_jobs())
    found = Parallel(n_jobs=number)(delayed(trained)(runs, run, checkpoints) for run in which) if which else []
    return dict(zip(which, found, strict=True))


def trained(runs: Runs, run: int, checkpoints: Checkpoints | None) -> dict[str, Any]:
    """Train one run to its end, on one device, and keep what a checkpoint keeps of it."""
    alone = replace(runs, recipe=replace(runs.recipe, devices=1))
    fabric, keeper = fabric_of(alone.recipe), Keeper(checkpoints)
    job = alone.alone(run, fabric)
    ended = job.train(fabric, Watch(), keeper, run)
    for state in ended:
        runs.posterior.finish(state, runs.source.examples(fabric.device), runs.likelihood.loss)
    kept = kept_of(ended, job)
    keeper.keep_ended(run, kept)
    return kept
