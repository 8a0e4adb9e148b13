"""Several processes, each with a copy of the network and a part of every batch.

Flatness asks each process for gradients of its own part, without any exchange; so the worst point is one process's
own, and a step costs as much traffic as ordinary training. What is averaged is the gradient that it ends with.
"""

import torch
from torch import nn

from flatbayes.core.weights import trainable_parameters
from flatbayes.training.distributed.process_group import all_reduce_gradients, get_process_group_info


def synchronize_gradients(model: nn.Module) -> None:
    """Average gradients over the processes, and give all of them the first one's buffers.

    A gradient counts as zero where one process has none; where nobody has one there is none afterwards. Buffers are
    those that DistributedDataParallel would give when gradients are exchanged.
    """
    world, params = get_process_group_info(), trainable_parameters(model)
    if world.size > 1 and params:
        all_reduce_gradients(torch.zeros((), device=params[0].device), params, 1)
    world.broadcast_tensors(list(model.buffers()))
