"""Batches of a training part: on the device when it fits, shuffled by a stream of their own."""

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from flatbayes.core.randomness import spawn_seeds
from flatbayes.data import LazyImages
from flatbayes.training.distributed.process_group import ProcessGroupInfo

MAX_DEVICE_MEMORY_FRACTION = 0.5

Augmentation = Callable[[Tensor, torch.Generator], Tensor]
"""(inputs of a batch, generator) -> those inputs, each changed at random."""


class TrainingBatches(Protocol):
    """Batches that the loop can ask for, epoch by epoch."""

    @property
    def num_data(self) -> int:
        """Number of training examples."""

    def __len__(self) -> int:
        """Batches of an epoch."""

    @property
    def transform(self) -> Callable[[Tensor], Tensor] | None:
        """What inputs are still to go through, on the device that is trained on."""

    @property
    def can_skip_batches(self) -> bool:
        """Whether an epoch can begin at a later batch and be the same from there on."""

    def iter_epoch(self, epoch: int, first_batch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch, from its `first` on."""

    def state_dict(self) -> dict[str, Any]:
        """What the next epochs depend on, beside their numbers and torch's random state; plain data and tensors."""

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Undo everything since `saved` was taken."""


@dataclass(frozen=True, eq=False)
class ShuffledBatches:
    """An iterable of shuffled `(inputs, targets)`; every pass has an order, and an augmentation, of its own.

    The last, smaller batch of a pass is left out, so that every step sees as many examples; shuffling sees to it
    that every example gets its turn. Orders depend on the seed and the number of the pass alone: training a twin
    in another way does not move them.

    Attributes:
        inputs: All examples; stored images are decoded batch by batch.
        targets: Their targets.
        batch_size: Examples per batch; at most as many as there are.
        seed: Decides orders and augmentations.
        augment: Random changes to the inputs of a batch, each by itself, given a generator on their device.
        transform: What inputs are still to go through.
        world: The processes that batches are divided among; each gets its share of every one. Together they have the
            examples, in the order and as augmented, that one process would.
    """

    inputs: Tensor | LazyImages
    targets: Tensor
    batch_size: int
    seed: int
    augment: Augmentation | None = None
    transform: Callable[[Tensor], Tensor] | None = None
    world: ProcessGroupInfo = ProcessGroupInfo()

    def __post_init__(self) -> None:
        if self.batch_size < self.world.size:
            raise ValueError(
                f"A batch of {self.batch_size} examples cannot be divided among {self.world.size} processes. "
                "Use a larger batch_size, or fewer processes."
            )

    def __len__(self) -> int:
        """Batches of one pass."""
        return max(1, len(self.inputs) // self.batch_size)

    @property
    def num_data(self) -> int:
        """Number of examples."""
        return len(self.inputs)

    @property
    def interleaved_slice(self) -> slice:
        """The places in a batch that are this process's: spread, so that a part of a share is one of the batch."""
        return slice(self.world.rank, None, self.world.size)

    def with_seed(self, seed: int) -> "ShuffledBatches":
        """The same examples in the orders of another seed."""
        return replace(self, seed=seed)

    def shuffle_indices(self, epoch: int) -> Tensor:
        """The places of all examples in the order of one pass, on the device of the targets."""
        generator = torch.Generator().manual_seed(spawn_seeds(self.seed, 2 * epoch, count=1)[0])
        return torch.randperm(len(self.inputs), generator=generator).to(self.targets.device)

    can_skip_batches = True

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Nothing to do."""

    def augmentation_seeds(self, epoch: int) -> list[int]:
        """The seeds of one pass's augmentation, one for each batch."""
        return spawn_seeds(self.seed, 2 * epoch + 1, count=len(self))

    def iter_epoch(self, epoch: int, first_batch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one pass."""
        images, augment = self.inputs, self.augment
        places = [
            place[self.interleaved_slice]
            for place in self.shuffle_indices(epoch).split(self.batch_size)[first_batch : len(self)]
        ]
        if isinstance(images, LazyImages):
            batches = images.iter_batches(places)
        else:
            batches = (images.index_select(0, chosen) for chosen in places)
        targets = (self.targets.index_select(0, chosen) for chosen in places)
        if augment is None:
            yield from zip(batches, targets, strict=True)
            return
        generator = torch.Generator(self.targets.device)
        for inputs, labels, seed in zip(batches, targets, self.augmentation_seeds(epoch)[first_batch:], strict=True):
            yield self._augment_local_batch(augment, inputs, generator.manual_seed(seed)), labels

    def _augment_local_batch(self, augment: Augmentation, inputs: Tensor, generator: torch.Generator) -> Tensor:
        if self.world.size == 1:
            return augment(inputs, generator)
        # What happens to an example is decided by its place in the whole batch; those of others are not looked at.
        whole = inputs.new_zeros(self.batch_size, *inputs.shape[1:])
        whole[self.interleaved_slice] = inputs
        return augment(whole, generator)[self.interleaved_slice]


def fits_on_device(tensor: Tensor, device: torch.device) -> bool:
    """Whether a tensor may live on the device for all of training."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return tensor.numel() * tensor.element_size() < MAX_DEVICE_MEMORY_FRACTION * free
    return device.type == "cpu"


@dataclass(frozen=True, eq=False)
class LoaderBatches:
    """A user's loader as batches: its order, workers and augmentation are its own.

    Their randomness is that of torch, NumPy and Python in this process, or of generators that the loader was given;
    workers that outlive an epoch keep a state of their own that nobody sees.

    Attributes:
        loader: Iterable of `(inputs, targets)` that can be read once per epoch; its `dataset` has a length.
    """

    loader: DataLoader[Any]

    transform = None  # batches come ready

    def __len__(self) -> int:
        """Batches of one pass."""
        return len(self.loader)

    @property
    def num_data(self) -> int:
        """Number of examples."""
        return len(self.loader.dataset)  # type: ignore[arg-type]

    can_skip_batches = False

    def state_dict(self) -> dict[str, Any]:
        """The random state of NumPy, Python and the loader's own generators."""
        kind, keys, *rest = np.random.get_state()  # noqa: NPY002  # what a user's transforms use
        return {
            "numpy": (kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
            "python": random.getstate(),
            "generators": [generator.get_state() for generator in self._find_generators()],
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Put them back to that state."""
        kind, keys, *rest = state_dict["numpy"]
        np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
        random.setstate(state_dict["python"])
        for generator, state in zip(self._find_generators(), state_dict["generators"], strict=True):
            generator.set_state(state)

    def iter_epoch(self, epoch: int, first_batch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one pass, which begins at its beginning."""
        for inputs, targets, *_ in self.loader:
            yield inputs, targets

    def _find_generators(self) -> list[torch.Generator]:
        loader = self.loader
        owners = (loader, loader.sampler, getattr(loader.batch_sampler, "sampler", None))
        found = {id(g): g for owner in owners if (g := getattr(owner, "generator", None)) is not None}
        return list(found.values())
