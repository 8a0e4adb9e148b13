"""Device, precision and process group of a training: Lightning Fabric, or a substitute.

To import Fabric takes up to three seconds, since it imports torchmetrics, and with it whatever of transformers,
matplotlib and scipy is installed. One process in full precision does not need it, and uses `SingleDevice`.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, TypeVar, Union

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    import lightning_fabric

Movable = TypeVar("Movable", Tensor, nn.Module)
FULL_PRECISIONS = ("32-true", "64-true")
"""Values of `precision.mode` in which network, loss and optimizer are called directly."""


@dataclass(frozen=True)
class SingleDevice:
    """One process with one device in full precision; its attributes have the names of those of Lightning Fabric."""

    device: torch.device
    global_rank = 0
    world_size = 1

    def to_device(self, value: Movable) -> Movable:
        """Move a network, in place, or a copy of a tensor to the device."""
        return value.to(self.device)


Fabric: TypeAlias = Union["lightning_fabric.Fabric", SingleDevice]
"""What gives a training its device, precision and process group."""
