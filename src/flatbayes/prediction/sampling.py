"""Sampling of networks from a fitted posterior, each with batch-norm statistics that match its weights.

The running statistics of a BatchNorm layer belong to the weights for which they were estimated. A draw with other
weights gets statistics of its own, estimated on stored batches of training inputs (Izmailov et al., UAI 2018; Maddox
et al., NeurIPS 2019), which a cache keeps.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, Self

import torch
from torch import Tensor, nn

from flatbayes.calibration import CalibrationMap
from flatbayes.core import State
from flatbayes.core.accelerators import describe_device
from flatbayes.core.adapters import check_unmerged
from flatbayes.core.buffers import norm_layers, reestimate_norm_statistics, swap_buffers
from flatbayes.core.devices import has_float64, is_accelerator, move_tensor
from flatbayes.core.display import format_fields
from flatbayes.core.input_trees import ModelInputs, cast_floating, map_tensors
from flatbayes.core.network_interface import InputStructure, get_interface
from flatbayes.core.networks import choose_memory_format, shared_dtype
from flatbayes.core.randomness import Stream, make_generator, preserve_rng, seeded_rng, spawn_seed, spawn_unnamed_seed
from flatbayes.core.traversal import list_parameters
from flatbayes.data import Standardize
from flatbayes.likelihoods import Likelihood
from flatbayes.posteriors import Posterior
from flatbayes.prediction.inputs import convert_integers
from flatbayes.prediction.placement import autocast, place_batches
from flatbayes.prediction.training_inputs import TrainingInputs

SampleId = tuple[int, int, int]
"""(seed, member, draw): identifies one network; `member` is the index of its training run."""

DRAW_RULE = 2
"""Rule by which an identifier selects a network: 2, with a random stream of its own, and each snapshot once before
one is repeated; 1, that of artefacts of schemas 1 to 4, whose draws have independent snapshots."""
MAX_DRAWS = 10**6
MAX_CACHED_DRAWS = 1000
"""Largest number of draws whose running statistics are cached."""


@dataclass
class NetworkSampler:
    """Draws networks from the states of a posterior.

    Attributes:
        posterior: The method and its hyperparameters.
        states: Final state of each training run; all runs have the same weight in the mixture.
        likelihood: Turns network outputs into a predictive distribution.
        transform: Applied to inputs before a network, such as the standardisation of the training data.
        statistics_inputs: Batches of training inputs, before the transform, on which running statistics of draws
            are re-estimated; needed where draws change the weights of a network with BatchNorm.
        info: Plain data that is saved with the artefact: class names, the model's class path and the like.
        norm_statistics: Cache of re-estimated running statistics, which is saved with the artefact: of draws on the
            kind of device where the networks are, in the precision of the weights.
        draw_rule: `DRAW_RULE`; 1 for an artefact of an older schema, which draws the same networks as before.
        training_inputs: Statistics of the training inputs, to find inputs that are unlike them; None for none.

    Examples:
        >>> images = fitted.preprocess(inputs[:4])
        >>> for sampled_network in fitted.sample_networks(2, seed=0):
        ...     print(sampled_network(images).shape)
        torch.Size([4, 10])
        torch.Size([4, 10])
    """

    posterior: Posterior
    states: Sequence[State]
    likelihood: Likelihood
    transform: Callable[[Any], Any] | None = None
    statistics_inputs: Sequence[ModelInputs] = ()
    info: dict[str, Any] = field(default_factory=dict)
    norm_statistics: dict[SampleId, dict[str, Tensor]] = field(default_factory=dict, repr=False)
    draw_rule: int = DRAW_RULE
    training_inputs: TrainingInputs | None = None
    _other_statistics: dict[tuple[str, torch.dtype | None], dict[SampleId, dict[str, Tensor]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    """Statistics of draws on other kinds of devices, or estimated in another precision, by these two."""
    _device_copies: tuple[tuple[Any, ...], Any, list[ModelInputs]] | None = field(
        default=None, init=False, repr=False, compare=False
    )
    """Transform and statistics inputs, and copies of them on an accelerator."""

    __repr__ = format_fields

    def __post_init__(self) -> None:
        if not self.states:
            raise ValueError("A fitted posterior needs the state of at least one training run, got none.")

    @property
    def device(self) -> torch.device:
        """Device of the networks."""
        return list_parameters(self.states[0].model)[0].device

    @property
    def dtype(self) -> torch.dtype | None:
        """Precision of the networks, to which floating-point inputs are converted; None if weights have several."""
        return shared_dtype(list_parameters(self.states[0].model))

    @property
    def input_structure(self) -> InputStructure:
        """Keys, or number, of the inputs of training; None for a tensor, or if it is not known."""
        return get_interface(self.states[0].model).inputs

    @property
    def calibration(self) -> CalibrationMap | None:
        """The map that `flatbayes.calibrate` fitted, which every prediction applies; None without one."""
        data = self.info.get("calibration")
        return None if data is None else CalibrationMap.from_dict(data)

    def to(self, device: torch.device | str) -> Self:
        """Move networks and statistics to another device, in place.

        The same seed draws other networks on another kind of device, so the cached statistics of draws are kept by
        kind, and are used again when the networks come back.

        Raises:
            ValueError: The networks are float64, and the device has no float64.
        """
        if not has_float64(torch.device(device)) and any(
            tensor.dtype == torch.float64 for state in self.states for tensor in state.model.parameters()
        ):
            raise ValueError(
                f"The networks have weights of float64, which the device {device} does not have. Predict with them "
                "on the CPU, or train them with precision.mode 32-true."
            )
        previous_kind = describe_device(self.device)
        for state in self.states:
            state.to(device)
            choose_memory_format(state.model, self.info.get("channels_last"))
        self._set_device_kind(previous_kind, describe_device(self.device))
        self._device_copies = None
        return self

    def add_norm_statistics(self, statistics: dict[SampleId, dict[str, Tensor]], device_kind: str) -> None:
        """Add running statistics of the draws on a kind of device, such as those of an artefact."""
        if device_kind == describe_device(self.device):
            self.norm_statistics.update(statistics)
        else:
            self._other_statistics.setdefault((device_kind, None), {}).update(statistics)

    def _set_device_kind(self, previous_kind: str, kind: str) -> None:
        """Exchange the cached statistics of draws on one kind of device for those on another."""
        if kind != previous_kind:
            self._other_statistics[previous_kind, None] = dict(self.norm_statistics)
            self.norm_statistics.clear()
            self.norm_statistics.update(self._other_statistics.pop((kind, None), {}))

    def _get_device_copies(self) -> tuple[Callable[[Any], Any] | None, Sequence[ModelInputs]]:
        """The transform and the statistics inputs, on the accelerator of the networks if they are on one."""
        device = self.device
        if not is_accelerator(device):
            return self.transform, self.statistics_inputs
        source = (self.transform, self.statistics_inputs)
        if self._device_copies is None or any(
            old is not new for old, new in zip(self._device_copies[0], source, strict=True)
        ):
            transform = self.transform.to(device) if isinstance(self.transform, Standardize) else self.transform
            self._device_copies = (source, transform, place_batches(self.statistics_inputs, device))
        return self._device_copies[1:]

    def preprocess(self, batch: ModelInputs) -> Any:
        """Move a batch of raw inputs to the networks' device, apply the transform, and convert the precision."""
        transform, device = self._get_device_copies()[0], self.device
        if not isinstance(batch, Tensor):
            if isinstance(self.transform, Standardize):
                raise ValueError(
                    "Inputs of several tensors cannot be standardized: prepare them before, transform=None."
                )
            batch = map_tensors(lambda tensor: move_tensor(tensor, device), batch)
            return cast_floating(batch if transform is None else transform(batch), self.dtype)
        if batch.dtype == torch.float64 and isinstance(self.transform, Standardize):  # not all devices have float64
            batch = self.transform(batch)
        else:
            batch = move_tensor(batch, device)
            batch = batch if transform is None else transform(batch)
        return cast_floating(convert_integers(batch, self.info.get("inputs"), self.dtype).to(device), self.dtype)

    def sample_ids(self, num_draws: int, seed: int = 0) -> list[SampleId]:
        """Identifiers of the networks that a prediction averages, the same number for every training run.

        Args:
            num_draws: Number of networks, rounded up to a multiple of the number of training runs; a posterior
                without randomness has one network per run.
            seed: First entry of each identifier.

        Raises:
            ValueError: `num_draws` is no whole number, below 1 or above a million.
        """
        check_num_draws(num_draws)
        num_members = len(self.states)
        draws_per_member = -(-num_draws // num_members) if self.posterior.stochastic else 1
        return [(seed, member, draw) for draw in range(draws_per_member) for member in range(num_members)]

    @contextmanager
    def sampled_network(self, sample_id: SampleId, autocast_dtype: torch.dtype | None = None) -> Iterator[nn.Module]:
        """The network of an identifier, valid within the context, in which it also seeds the global random state.

        Args:
            sample_id: The identifier.
            autocast_dtype: Precision in which running statistics are estimated, from `resolve_autocast_dtype`.
        """
        # A network may use random numbers also in eval mode, such as functional dropout that is always active.
        self.check_adapters()
        state = self.states[sample_id[1]]
        with seeded_rng(spawn_seed(Stream.FORWARD, *sample_id), state.model), self._draw(sample_id) as network:
            cache = self._get_statistics_cache(autocast_dtype)
            statistics = cache.get(sample_id)
            if statistics is None:
                if not (self.posterior.needs_norm_reestimation and norm_layers(network, state.updated_buffers)):
                    yield network
                    return
                with autocast(self.device, autocast_dtype):
                    statistics = self._reestimate_statistics(network, state)
                if len(cache) < MAX_CACHED_DRAWS:
                    cache[sample_id] = statistics
            with swap_buffers(network, statistics):
                yield network

    def check_adapters(self) -> None:
        """Refuse draws of merged adapters, whose factors the networks do not use.

        Raises:
            ValueError: An adapter is merged, and draws are not the weights of the model.
        """
        if self.posterior.stochastic or self.posterior.needs_norm_reestimation:
            for state in self.states:
                check_unmerged(state.model, "so draws would not differ")

    def share_norm_statistics(self, sample_ids: Sequence[SampleId], autocast_dtype: torch.dtype | None) -> None:
        """Use the running statistics of the first network for all: weights below BatchNorm layers are equal."""
        cache = self._get_statistics_cache(autocast_dtype)
        statistics = cache.get(sample_ids[0])
        if statistics is not None:
            for sample_id in sample_ids[: max(0, MAX_CACHED_DRAWS - len(cache))]:
                cache.setdefault(sample_id, statistics)

    def _get_statistics_cache(self, autocast_dtype: torch.dtype | None) -> dict[SampleId, dict[str, Tensor]]:
        if autocast_dtype is None:
            return self.norm_statistics
        return self._other_statistics.setdefault((describe_device(self.device), autocast_dtype), {})

    def _draw(self, sample_id: SampleId) -> AbstractContextManager[nn.Module]:
        state, index = self.states[sample_id[1]], self.snapshot_index(sample_id)
        if index is None:
            return self.posterior.draw(state, self.make_draw_generator(sample_id))
        return self.posterior.load_snapshot(state, index)

    def snapshot_index(self, sample_id: SampleId) -> int | None:
        """Number of the stored snapshot that an identifier selects; None where draws are not those of a chain.

        Args:
            sample_id: The identifier.
        """
        seed, member, draw = sample_id
        num_snapshots = self.posterior.count_stored_snapshots(self.states[member])
        if self.draw_rule < DRAW_RULE or not num_snapshots:
            return None
        cycle, position = divmod(draw, num_snapshots)
        order = torch.randperm(num_snapshots, generator=make_generator(Stream.SNAPSHOT_ORDER, seed, member, cycle))
        return int(order[position])

    def make_draw_generator(self, sample_id: SampleId) -> torch.Generator:
        """The source of randomness of the draw of an identifier, in posteriors without stored snapshots."""
        if self.draw_rule < DRAW_RULE:
            return torch.Generator(self.device).manual_seed(spawn_unnamed_seed(*sample_id))
        return make_generator(Stream.DRAW, *sample_id, device=self.device)

    def sample_networks(self, num_draws: int = 30, *, seed: int = 0) -> Iterator[nn.Module]:
        """Yield networks of the posterior one after the other; each is valid until the next is requested.

        Args:
            num_draws: Number of networks, as in `sample_ids`.
            seed: The same seed draws the same networks.
        """
        for sample_id in self.sample_ids(num_draws, seed):
            with self.sampled_network(sample_id) as network:
                yield network

    def _reestimate_statistics(self, network: nn.Module, state: State) -> dict[str, Tensor]:
        if not self.statistics_inputs:
            raise ValueError(
                "Draws of this posterior have new weights, so the running statistics of their BatchNorm layers "
                "must be estimated on training data, and there is none here: pass `statistics_inputs`, some "
                "batches of training inputs."
            )
        batches = (self.preprocess(batch) for batch in self._get_device_copies()[1])
        with preserve_rng(network):  # the statistics are estimated once, and predictions do not depend on when
            return reestimate_norm_statistics(network, batches, state.updated_buffers)


def check_num_draws(num_draws: int) -> None:
    """Check the number of draws of a prediction.

    Raises:
        ValueError: `num_draws` is below 1 or above a million.

    Examples:
        >>> check_num_draws(30)
    """
    if not isinstance(num_draws, Integral):
        raise ValueError(f"num_draws must be a whole number, got {num_draws!r}.")
    if num_draws < 1:
        raise ValueError(f"A prediction needs at least 1 draw, got num_draws={num_draws}.")
    if num_draws > MAX_DRAWS:
        raise ValueError(f"A prediction takes at most a million draws, got num_draws={num_draws}.")
