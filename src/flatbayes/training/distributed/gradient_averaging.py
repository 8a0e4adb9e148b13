"""Data-parallel gradient averaging: several processes train one network, each on its share of every batch.

The weights are identical in all processes, bit for bit, at every step: all start with those of the main process and
take the same step, with the average of their gradients and the same random noise of the weights. The share of the
batch and the noise of examples, such as dropout masks, belong to each process.

Gradients are averaged once per step, after the flatness has computed its gradient, and not in every backward pass as
`DistributedDataParallel` does. The ascent then needs no communication, a flatness may call the closure any number of
times, also different numbers in different processes, and everything that the optimizer updates is averaged, whether
it is a parameter of the network or not.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import torch
import torch.distributed as dist
from torch import Tensor, nn

from flatbayes.core import Closure
from flatbayes.core.context import get_sub_batch
from flatbayes.core.process_group import ProcessGroupInfo
from flatbayes.core.randomness import RandomState, Stream, seeded_rng, spawn_seed
from flatbayes.core.tensor_lists import flatten, unflatten

MAX_BUCKET_ELEMENTS = 2**24
"""Largest number of elements in a message, which is a copy: it bounds the extra memory."""
MAX_SEED = 2**62


def make_synchronized_closure(
    closure: Closure,
    world: ProcessGroupInfo,
    module: nn.Module,
    params: Sequence[Tensor],
    count_examples: Callable[[], int | Tensor],
    batch_size: int,
) -> Closure:
    """A closure that averages loss and gradients over the processes.

    Around the closure of a flatness, the ascent is that of the share; within it, the ascent is that of the batch.

    `params` are tensors that the optimizer updates and whose gradients are not averaged otherwise; `count_examples`
    returns the number of examples over which the closure takes the mean.
    """
    gather_sizes = cache(lambda: tuple(world.all_gather(batch_size)))

    def synchronized_closure() -> Tensor:
        sub_batch = get_sub_batch()
        if sub_batch is not None:  # the processes must call the closure equally often
            sub_batch.batch_sizes = gather_sizes()
        with per_process_rng(world.rank, module):
            loss = closure()
        return all_reduce_gradients(loss, params, count_examples())

    return synchronized_closure


@contextmanager
def per_process_rng(rank: int, module: nn.Module) -> Iterator[None]:
    """Use a random state that differs between processes; afterwards the states are identical again.

    Without random draws inside, the state afterwards is the one before; otherwise it has advanced by one draw.
    """
    before = RandomState.capture(module)
    (common_seed,) = torch.randint(MAX_SEED, (1,)).tolist()
    with seeded_rng(spawn_seed(Stream.PROCESS_NOISE, common_seed, rank), module):
        start = RandomState.capture(module)
        yield
        is_used = not RandomState.capture(module).equals(start)
    if not is_used:
        before.restore()


@torch.no_grad()
def all_reduce_gradients(loss: Tensor, params: Sequence[Tensor], num_examples: int | Tensor) -> Tensor:
    """Replace all gradients by their mean over the examples of all processes.

    A parameter that has a gradient in some processes only counts as zero in the others and has a gradient in all of
    them afterwards.

    The loss is a mean over the examples of this process; `params` are the same in all processes.

    Returns:
        The mean loss over the examples of all processes.
    """
    # Standard deviations outside autograd have gradients that the posterior sets: the same set in every process.
    params = [param for param in params if param.requires_grad or param.grad is not None]
    absent = [k for k, param in enumerate(params) if param.grad is None]
    sums = loss.new_ones(2 + len(params), dtype=torch.promote_types(loss.dtype, torch.float32))
    sums[0], sums[1] = loss * num_examples, num_examples
    sums[2:][absent] = 0
    dist.all_reduce(sums)
    sums[1].clamp_(min=1)  # batches without labels have zero losses and gradients
    weight = num_examples / sums[1]
    grads = [torch.zeros_like(param) if param.grad is None else param.grad for param in params]
    for bucket in iter_buckets(grads):
        flat = flatten(bucket)
        dist.all_reduce(flat.mul_(weight.to(flat)))
        torch._foreach_copy_(bucket, unflatten(flat, bucket))
    num_with_gradient = sums[2:].tolist() if absent else []  # reading waits for the device
    for k in absent:
        if num_with_gradient[k] > 0:
            params[k].grad = grads[k]
    return (sums[0] / sums[1]).to(loss.dtype)


def iter_buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in order, in groups of one dtype with at most `MAX_BUCKET_ELEMENTS` elements or a single tensor."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        size = sum(member.numel() for member in bucket)
        if bucket and (tensor.dtype != bucket[0].dtype or size + tensor.numel() > MAX_BUCKET_ELEMENTS):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
