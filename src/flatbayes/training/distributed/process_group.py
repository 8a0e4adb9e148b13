"""Several processes that train one network together, each on its share of every batch.

Weights are the same in all processes, bit for bit, at every step: all begin with those of the first, and all take
the same step, with the average of their gradients and the same noise of the weights. What belongs to examples is
their own: their share of the batch, and noise such as dropout masks.

Gradients are averaged once a step, after the flatness has come to its own, and not pass by pass as a wrapper around
the network would: so the ascent costs no communication, a flatness may call the closure as often as it likes (also
not equally often everywhere), and everything that the optimiser moves is averaged, a parameter of the network or not.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from flatbayes.core import Closure
from flatbayes.core.buffers import norm_layers
from flatbayes.core.randomness import RandomState, seeded_rng, spawn_seeds
from flatbayes.core.weights import flatten, unflatten
from flatbayes.data import LazyImages
from flatbayes.likelihoods import Predictive
from flatbayes.prediction import FittedPosterior

if TYPE_CHECKING:
    from lightning_fabric import Fabric

T = TypeVar("T")

MAX_BUCKET_ELEMENTS = 2**24
"""Numbers sent at a time: what is sent is a copy, which need not be one of everything."""
MAX_SEED = 2**62


@dataclass(frozen=True)
class ProcessGroupInfo:
    """The processes that train together, as one of them sees it.

    Attributes:
        rank: Number of this process, from 0.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    @staticmethod
    def from_fabric(fabric: "Fabric") -> "ProcessGroupInfo":
        """The processes of a launched Fabric."""
        return ProcessGroupInfo(fabric.global_rank, fabric.world_size)

    @property
    def is_main_process(self) -> bool:
        """Whether this process is the one that prints and writes files."""
        return self.rank == 0

    def all_gather(self, value: T) -> list[T]:
        """What each process has, by rank, in all of them; every process must call this. Anything that pickles."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def broadcast(self, value: T) -> T:
        """What the first process has, in all of them; every process must call this. Anything that pickles."""
        if self.size == 1:
            return value
        held = [value if self.is_main_process else None]
        dist.broadcast_object_list(held)
        return held[0]  # type: ignore[return-value]

    def run_on_main(self, function: Callable[[], T]) -> T | None:
        """The first process does something, such as claiming a folder, before any other goes on.

        Returns:
            What came of it, in the first process; None in the others.

        Raises:
            RuntimeError: It failed, in the other processes; the first raises the error itself.
        """
        done, error = None, None
        if self.is_main_process:
            try:
                done = function()
            except Exception as found:
                error = found
        reason = self.broadcast(None if error is None else str(error))
        if error is not None:
            raise error
        if reason is not None:
            raise RemoteProcessError(reason)
        return done

    def read_on_main(self, read: Callable[[], T | None]) -> T | None:
        """What the first process reads, in all of them; every process must call this. Anything that pickles.

        Raises:
            RuntimeError: It failed, in the other processes; the first raises the error itself.
        """
        return self.broadcast(self.run_on_main(read))

    def broadcast_tensors(self, tensors: Sequence[Tensor]) -> None:
        """Give all processes the values that the first has; every process must call this."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), 0)

    def synchronize_buffers(self, module: nn.Module) -> None:
        """Average the running statistics of normalisation layers; other buffers become those of the first process.

        A running statistic is linear in the statistics of batches. So this is as good at the end of an epoch as in
        every step, and gives the mean of what the shares of each batch have, which for variances leaves out how far
        the means of the shares are apart.
        """
        if self.size == 1:
            return
        statistics = {
            id(buffer): buffer
            for norm in norm_layers(module)
            for buffer in norm.buffers(recurse=False)
            if buffer.is_floating_point()
        }
        for buffer in module.buffers():
            if id(buffer) in statistics:
                dist.all_reduce(buffer.div_(self.size))
            else:
                dist.broadcast(buffer, 0)

    def average_over_examples(self, value: float, count: int, device: torch.device) -> float:
        """The mean over all examples of what this process has the mean of its own of.

        Args:
            value: Mean over the examples of this process; it may be anything if there are none.
            count: How many examples these are.
            device: Where processes of this kind talk.
        """
        if self.size == 1:
            return value
        both = torch.tensor([value * count if count else 0.0, float(count)], dtype=torch.float64, device=device)
        dist.all_reduce(both)
        total, examples = both.tolist()
        return float(total / examples)


class RemoteProcessError(RuntimeError):
    """Another process has failed, and says itself why."""


def make_synchronized_closure(
    closure: Closure,
    world: ProcessGroupInfo,
    module: nn.Module,
    params: Sequence[Tensor],
    count_examples: Callable[[], int],
) -> Closure:
    """A closure that gives the loss and the gradient of the whole batch where the given one has a share of it.

    Around a flat closure, the ascent is that of the share; within it, that of the whole batch.

    Args:
        closure: The closure of this process.
        world: All processes.
        module: The network.
        params: What the optimiser moves, and whose gradients are not averaged already.
        count_examples: The number of examples that the closure takes the mean over.
    """

    def synchronized_closure() -> Tensor:
        with per_process_rng(world.rank, module):
            loss = closure()
        return all_reduce_gradients(loss, params, count_examples())

    return synchronized_closure


@contextmanager
def per_process_rng(rank: int, module: nn.Module) -> Iterator[None]:
    """Inside, random numbers are those of this process; outside, the same everywhere, however many were used.

    The common ones go on as if nothing had happened where none was used; otherwise one of them is, to begin from.
    """
    before = RandomState.capture(module)
    (common,) = torch.randint(MAX_SEED, (1,)).tolist()
    with seeded_rng(spawn_seeds(common, rank, count=1)[0], module):
        start = RandomState.capture(module)
        yield
        is_used = not RandomState.capture(module).equals(start)
    if not is_used:
        before.restore()


@torch.no_grad()
def all_reduce_gradients(loss: Tensor, params: Sequence[Tensor], num_examples: int) -> Tensor:
    """Replace all gradients by their mean over the examples of all processes, and return that of the loss.

    A parameter that has a gradient in some processes only counts as zero in the others, and has one in all of them
    afterwards.

    Args:
        loss: The loss of this process, a mean over examples.
        params: What may have a gradient; the same in all processes.
        num_examples: The number of examples.
    """
    # Standard deviations that no autograd knows of have a gradient or not as the posterior decides: everywhere alike.
    chosen = [param for param in params if param.requires_grad or param.grad is not None]
    absent = [k for k, param in enumerate(chosen) if param.grad is None]
    facts = loss.new_ones(2 + len(chosen), dtype=torch.promote_types(loss.dtype, torch.float32))
    facts[0], facts[1] = loss * num_examples, num_examples
    facts[2:][absent] = 0
    dist.all_reduce(facts)
    weight = num_examples / facts[1]
    grads = [torch.zeros_like(param) if param.grad is None else param.grad for param in chosen]
    for bucket in iter_buckets(grads):
        flat = flatten(bucket)
        dist.all_reduce(flat.mul_(weight.to(flat)))
        torch._foreach_copy_(bucket, unflatten(flat, bucket))
    found = facts[2:].tolist() if absent else []  # looking waits for the device
    for k in absent:
        if found[k] > 0:
            chosen[k].grad = grads[k]
    return (facts[0] / facts[1]).to(loss.dtype)


def iter_buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in order, in groups of one dtype and of a bounded size, or of a single larger one."""
    group: list[Tensor] = []
    for tensor in tensors:
        held = sum(one.numel() for one in group)
        if group and (tensor.dtype != group[0].dtype or held + tensor.numel() > MAX_BUCKET_ELEMENTS):
            yield group
            group = []
        group.append(tensor)
    if group:
        yield group


def predict_distributed(
    fitted: FittedPosterior, inputs: Tensor | LazyImages, num_draws: int = 30, **options: Any
) -> Predictive:
    """`fitted.predict`, every process predicting for its share of the inputs; all get the predictions for all.

    No example is taken twice, and the order is that of the inputs. Without other processes it is `fitted.predict`.

    Args:
        fitted: The posterior, the same in all processes.
        inputs: Examples, the same in all processes: in memory or stored images.
        num_draws: Networks to draw.
        options: Of `predict`, the same in all processes.

    Raises:
        ValueError: There are no inputs.
    """
    world = get_process_group_info()
    if world.size == 1:
        return fitted.predict(inputs, num_draws, **options)
    own = inputs[contiguous_slice(len(inputs), world)]
    part = fitted.predict(own, num_draws, **options) if len(own) else None
    parts = [one for one in world.all_gather(part) if one is not None]
    if not parts:
        raise ValueError("There is nothing to predict: the inputs are empty.")
    return type(parts[0]).concatenate(parts)


def contiguous_slice(length: int, world: ProcessGroupInfo) -> slice:
    """The consecutive places, of so many, that are this process's; they differ by one in number at most."""
    return slice(length * world.rank // world.size, length * (world.rank + 1) // world.size)


def get_process_group_info() -> ProcessGroupInfo:
    """The processes that have joined up in this program; this one alone if none have."""
    if dist.is_available() and dist.is_initialized():
        return ProcessGroupInfo(dist.get_rank(), dist.get_world_size())
    return ProcessGroupInfo()
