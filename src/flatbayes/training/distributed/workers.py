"""Trainings that know nothing of each other, side by side: in processes of this machine, or on a Ray cluster."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import torch

from flatbayes.training.callbacks.callback import Callback
from flatbayes.training.checkpoint import CheckpointManager, Checkpoints
from flatbayes.training.distributed.launch import make_fabric
from flatbayes.training.run_factory import RunFactory, export_run_result

ParallelBackend = Literal["loky", "ray"]
"""What starts processes, by the name that joblib has for it."""


@contextmanager
def parallel_backend(backend: ParallelBackend) -> Iterator[int]:
    """Inside, joblib does its work there. Gives the number of processes to use where nobody has said.

    A Ray cluster that this program is connected to already is used, and left as it is. Otherwise the one at
    RAY_ADDRESS is connected to, or a local one started, which is shut down at the end.

    Args:
        backend: What starts processes.

    Raises:
        ImportError: Ray is to do it, and is not installed.
    """
    if backend == "loky":
        yield default_num_jobs()
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


def default_num_jobs() -> int:
    """One process per core; one in all where a GPU is shared."""
    return 1 if torch.cuda.is_available() else os.cpu_count() or 1


def train_in_workers(
    factory: RunFactory, members: Sequence[int], checkpoints: Checkpoints | None
) -> dict[int, dict[str, Any]]:
    """What has come of some runs of a fit, as `export_run_result`, each trained in a process of its own.

    Within joblib's `parallel_config`, or `workers`, these are where that says; otherwise on this machine.
    """
    from joblib import Parallel, delayed  # here, since it is slow to import
    from joblib.parallel import get_active_backend

    _, asked = get_active_backend()
    number = min(len(members), asked if asked not in (None, 1) else default_num_jobs())
    found = (
        Parallel(n_jobs=number)(delayed(train_member)(factory, run, checkpoints) for run in members)
        if members
        else []
    )
    return dict(zip(members, found, strict=True))


def train_member(factory: RunFactory, member: int, checkpoints: Checkpoints | None) -> dict[str, Any]:
    """Train one run to its end, on one device, and keep what a checkpoint keeps of it."""
    alone = replace(factory, config=factory.config.with_options(distribution={"devices": 1}))
    fabric, keeper = make_fabric(alone.config), CheckpointManager(checkpoints)
    job = alone.create_single_run(member, fabric)
    ended = job.train(fabric, Callback(), keeper, member)
    for state in ended:
        factory.posterior.finalize(state, factory.training_data.iter_examples(fabric.device), factory.likelihood.loss)
    kept = export_run_result(ended, job)
    keeper.save_result(member, kept)
    return kept
