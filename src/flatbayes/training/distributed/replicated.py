"""Lightning Fabric's data-parallel processes, the network left as it is."""

from lightning_fabric.strategies.ddp import DDPStrategy
from torch import nn


class ReplicatedStrategy(DDPStrategy):
    """One process for each device, with a replica of the network.

    DistributedDataParallel would average the gradient of every backward pass, or of those that it is told to; here
    `flatbayes.training.distributed.process_group` averages that of a step.
    """

    def setup_module(self, module: nn.Module) -> nn.Module:  # type: ignore[override]
        """The module itself."""
        return module
