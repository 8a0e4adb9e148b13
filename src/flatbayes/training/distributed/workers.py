"""Independent training runs in parallel worker processes, on this machine or on a Ray cluster."""

import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import torch

from flatbayes.training.callbacks.callback import Callback
from flatbayes.training.checkpoint import CheckpointManager, Checkpoints
from flatbayes.training.distributed.launch import make_fabric
from flatbayes.training.group import train_group
from flatbayes.training.run_factory import RunFactory
from flatbayes.training.session import make_session

ParallelBackend = Literal["loky", "ray"]
"""Name of a joblib backend."""

PARENT_CHECK_SECONDS = 0.5
_watched_parent_id: int | None = None


@contextmanager
def parallel_backend(backend: ParallelBackend) -> Iterator[int]:
    """Run joblib's tasks on a backend, and give the default number of processes.

    A Ray cluster that this program is connected to is used and left connected. Otherwise the cluster at RAY_ADDRESS
    is used, or a local one is started and shut down at the end.

    Args:
        backend: Starts the processes.

    Raises:
        ImportError: The backend is Ray, and it is not installed.
    """
    if backend == "loky":
        yield default_num_jobs()
        return
    try:
        import ray  # optional
        from ray.util.joblib import register_ray
    except ImportError as error:
        raise ImportError("Runs on a Ray cluster need ray: pip install 'flatbayes[cluster]'.") from error
    from joblib import parallel_config

    starts_cluster = not ray.is_initialized()
    if starts_cluster:
        ray.init(include_dashboard=False, log_to_driver=False)
    register_ray()  # type: ignore[no-untyped-call]
    try:
        num_jobs = max(1, int(ray.cluster_resources().get("CPU", 1)))  # type: ignore[no-untyped-call]
        with parallel_config(backend="ray", n_jobs=num_jobs):
            yield num_jobs
    finally:
        if starts_cluster:
            ray.shutdown()


def default_num_jobs() -> int:
    """One process per core, or a single process where they would share a GPU."""
    return 1 if torch.cuda.is_available() else os.cpu_count() or 1


def train_in_workers(
    factory: RunFactory, members: Sequence[int], checkpoints: Checkpoints | None
) -> dict[int, dict[str, Any]]:
    """Train members of an ensemble in parallel, each in a process of its own.

    Inside joblib's `parallel_config` or `parallel_backend` the processes are those of that backend.

    Returns:
        The `GroupResult.state_dict` of each member.
    """
    from joblib import Parallel, delayed  # slow to import
    from joblib.parallel import get_active_backend

    if not members:
        return {}
    _, num_requested = get_active_backend()
    num_jobs = min(len(members), num_requested if num_requested not in (None, 1) else default_num_jobs())
    calls = (delayed(train_member)(factory, member, checkpoints, os.getpid()) for member in members)
    try:
        results = Parallel(n_jobs=num_jobs)(calls)
    except BrokenExecutor as error:
        kept = "" if checkpoints is None else " Finished members are kept, and the same call continues with them."
        raise RuntimeError(
            "A process that trains members of the ensemble was killed, as happens when memory runs out."
            f'{kept} distribution.members="one_by_one" needs the least memory.'
        ) from error
    return dict(zip(members, results, strict=True))


def exit_with_parent(parent_id: int) -> None:
    """End this worker process soon after the process that started it has ended, in whatever way.

    Workers on other machines, and tasks that run in the process of the caller, are not affected.

    Args:
        parent_id: Identifier of the process that started it.
    """
    global _watched_parent_id
    if os.getppid() != parent_id or _watched_parent_id == parent_id:
        return
    _watched_parent_id = parent_id

    def watch() -> None:
        while os.getppid() == parent_id:
            time.sleep(PARENT_CHECK_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def start_worker(parent_id: int) -> None:
    """Initializer of a worker that is a child of the process that started it; ends with that process.

    Args:
        parent_id: Identifier of the process that started it.
    """
    if os.getppid() != parent_id:
        os._exit(1)
    exit_with_parent(parent_id)


def train_member(factory: RunFactory, member: int, checkpoints: Checkpoints | None, parent_id: int) -> dict[str, Any]:
    """Train one member to its end on one device, and return its `GroupResult.state_dict`."""
    exit_with_parent(parent_id)
    factory = replace(factory, config=factory.config.with_options(distribution={"devices": 1}))
    fabric = make_fabric(factory.config)
    session = make_session(factory.config, fabric, CheckpointManager(checkpoints), member)
    return train_group(factory, factory.create_single_run(member, fabric), session, Callback()).state_dict()
