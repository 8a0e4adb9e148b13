"""Batches of a training part: on the device when it fits, shuffled by a stream of their own."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from flatbayes.core.randomness import spawn
from flatbayes.data import StoredImages

SHARE_OF_DEVICE = 0.5


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

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch."""


@dataclass(frozen=True, eq=False)
class Batches:
    """An iterable of shuffled `(inputs, targets)`; every pass has an order, and an augmentation, of its own.

    The last, smaller batch of a pass is left out, so that every step sees as many examples; shuffling sees to it
    that every example gets its turn. Orders depend on the seed and the number of the pass alone: training a twin
    in another way does not move them.

    Attributes:
        inputs: All examples; stored images are decoded batch by batch.
        targets: Their targets.
        batch_size: Examples per batch; at most as many as there are.
        seed: Decides orders and augmentations.
        augment: Random changes to the inputs of a batch, given a generator on their device.
        transform: What inputs are still to go through.
    """

    inputs: Tensor | StoredImages
    targets: Tensor
    batch_size: int
    seed: int
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None
    transform: Callable[[Tensor], Tensor] | None = None

    def __len__(self) -> int:
        """Batches of one pass."""
        return max(1, len(self.inputs) // self.batch_size)

    @property
    def num_data(self) -> int:
        """Number of examples."""
        return len(self.inputs)

    def seeded(self, seed: int) -> "Batches":
        """The same examples in the orders of another seed."""
        return replace(self, seed=seed)

    def order(self, number: int) -> Tensor:
        """The places of all examples in the order of one pass, on the device of the targets."""
        generator = torch.Generator().manual_seed(spawn(self.seed, 2 * number, count=1)[0])
        return torch.randperm(len(self.inputs), generator=generator).to(self.targets.device)

    def changes(self, number: int) -> torch.Generator:
        """The generator of one pass's augmentation."""
        return torch.Generator(self.targets.device).manual_seed(spawn(self.seed, 2 * number + 1, count=1)[0])

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one pass."""
        order, changes, images = self.order(number), self.changes(number), self.inputs
        places = order.split(self.batch_size)[: len(self)]
        if isinstance(images, StoredImages):
            batches = images.batches(places)
        else:
            batches = (images.index_select(0, chosen) for chosen in places)
        for chosen, inputs in zip(places, batches, strict=True):
            targets = self.targets.index_select(0, chosen)
            yield inputs if self.augment is None else self.augment(inputs, changes), targets


def fits(tensor: Tensor, device: torch.device) -> bool:
    """Whether a tensor may live on the device for all of training."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return tensor.numel() * tensor.element_size() < SHARE_OF_DEVICE * free
    return device.type == "cpu"


@dataclass(frozen=True, eq=False)
class Loaded:
    """A user's loader as batches: its order, workers and augmentation are its own.

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

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one pass."""
        for inputs, targets, *_ in self.loader:
            yield inputs, targets
