"""Several processes, each with a copy of the network and a part of every batch.

Flatness asks each process for gradients of its own part, without any exchange; so the worst point is one process's
own, and a step costs as much traffic as ordinary training. What is averaged is the gradient that it ends with.
"""

import torch
from torch import nn

from flatbayes.core.weights import trainable
from flatbayes.training.processes.parallel import average, joined


def share(model: nn.Module) -> None:
    """Average gradients over the processes, and give all of them the first one's buffers.

    A gradient counts as zero where one process has none; where nobody has one there is none afterwards. Buffers are
    those that DistributedDataParallel would give when gradients are exchanged.
    """
    world, params = joined(), trainable(model)
    if world.size > 1 and params:
        average(torch.zeros((), device=params[0].device), params, 1)
    world.copy_from_first(list(model.buffers()))
