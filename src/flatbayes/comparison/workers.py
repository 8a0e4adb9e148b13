"""Where the runs of a comparison are done: in processes of this machine, or on a Ray cluster."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

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
        with parallel_config(backend="ray"):
            yield max(1, int(ray.cluster_resources().get("CPU", 1)))  # type: ignore[no-untyped-call]
    finally:
        if own:
            ray.shutdown()


def default_jobs() -> int:
    """One process per core; one in all where a GPU is shared."""
    return 1 if torch.cuda.is_available() else os.cpu_count() or 1
