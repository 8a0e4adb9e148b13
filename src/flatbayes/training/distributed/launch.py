"""Device, precision and process group of a training configuration, by Lightning Fabric where it is needed."""

import atexit
import logging
import os
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from flatbayes.core.accelerators import find_accelerator, resolve_accelerator
from flatbayes.core.devices import has_float64
from flatbayes.core.names import format_suggestion
from flatbayes.core.optional import import_fabric
from flatbayes.core.process_group import ProcessGroupInfo
from flatbayes.training.config import TrainingConfig
from flatbayes.training.fabric import FULL_PRECISIONS, Fabric, SingleDevice

GPU_TYPES = ("cuda", "mps")
"""Types of devices, besides the CPU, on which training runs."""


def get_process_layout(config: TrainingConfig) -> tuple[int, int]:
    """Number of devices per machine, and of machines, that train one network together."""
    is_torchrun = "LOCAL_WORLD_SIZE" in os.environ
    num_started = int(os.environ["LOCAL_WORLD_SIZE"]) if is_torchrun else 1
    requested = config.distribution.devices
    devices = num_started if requested == "auto" else requested
    if requested == 1 or not is_torchrun:
        return devices, 1
    return devices, int(os.environ["WORLD_SIZE"]) // num_started


def check_accelerator(config: TrainingConfig) -> None:
    """Refuse a device that this machine does not have.

    Raises:
        ValueError: The accelerator is unknown, or is not available.
    """
    name = resolve_accelerator(config.distribution.accelerator)
    available = {
        "auto": True,
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    available["gpu"] = available["cuda"] or available["mps"]
    if name not in available:
        suggestion = format_suggestion(name.partition(":")[0], available)
        raise ValueError(f"Unknown accelerator {name!r}. {suggestion}Known: {', '.join(available)}.")
    if not available[name]:
        usable = " or ".join(key for key, is_available in available.items() if is_available)
        build = "torch was built without CUDA" if torch.version.cuda is None else "torch finds no CUDA device"
        reason = "this machine has no Apple GPU" if name == "mps" else build
        raise ValueError(
            f"The accelerator {name} is not available: {reason}. Use {usable}, --distribution.accelerator cpu."
        )
    if name in ("mps", "gpu") and config.precision.mode == "64-true" and not _has_float64(name):
        raise ValueError(
            "Apple GPUs have no numbers of 64 bits: use --precision.mode 32-true, or --distribution.accelerator cpu."
        )


def choose_accelerator(config: TrainingConfig) -> str:
    """The accelerator of a configuration, by its name in Fabric; auto is the CPU where precision needs float64."""
    name = resolve_accelerator(config.distribution.accelerator)
    return "cpu" if name == "auto" and config.precision.mode == "64-true" and not _has_float64(name) else name


def _has_float64(name: str) -> bool:
    kind = find_accelerator() if name in ("auto", "gpu") else name
    return kind is None or has_float64(torch.device(kind))


def find_first_device(name: str) -> torch.device:
    """The device of a training in one process, by its name in Fabric; auto and gpu are CUDA or an Apple GPU."""
    kind = find_accelerator() if name in ("auto", "gpu") else name
    return torch.device(kind, 0) if kind in GPU_TYPES else torch.device("cpu")


def make_fabric(config: TrainingConfig, *, launch: bool = False) -> Fabric:
    """The devices and the precision of a configuration, in its process group if it has one.

    With `launch`, other processes that are not running are started, by executing this program again.

    Raises:
        ValueError: The device is not available, or the configuration needs several processes, and this one was
            started alone.
    """
    check_accelerator(config)
    devices, machines = get_process_layout(config)
    accelerator, precision = choose_accelerator(config), config.precision.mode
    if devices * machines == 1:
        if precision in FULL_PRECISIONS:
            return SingleDevice(find_first_device(accelerator))
        return import_fabric().Fabric(accelerator=accelerator, devices=1, precision=precision)  # type: ignore[no-any-return]
    if not (launch or "LOCAL_RANK" in os.environ):
        raise ValueError(
            f"devices={devices} needs {devices} processes, and this program runs in one. Start it with `torchrun "
            f"--nproc_per_node {devices}`, or use `flatbayes fit --distribution.devices {devices}`, which starts the "
            "others."
        )
    package = import_fabric()
    ddp_strategy: Any = import_fabric("strategies.ddp").DDPStrategy

    class ReplicatedStrategy(ddp_strategy):  # type: ignore[misc]
        """One process per device with a replica of the network, which is not wrapped.

        `DistributedDataParallel` averages the gradient of every backward pass; here
        `flatbayes.training.distributed.gradient_averaging` averages the gradient of a step.
        """

        def setup_module(self, module: nn.Module) -> nn.Module:
            return module

    fabric: Any = package.Fabric(
        accelerator=accelerator,
        devices=devices,
        num_nodes=machines,
        precision=precision,
        strategy=ReplicatedStrategy(),
    )
    logging.getLogger(package.__name__).setLevel(logging.WARNING)  # no message from every process at start
    fabric.launch()
    if dist.get_backend() != "nccl":  # Fabric itself closes NCCL groups
        atexit.unregister(leave_process_group)
        atexit.register(leave_process_group)
    return fabric  # type: ignore[no-any-return]


def get_fabric_process_group(fabric: Fabric) -> ProcessGroupInfo:
    """Rank and size of the process group of a launched Fabric."""
    return ProcessGroupInfo(fabric.global_rank, fabric.world_size)


def leave_process_group() -> None:
    """Destroy the process group: a program that exits without may be aborted by its threads."""
    if dist.is_initialized():
        dist.destroy_process_group()
