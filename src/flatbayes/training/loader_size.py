"""Number of examples of a loader, from its samplers: nothing is read."""

from collections.abc import Iterable, Sized
from typing import Any

from torch.utils.data import BatchSampler, DistributedSampler, IterableDataset

from flatbayes.core.randomness import preserve_rng
from flatbayes.training.batches import LoaderBatches


def count_loader_examples(loader: Any, num_processes: int = 1, num_batches: int | None = None) -> int | None:
    """Number of examples that a pass over a loader gives, of all processes together.

    Args:
        loader: A `DataLoader`.
        num_processes: Processes that train together; each has a share of the examples if the sampler is distributed.
        num_batches: Number of batches in an epoch of each process, if that may be fewer than all.

    Returns:
        The number; None for other loaders, and for data sets or samplers without a length.
    """
    sampler, size, drop_last = _describe_batches(loader)
    is_stream = isinstance(getattr(loader, "dataset", None), IterableDataset)
    examples = loader.dataset if is_stream else sampler
    if size is None or not isinstance(examples, Sized):
        return None if is_stream else _count_batch_sampler(loader)
    try:
        count = len(examples)
    except TypeError:  # a subclass of a class with a length
        return None
    count = count // size * size if drop_last else count
    is_distributed = isinstance(sampler, DistributedSampler)
    num_shares = num_processes if is_distributed else 1
    if num_batches is not None:
        is_split = num_processes > 1 and not is_distributed  # into whole batches
        count = min(count, num_batches * size * (num_processes if is_split else 1))
    if isinstance(sampler, DistributedSampler) and isinstance(sampler.dataset, Sized):
        return min(count * num_shares, len(sampler.dataset))  # some examples may be repeated
    return count


def predict_last_size(loader: Any) -> int | None:
    """Size of the last batch of a loader with a batch size; None if that is unknown."""
    sampler, size, drop_last = _describe_batches(loader)
    if drop_last or size is None or not isinstance(sampler, Sized):
        return None
    try:
        return len(sampler) % size or size
    except TypeError:
        return None


def _describe_batches(loader: Any) -> tuple[Any, int | None, bool]:
    """Sampler of examples, batch size, and whether a smaller last batch is left out; no size for other samplers."""
    batch_sampler: Any = getattr(loader, "batch_sampler", None)
    while hasattr(batch_sampler, "batch_sampler"):  # the share of a process in accelerate
        batch_sampler = batch_sampler.batch_sampler
    if type(batch_sampler) is BatchSampler:
        return batch_sampler.sampler, batch_sampler.batch_size, batch_sampler.drop_last
    return getattr(loader, "sampler", None), None, False


def _count_batch_sampler(loader: Any) -> int | None:
    """Sum of the sizes of the batches of indices of a batch sampler of the user's."""
    batch_sampler: Any = getattr(loader, "batch_sampler", None)
    if not isinstance(batch_sampler, Sized) or not isinstance(batch_sampler, Iterable):
        return None
    batches = LoaderBatches(loader)
    random_state = batches.state_dict()
    try:
        with preserve_rng(None):
            return sum(len(indices) for indices in batch_sampler)
    finally:
        batches.load_state_dict(random_state)
