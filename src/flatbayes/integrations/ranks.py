"""Several processes, each with a copy of the network and a part of every batch.

Flatness asks each process for gradients of its own part, without any exchange; so the worst point is one process's
own, and a step costs as much traffic as ordinary training. What is averaged is the gradient that it ends with.
"""

import torch
import torch.distributed as dist
from torch import nn

from flatbayes.core.weights import flatten, trainable, unflatten


def average_gradients(model: nn.Module) -> None:
    """Replace every gradient by its mean over the processes, counted as zero where one has none.

    Where nobody has one there is none afterwards. Gradients of one dtype are sent together.
    """
    params, ranks = trainable(model), dist.get_world_size()
    if ranks == 1 or not params:
        return
    seen = torch.tensor([float(param.grad is not None) for param in params], device=params[0].device)
    dist.all_reduce(seen)
    wanted = [param for param, count in zip(params, seen.tolist(), strict=True) if count]
    for dtype in dict.fromkeys(param.dtype for param in wanted):
        same = [param for param in wanted if param.dtype == dtype]
        for param in same:
            if param.grad is None:
                param.grad = torch.zeros_like(param)
        grads = [param.grad for param in same if param.grad is not None]
        together = flatten(grads)
        dist.all_reduce(together)
        together /= ranks
        torch._foreach_copy_(grads, unflatten(together, grads))


def share_buffers(model: nn.Module) -> None:
    """Give every process the first one's buffers, as DistributedDataParallel does when gradients are exchanged."""
    if dist.get_world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)
