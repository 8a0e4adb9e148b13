"""Independent training runs in parallel worker processes, on this machine or on a Ray cluster."""

import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from flatbayes.core.accelerators import count_accelerators, find_accelerator
from flatbayes.core.process_group import move_tensors_to_cpu
from flatbayes.training.callbacks.callback import Callback
from flatbayes.training.checkpoint import CheckpointManager, Checkpoints
from flatbayes.training.distributed.launch import make_fabric
from flatbayes.training.group import describe_outcomes, train_group
from flatbayes.training.run_factory import RunFactory
from flatbayes.training.session import make_session

ParallelBackend = Literal["loky", "ray"]
"""Name of a joblib backend."""

PARENT_CHECK_SECONDS = 0.5
_watched_parent_id: int | None = None


@dataclass(frozen=True)
class DeviceQueue:
    """Devices of CUDA that worker processes share: each worker takes the next one, in turn.

    Attributes:
        folder: Folder in which the workers that have taken one leave a file each.
        devices: The devices, as CUDA_VISIBLE_DEVICES names them.
    """

    folder: str
    devices: tuple[str, ...]

    def take_device(self) -> str:
        """Make the next device the only one that this process can see; it must not have used CUDA yet."""
        number = 0
        while True:
            try:
                Path(self.folder, str(number)).touch(exist_ok=False)
                break
            except FileExistsError:
                number += 1
        device = self.devices[number % len(self.devices)]
        os.environ["CUDA_VISIBLE_DEVICES"] = device
        return device


@contextmanager
def share_devices(accelerator: str = "auto") -> Iterator[DeviceQueue | None]:
    """The devices of CUDA that worker processes share; None if there are not several."""
    num_devices = count_accelerators(accelerator)
    if num_devices < 2 or find_accelerator() != "cuda":
        yield None
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = [str(k) for k in range(num_devices)] if visible is None else visible.split(",")[:num_devices]
    with TemporaryDirectory(prefix="flatbayes-devices-") as folder:
        yield DeviceQueue(folder, tuple(devices))


@contextmanager
def parallel_backend(backend: ParallelBackend, accelerator: str = "auto") -> Iterator[int]:
    """Run joblib's tasks on a backend, and give the default number of processes.

    A Ray cluster that this program is connected to is used and left connected. Otherwise the cluster at RAY_ADDRESS
    is used, or a local one is started and shut down at the end.

    Args:
        backend: Starts the processes.
        accelerator: Value of `distribution.accelerator` of the trainings.

    Raises:
        ImportError: The backend is Ray, and it is not installed.

    Examples:
        >>> with parallel_backend("loky") as num_jobs:
        ...     num_jobs >= 1
        True
    """
    if backend == "loky":
        yield default_num_jobs(accelerator)
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


def default_num_jobs(accelerator: str = "auto") -> int:
    """One process per accelerator that trainings use, or one per core if they use the CPU."""
    return count_accelerators(accelerator) or os.cpu_count() or 1


def get_worker_options(device_queue: DeviceQueue | None = None) -> dict[str, Any]:
    """Options of `joblib.Parallel` on its active backend: processes of this machine end with this process.

    No temporary folder is made for large arrays, which a killed process would leave. Each process takes one device of
    the queue; Ray gives each task its devices.
    """
    from joblib.parallel import get_active_backend  # slow to import

    options: dict[str, Any] = {"max_nbytes": None}
    match type(get_active_backend()[0]).__name__:
        case "LokyBackend":
            options |= {"initializer": start_worker, "initargs": (os.getpid(), device_queue)}
        case "MultiprocessingBackend":
            options |= {"initializer": exit_with_parent, "initargs": (os.getpid(),)}
    return options  # workers of Ray and Dask are children of their own processes, which end them


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
    accelerator = factory.config.distribution.accelerator
    num_jobs = min(len(members), num_requested if num_requested not in (None, 1) else default_num_jobs(accelerator))
    calls = (delayed(train_member)(factory, member, checkpoints) for member in members)
    try:
        with share_devices(accelerator) as device_queue:
            # A single job runs in this process, which keeps its device.
            options = get_worker_options(device_queue if num_jobs > 1 else None)
            results = Parallel(n_jobs=num_jobs, **options)(calls)
    except BrokenExecutor as error:
        kept = ""
        if checkpoints is not None:
            kept = f" Finished members are kept in {checkpoints.folder}, and the same call goes on with them."
        raise RuntimeError(
            "A process that trains members of the ensemble was killed, as happens when memory runs out."
            f'{kept} distribution.members="one_by_one" needs the least memory.'
        ) from error
    return dict(zip(members, results, strict=True))


def exit_with_parent(parent_id: int) -> None:
    """End this worker process soon after the process that started it has ended, in whatever way.

    A process with another parent is not affected.
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


def start_worker(parent_id: int, device_queue: DeviceQueue | None = None) -> None:
    """Initializer of a worker that is a child of the process that started it; ends with that process."""
    if os.getppid() != parent_id:
        os._exit(1)
    exit_with_parent(parent_id)
    if device_queue is not None:
        device_queue.take_device()


def train_member(factory: RunFactory, member: int, checkpoints: Checkpoints | None) -> dict[str, Any]:
    """Train one member to its end on one device, and return its `GroupResult.state_dict`, in main memory."""
    factory = replace(factory, config=factory.config.with_options(distribution={"devices": 1}))
    fabric = make_fabric(factory.config)
    session = make_session(factory.config, fabric, CheckpointManager(checkpoints), member)
    outcomes = train_group(factory, factory.create_single_run(member, fabric), session, Callback())
    return move_tensors_to_cpu(describe_outcomes(outcomes))
