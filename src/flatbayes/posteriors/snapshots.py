"""Bounded storage for snapshots of a Markov chain, evenly spaced over all collected iterates (thinning).

The number of snapshots to come is unknown, so the spacing doubles whenever the storage is full. The memory is that of
`max_snapshots` networks, and at least half of the rows are in use once that many snapshots have been collected.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from flatbayes.core import State
from flatbayes.core.buffers import eval_mode
from flatbayes.core.networks import check_materialized, check_real
from flatbayes.core.tensor_lists import flatten, unflatten
from flatbayes.core.weights import swap_values, trainable_parameters
from flatbayes.posteriors.draw_options import SCALE_OPTIONS, AutoFloat
from flatbayes.posteriors.posterior import Posterior
from flatbayes.posteriors.requirements import SnapshotRequirements

Storage = Literal["device", "cpu"]
"""Where snapshots are stored: on the device of the model, or in main memory."""


class SnapshotSampler(Posterior):
    """Base class of samplers whose draws are the stored snapshots of one chain, in the storage of this module.

    A subclass is a dataclass with the fields `max_snapshots`, `storage` and `scale`.
    """

    max_snapshots: int
    storage: Storage
    scale: AutoFloat | None

    draw_options = SCALE_OPTIONS
    requires_stationary_loss = "while_collecting"  # snapshots are samples of one density

    @property
    def stochastic(self) -> bool:
        """True if more than one snapshot can be stored."""
        return self.max_snapshots > 1

    @property
    def snapshot_requirements(self) -> SnapshotRequirements:
        """At least one snapshot, and up to `max_snapshots`."""
        return SnapshotRequirements(1, self.max_snapshots)

    def collect(self, state: State) -> None:
        """Store the current weights, up to `max_snapshots`."""
        add_snapshot(state.statistics, trainable_parameters(state.model))

    def count_stored_snapshots(self, state: State) -> int:
        """Number of snapshots in the storage."""
        return count_stored_snapshots(state)

    @contextmanager
    def load_snapshot(self, state: State, index: int) -> Iterator[nn.Module]:
        """Yield the model with the weights of this snapshot, at a distance from the mean that `scale` determines."""
        params, rows = trainable_parameters(state.model), state.statistics["snapshots"]
        weights, scale = rows[index], self.get_draw_option("scale")
        if scale != 1:
            weights = torch.lerp(rows[: count_stored_snapshots(state)].mean(0), weights, math.sqrt(scale))
        with swap_values(params, unflatten(weights, params)), eval_mode(state.model):
            yield state.model

    def draw(self, state: State, generator: torch.Generator) -> AbstractContextManager[nn.Module]:
        """Return a context that yields the model with the weights of a snapshot.

        Raises:
            RuntimeError: No snapshot was collected.
        """
        index = draw_snapshot_index(count_stored_snapshots(state), generator, type(self).__name__)
        return self.load_snapshot(state, index)


def select_snapshot_indices(count: int, max_snapshots: int) -> range:
    """Return which of `count` snapshots, counted from 1, are stored: multiples of the smallest fitting power of 2.

    With multiples, thinning drops the beginning of the chain rather than its end.

    >>> [list(select_snapshot_indices(count, 4)) for count in (0, 3, 4, 5, 6, 8, 11)]
    [[], [1, 2, 3], [1, 2, 3, 4], [2, 4], [2, 4, 6], [2, 4, 6, 8], [4, 8]]

    Args:
        count: Number of snapshots collected so far.
        max_snapshots: Largest number to store.
    """
    stride = 1
    while count // stride > max_snapshots:
        stride *= 2
    return range(stride, count + 1, stride)


def allocate_snapshots(model: nn.Module, max_snapshots: int, storage: Storage) -> dict[str, Tensor]:
    """Return empty statistics with one row of all trainable weights per snapshot, and a counter."""
    check_materialized(model)
    check_real(model.named_parameters(), "a sampler")
    params = flatten(trainable_parameters(model))
    device = get_storage_device(storage, params.device)
    return {
        "count": torch.zeros((), dtype=torch.int64, device="cpu"),  # read without waiting for a device
        "snapshots": torch.zeros(max_snapshots, params.numel(), dtype=params.dtype, device=device),
    }


def list_cpu_statistics(storage: Storage, stored: str = "snapshots") -> frozenset[str]:
    """Names of the statistics that are in main memory on whatever device the model is.

    Args:
        storage: Where the snapshots are stored.
        stored: Name of the statistic with the snapshots.
    """
    return frozenset(["count", *([stored] if storage == "cpu" else ())])


def add_snapshot(statistics: dict[str, Tensor], params: Sequence[Tensor]) -> None:
    """Count the current weights, and store them if their index is selected, in place.

    Args:
        statistics: The result of `allocate_snapshots`.
        params: The current weights.
    """
    count = int(statistics["count"]) + 1
    store_snapshot(statistics["snapshots"], count, params)
    statistics["count"].fill_(count)


def store_snapshot(rows: Tensor, count: int, params: Sequence[Tensor]) -> None:
    """Store the weights of snapshot number `count` if it is selected, in place; the earlier ones are thinned.

    Args:
        rows: The storage, one row per snapshot.
        count: Number of the snapshot, from 1 on.
        params: Its weights.
    """
    previous = select_snapshot_indices(count - 1, len(rows))
    selected = select_snapshot_indices(count, len(rows))
    if selected.step > previous.step:
        for row in range(len(rows) // 2):  # in ascending order: every source row is above its target
            rows[row].copy_(rows[2 * row + 1])
    if count in selected:
        torch._foreach_copy_(unflatten(rows[len(selected) - 1], params), [param.detach() for param in params])


def draw_snapshot_index(num_stored: int, generator: torch.Generator, method: str) -> int:
    """Return the number of a snapshot, drawn uniformly.

    Args:
        num_stored: Number of stored snapshots.
        generator: Source of randomness.
        method: Name of the posterior, for the error message.

    Raises:
        RuntimeError: No snapshot was collected.
    """
    if not num_stored:
        raise RuntimeError(
            f"{method} needs at least 1 collected snapshot before a draw, got 0; lower collection.start_fraction or "
            "train longer."
        )
    return int(torch.multinomial(torch.ones(num_stored, device=generator.device), 1, generator=generator).item())


def count_stored_snapshots(state: State) -> int:
    """Number of snapshots in a storage."""
    return len(select_snapshot_indices(int(state.statistics["count"]), len(state.statistics["snapshots"])))


def check_snapshot_options(max_snapshots: int, storage: Storage) -> None:
    """Validate the options of a snapshot storage.

    Raises:
        ValueError: `max_snapshots` is below 1, or `storage` is unknown.
    """
    if max_snapshots < 1:
        raise ValueError(f"max_snapshots is the largest number of stored snapshots: at least 1, got {max_snapshots}.")
    check_storage_device(storage)


def get_storage_device(storage: Storage, model_device: torch.device) -> torch.device:
    """Return the device of a storage for a model on `model_device`."""
    return torch.device("cpu") if storage == "cpu" else model_device


def check_storage_device(storage: Storage) -> None:
    """Validate a storage.

    Raises:
        ValueError: `storage` is unknown.
    """
    if storage not in get_args(Storage):
        raise ValueError(f"storage must be one of {', '.join(get_args(Storage))}; got {storage!r}.")
