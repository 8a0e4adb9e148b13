"""Training batches: shuffled and augmented by a seed, vectorized over networks, or from a user's loader."""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from flatbayes.core.accelerators import get_free_memory
from flatbayes.core.batch_targets import split_batch
from flatbayes.core.input_trees import cast_integers
from flatbayes.core.names import format_count
from flatbayes.core.process_group import ProcessGroupInfo
from flatbayes.core.randomness import Stream, make_generator, preserve_rng, spawn_seeds
from flatbayes.data import LazyImages
from flatbayes.likelihoods import Likelihood

MAX_DEVICE_MEMORY_FRACTION = 0.5

Augmentation = Callable[[Tensor, torch.Generator], Tensor]
"""(inputs or targets of a batch, generator) -> the same, each changed at random."""


class TrainingBatches(Protocol):
    """Batches by epoch."""

    @property
    def num_data(self) -> int:
        """Number of training examples."""

    def __len__(self) -> int:
        """Number of batches of an epoch."""

    @property
    def transform(self) -> Callable[[Tensor], Tensor] | None:
        """Transform that is still to be applied to inputs, on the device of training."""

    @property
    def can_skip_batches(self) -> bool:
        """Whether an epoch that starts at a later batch gives the same batches from there on."""

    def iter_epoch(self, epoch: int, first_batch: int = 0) -> Iterator[tuple[Any, Tensor]]:
        """The `(inputs, targets)` batches of an epoch, from `first_batch` on."""

    def state_dict(self) -> dict[str, Any]:
        """State that later epochs depend on, besides their number and torch's random state."""

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore that state."""


class StatelessBatches:
    """Batches whose epochs depend on their number only."""

    can_skip_batches = True

    def state_dict(self) -> dict[str, Any]:
        """An empty dictionary."""
        return {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Nothing."""


@dataclass(frozen=True, eq=False)
class ShuffledBatches(StatelessBatches):
    """Batches of a data set in an order, and with an augmentation, that depend on the seed and the epoch only.

    The last, smaller batch of an epoch is left out, so that all steps have the same number of examples.

    Attributes:
        inputs: All examples; lazy images are decoded batch by batch.
        targets: Their targets.
        batch_size: Examples per batch, at most the number of examples.
        seed: Seed of orders and augmentations.
        augment: Random change of the inputs of a batch, with a generator on their device.
        augment_targets: The change of their targets, with a generator in the same state; None for none.
        transform: Transform that is still to be applied to inputs.
        world: Processes that share every batch. Together they have the examples, in the order and with the
            augmentation, of a single process.
    """

    inputs: Tensor | LazyImages
    targets: Tensor
    batch_size: int
    seed: int
    augment: Augmentation | None = None
    transform: Callable[[Tensor], Tensor] | None = None
    world: ProcessGroupInfo = ProcessGroupInfo()
    augment_targets: Augmentation | None = None

    def __post_init__(self) -> None:
        if self.batch_size < self.world.size:
            raise ValueError(
                f"A batch of {format_count(self.batch_size, 'example')} cannot be divided among {self.world.size} "
                "processes. Use a larger batch_size, or fewer processes."
            )

    def __len__(self) -> int:
        """Number of batches of an epoch."""
        return max(1, len(self.inputs) // self.batch_size)

    @property
    def num_data(self) -> int:
        """Number of examples."""
        return len(self.inputs)

    @property
    def interleaved_slice(self) -> slice:
        """Indices of a batch that belong to this process, interleaved, so that fractions agree."""
        return slice(self.world.rank, None, self.world.size)

    def with_seed(self, seed: int) -> "ShuffledBatches":
        """The same examples with another seed."""
        return replace(self, seed=seed)

    def shuffle_indices(self, epoch: int) -> Tensor:
        """Indices of all examples in the order of an epoch, on the device of the targets."""
        generator = make_generator(Stream.DATA_ORDER, self.seed, epoch)
        return torch.randperm(len(self.inputs), generator=generator).to(self.targets.device)

    def augmentation_seeds(self, epoch: int) -> list[int]:
        """Seeds of the augmentation of each batch of an epoch, independent of those of the order."""
        return spawn_seeds(Stream.AUGMENTATION, self.seed, epoch, count=len(self))

    def iter_epoch(self, epoch: int, first_batch: int = 0) -> Iterator[tuple[Any, Tensor]]:
        """The batches of an epoch, from `first_batch` on."""
        all_indices = self.shuffle_indices(epoch).split(self.batch_size)[first_batch : len(self)]
        indices = [batch[self.interleaved_slice] for batch in all_indices]
        if isinstance(self.inputs, LazyImages):
            inputs = self.inputs.iter_batches(indices)
        else:
            inputs = map(_make_selector(self.inputs), indices)
        batches = zip(inputs, map(_make_selector(self.targets), indices), strict=True)
        if self.augment is None:
            yield from batches
            return
        generator = torch.Generator(self.targets.device)
        for (x, y), seed in zip(batches, self.augmentation_seeds(epoch)[first_batch:], strict=True):
            x = self._augment_share(self.augment, x, generator.manual_seed(seed))
            if self.augment_targets is not None:
                y = self._augment_share(self.augment_targets, y, generator.manual_seed(seed))
            yield x, y

    def _augment_share(self, augment: Augmentation, values: Tensor, generator: torch.Generator) -> Tensor:
        if self.world.size == 1:
            return augment(values, generator)
        # The augmentation of an example depends on its index in the batch; the other examples are placeholders.
        batch = values.new_zeros(self.batch_size, *values.shape[1:])
        batch[self.interleaved_slice] = values
        return augment(batch, generator)[self.interleaved_slice]


def _make_selector(tensor: Tensor) -> Callable[[Tensor], Tensor]:
    """A function that selects rows of a tensor by their indices."""
    return lambda indices: tensor.index_select(0, indices)


@dataclass(frozen=True, eq=False)
class VectorizedBatches(StatelessBatches):
    """The batches of several networks in one tensor, `[batch, networks, ...]`.

    They are of the same examples.
    """

    member_batches: Sequence[ShuffledBatches]

    def __len__(self) -> int:
        """Number of batches of an epoch."""
        return len(self.member_batches[0])

    @property
    def num_data(self) -> int:
        """Number of examples of each network."""
        return self.member_batches[0].num_data

    @property
    def transform(self) -> Callable[[Tensor], Tensor] | None:
        """Transform of the inputs of all networks."""
        transform = self.member_batches[0].transform
        return None if transform is None else lambda x: transform(x.flatten(0, 1)).unflatten(0, x.shape[:2])

    def iter_epoch(self, epoch: int, first_batch: int = 0) -> Iterator[tuple[Any, Tensor]]:
        """The batches of an epoch, from `first_batch` on."""
        first = self.member_batches[0]
        if first.augment is None:
            orders = torch.stack([batches.shuffle_indices(epoch) for batches in self.member_batches], dim=1)
            for indices in orders.split(first.batch_size)[first_batch : len(self)]:
                yield first.inputs[indices], first.targets[indices]
            return
        epochs = [batches.iter_epoch(epoch, first_batch) for batches in self.member_batches]
        for member_batches in zip(*epochs, strict=True):
            inputs, targets = zip(*member_batches, strict=True)
            yield torch.stack(inputs, dim=1), torch.stack(targets, dim=1)


@dataclass(frozen=True)
class SpacedBatches:
    """The first of every few batches."""

    batches: Iterable[Any]
    spacing: int

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(self.batches), 0, None, self.spacing)


@dataclass(frozen=True, eq=False)
class LoaderBatches:
    """The batches of a user's loader, with its own order, workers and augmentation.

    Their randomness is that of torch, NumPy and Python in this process, or of the loader's generators, and of the
    number of the epoch where a sampler takes it. The state of workers that outlive an epoch is not accessible.

    Attributes:
        loader: Iterable of `(inputs, targets)` that can be read once per epoch.
        num_data: Number of labelled examples.
        num_batches: Number of batches of an epoch.
        likelihood: Checks and converts the targets of every batch; None leaves them as they are.
        converts_integers: Whether inputs that are integers become floating.
    """

    loader: Iterable[Any]
    num_data: int = 0
    num_batches: int = 0
    likelihood: Likelihood | None = None
    converts_integers: bool = False

    transform = None  # batches are ready for the model
    can_skip_batches = False

    def __len__(self) -> int:
        """Number of batches of an epoch."""
        return self.num_batches

    def state_dict(self) -> dict[str, Any]:
        """Random state of NumPy, Python and the loader's generators."""
        kind, keys, *rest = np.random.get_state()  # noqa: NPY002  # what a user's transforms use
        return {
            "numpy": (kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
            "python": random.getstate(),
            "generators": [generator.get_state() for generator in self._find_generators()],
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore that state."""
        kind, keys, *rest = state_dict["numpy"]
        np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
        random.setstate(state_dict["python"])
        for generator, state in zip(self._find_generators(), state_dict["generators"], strict=True):
            generator.set_state(state)

    def iter_epoch(self, epoch: int, first_batch: int = 0) -> Iterator[tuple[Any, Tensor]]:
        """The batches of one pass over the loader.

        Raises:
            RuntimeError: The pass has fewer batches than the first one.
            ValueError: A batch is not a pair of inputs and targets of the likelihood.
        """
        count = 0
        set_epoch(self.loader, epoch)
        for batch in self.loader:
            if count == self.num_batches:
                break
            inputs, targets = split_batch(batch)
            inputs = cast_integers(inputs) if self.converts_integers else inputs
            yield inputs, targets if self.likelihood is None else self.likelihood.prepare_targets(targets)
            count += 1
        if count < self.num_batches:
            raise RuntimeError(
                f"The loader gave {format_count(count, 'batch', 'batches')} in epoch {epoch + 1}, and "
                f"{self.num_batches} before. Every pass must have as many: an iterator that is exhausted by one pass "
                "cannot be trained on."
            )

    def _find_generators(self) -> list[torch.Generator]:
        owners = (_get_whole(self.loader), *list_samplers(self.loader))
        generators = [getattr(owner, "generator", None) for owner in owners]
        return list({id(generator): generator for generator in generators if generator is not None}.values())


def _get_whole(loader: Iterable[Any]) -> Iterable[Any]:
    return loader.batches if isinstance(loader, SpacedBatches) else loader


def list_samplers(loader: Any) -> list[Any]:
    """Sampler and batch sampler of a loader, and the sampler within the latter; None where there is none."""
    loader = _get_whole(loader)
    batch_sampler = getattr(loader, "batch_sampler", None)
    return [getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None)]


def set_epoch(loader: Iterable[Any], epoch: int) -> None:
    """Tell samplers of a loader whose order depends on the epoch, such as a `DistributedSampler`, which it is."""
    for sampler in _list_epoch_samplers(loader):
        sampler.set_epoch(epoch)


def _list_epoch_samplers(loader: Iterable[Any]) -> list[Any]:
    return [sampler for sampler in list_samplers(loader) if callable(getattr(sampler, "set_epoch", None))]


@contextmanager
def preserve_loader(loader: Iterable[Any]) -> Iterator[None]:
    """Inside, a loader can be read; at the end all random states that its batches depend on are as before."""
    with preserve_rng(None), preserve_loader_state(loader):
        yield


@contextmanager
def preserve_loader_state(loader: Iterable[Any]) -> Iterator[None]:
    """As `preserve_loader`, but torch's own random state goes on."""
    batches = LoaderBatches(loader)
    random_state = batches.state_dict()
    samplers = _list_epoch_samplers(loader)
    epochs = [getattr(sampler, "epoch", 0) for sampler in samplers]
    try:
        yield
    finally:
        batches.load_state_dict(random_state)
        for sampler, epoch in zip(samplers, epochs, strict=True):
            sampler.set_epoch(epoch)


def fits_on_device(tensor: Tensor, device: torch.device) -> bool:
    """Whether a tensor is small enough to stay on the device during training."""
    return tensor.numel() * tensor.element_size() < MAX_DEVICE_MEMORY_FRACTION * get_free_memory(device)
