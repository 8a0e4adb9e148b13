"""Number of examples of a loader: from a pass before training, which checks the batches, or from its samplers."""

import math
from collections.abc import Iterable, Sized
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.data import BatchSampler, DistributedSampler, IterableDataset

from flatbayes.core.batch_targets import split_batch
from flatbayes.core.input_trees import count_examples, list_tensors
from flatbayes.core.randomness import preserve_rng
from flatbayes.data.checks import check_finite
from flatbayes.likelihoods import Likelihood
from flatbayes.prediction.labelled import select_labelled
from flatbayes.training.batches import LoaderBatches


@dataclass(frozen=True)
class LoaderPass:
    """What one pass over a loader gave.

    An example that a sampler repeats within a pass counts once in `num_data`.
    The example batch is the first one with labelled examples. `classes` are those of which there are examples; empty
    where targets are no classes.
    """

    num_data: int
    num_batches: int
    example_batch: tuple[Any, Tensor]
    smallest_inputs: Any
    classes: frozenset[int] = frozenset()


def read_pass(loader: Iterable[Any], likelihood: Likelihood, *, first_only: bool = False) -> LoaderPass:
    """Read a loader once and check its batches.

    Raises:
        ValueError: There are no batches or no labels, or a batch is malformed; the message says which.
    """
    num_data, num_batches, example_batch, smallest, classes = 0, 0, None, None, set[int]()
    for index, batch in enumerate(loader):
        try:
            inputs, targets = split_batch(batch)
            targets = likelihood.prepare_targets(targets)
            for place, tensor in list_tensors(inputs, "inputs of the batch").items():
                check_finite(tensor, place)
        except (ValueError, TypeError) as error:
            raise ValueError(f"Batch {index} of the loader (counted from 0): {error}") from error
        labelled = select_labelled(likelihood, inputs, targets)
        num_data, num_batches = num_data + len(labelled[1]), num_batches + 1
        if not targets.is_floating_point():
            classes.update(labelled[1].unique().tolist())
        if example_batch is None and len(labelled[1]):
            example_batch = labelled
        smallest = inputs if smallest is None or count_examples(inputs) < count_examples(smallest) else smallest
        if first_only and example_batch is not None:
            break
    if num_batches == 0:
        raise ValueError(format_empty_loader(loader))
    if example_batch is None:
        raise ValueError("None of the targets of the loader has a label. Training needs labelled examples.")
    if not first_only:
        num_data = discount_repeats(loader, num_data)
    return LoaderPass(num_data, num_batches, example_batch, smallest, frozenset(classes))


def format_empty_loader(loader: Iterable[Any]) -> str:
    """Message for a loader that gives no batch."""
    size = getattr(loader, "batch_size", None)
    drops = f": its data set is smaller than batch_size={size}" if getattr(loader, "drop_last", False) else ""
    return (
        f"The loader gives no batch{drops}. Use a smaller batch_size or drop_last=False, or check that the data are "
        "not empty or exhausted."
    )


def discount_repeats(loader: Any, num_data: int) -> int:
    """Number of examples of a pass without repeated ones, where a sampler draws more indices than the data set has.

    An example is a sampler with replacement and a larger `num_samples`.
    """
    dataset = getattr(loader, "dataset", None)
    size = _get_size(dataset)
    if size is None or num_data <= size or isinstance(dataset, IterableDataset):
        return num_data
    sampler, batch_size, _ = _describe_batches(loader)
    num_drawn = _count_batch_sampler(loader) if batch_size is None else _get_size(sampler)
    return num_data if num_drawn is None or num_drawn <= size else math.ceil(num_data * size / num_drawn)


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
        count = None if is_stream else _count_batch_sampler(loader)
        return None if count is None else discount_repeats(loader, count)
    count = _get_size(examples)
    if count is None:
        return None
    count = count // size * size if drop_last else count
    is_distributed = isinstance(sampler, DistributedSampler)
    num_shares = num_processes if is_distributed else 1
    if num_batches is not None:
        is_split = num_processes > 1 and not is_distributed  # into whole batches
        count = min(count, num_batches * size * (num_processes if is_split else 1))
    if isinstance(sampler, DistributedSampler) and isinstance(sampler.dataset, Sized):
        return min(count * num_shares, len(sampler.dataset))  # some examples may be repeated
    dataset_size = None if is_stream else _get_size(getattr(loader, "dataset", None))
    return count if dataset_size is None else min(count, dataset_size)


def predict_last_size(loader: Any) -> int | None:
    """Size of the last batch of a loader with a batch size; None if that is unknown."""
    sampler, size, drop_last = _describe_batches(loader)
    count = _get_size(sampler)
    return None if drop_last or size is None or count is None else count % size or size


def _get_size(collection: object) -> int | None:
    """The length of a collection; None for one without, also if a class that it inherits from has one."""
    try:
        return len(collection) if isinstance(collection, Sized) else None
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
