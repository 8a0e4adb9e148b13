"""Lightning Fabric for a recipe: on one device, or joined up with the other processes that train the same network."""

import atexit
import logging
import os
from typing import TYPE_CHECKING

import torch.distributed as dist

from flatbayes.training.config import TrainingConfig

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def get_process_layout(config: TrainingConfig) -> tuple[int, int]:
    """Devices of a machine, and machines, that train one network together by this recipe."""
    by_torchrun = "LOCAL_WORLD_SIZE" in os.environ
    started = int(os.environ["LOCAL_WORLD_SIZE"]) if by_torchrun else 1
    devices = started if config.distribution.devices == "auto" else config.distribution.devices
    alone = config.distribution.devices == 1 or not by_torchrun
    return devices, 1 if alone else int(os.environ["WORLD_SIZE"]) // started


def make_fabric(config: TrainingConfig, *, launch: bool = False) -> "Fabric":
    """The devices and the precision of a recipe; where there are several processes, they have joined up.

    Args:
        config: How to train.
        launch: Start the other processes if nobody has, by running this program again with its arguments.

    Raises:
        ValueError: The recipe is for several processes, and this one was started alone, or beside other numbers.
    """
    from lightning_fabric import Fabric  # over a second to import

    devices, machines = get_process_layout(config)
    if devices * machines == 1:
        return Fabric(accelerator=config.distribution.accelerator, devices=1, precision=config.precision.mode)
    if not (launch or "LOCAL_RANK" in os.environ):
        raise ValueError(
            f"devices={devices} asks for {devices} processes, and this program runs in one. Start it by `torchrun "
            f"--nproc_per_node {devices}`, or use `flatbayes fit --distribution.devices {devices}`, which starts the others."
        )
    from flatbayes.training.distributed.replicated import ReplicatedStrategy

    fabric = Fabric(
        accelerator=config.distribution.accelerator,
        devices=devices,
        num_nodes=machines,
        precision=config.precision.mode,
        strategy=ReplicatedStrategy(),
    )
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # or every process says that it is there
    fabric.launch()
    if dist.get_backend() != "nccl":  # for which Fabric sees to it
        atexit.unregister(leave_process_group)
        atexit.register(leave_process_group)
    return fabric


def leave_process_group() -> None:
    """Part from the other processes: a program that ends without may be aborted by its threads."""
    if dist.is_initialized():
        dist.destroy_process_group()
