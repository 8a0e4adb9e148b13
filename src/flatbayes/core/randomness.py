"""Random state of PyTorch's global generators: capture, restore, replay; all random streams, and their seeds."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from operator import index
from typing import SupportsIndex

import numpy as np
import torch
from torch import Tensor, nn

from flatbayes.core.accelerators import list_initialized_accelerators
from flatbayes.core.devices import any_on_accelerator
from flatbayes.core.padding import clear_padding_rows
from flatbayes.core.tensor_lists import group_tensors, unflatten


class Stream(StrEnum):
    """All random streams of flatbayes, with the integers of their keys. Seeds of different streams never agree.

    The values are hashed into the seeds: a changed value changes results. Streams outside of this list: the test and
    validation splits (`data/stratified_split.py`, NumPy's generator, unchanged since 0.1, so that an old artefact is
    never evaluated on its training examples), and the generators of users (their loaders, their networks' draws).
    """

    INITIAL_WEIGHTS = "initial weights"  # seed of the run, member
    INITIAL_HEAD = "initial weights of a new last layer"  # seed of the run, member
    INITIAL_STATE = "initial state of a posterior"  # seed of the training noise: particles
    BATCHES = "batches"  # seed of the run, member: the seed of the next two
    DATA_ORDER = "order of the examples"  # seed of the batches, epoch
    AUGMENTATION = "augmentation"  # seed of the batches, epoch
    TRAINING_NOISE = "noise of training"  # seed of the run, member: dropout, Langevin noise, variational noise
    PROCESS_NOISE = "noise of a process"  # a number drawn from the training noise, rank
    FLATNESS_NOISE = "noise of a flatness"  # seed of the flatness, seed of the run, member, step
    DRY_RUN = "dry run"
    MODEL_CHECK = "trial of a network before training"  # seed of the run
    NORM_BATCHES = "batches for norm statistics"  # seed of the run
    DRAW = "draw of a network"  # seed of the prediction, member, number of the draw
    FORWARD = "forward passes of a drawn network"  # as before
    COMPILED_FORWARD = "forward passes of a compiled posterior"
    EXAMPLES = "passes over the training examples outside of steps"  # seed of the run
    FINALIZATION = "finalisation of a posterior"  # seed of the run
    VALIDATION = "forward passes of a validation"
    SNAPSHOT_ORDER = "order of the snapshots"  # seed of the prediction, member, number of the cycle
    EXAMPLE_INPUTS = "example inputs"
    EXPORT_PROBES = "probes of an export"
    SUBSAMPLE = "subsample of a split"  # seed
    ACQUISITION = "examples to label next"  # seed
    IMAGE_STATISTICS = "images for the standardisation"
    CORRUPTION = "corruption"  # seed, number of the chunk of images
    SPHERE = "directions of sharpness and landscapes"  # seed, number of the direction
    TRACE_PROBES = "probes of the trace"  # seed, number of the probe
    BOOTSTRAP = "bootstrap of paired differences"
    TUNING = "proposals of tuning"  # number of trials before
    ESTIMATOR = "fit of an estimator"  # random_state
    STUDENT_ORDER = "order of the examples of a student"  # seed
    CERTIFICATE_SPLIT = "prior and bound examples of a certificate"  # seed
    CERTIFICATE_FIT = "fit of a certified posterior"  # seed
    CERTIFICATE_ORDER = "order of the examples of a certified posterior"  # seed of its fit
    CERTIFICATE_TRIALS = "draws for the choice of a prior"  # seed
    CERTIFICATE_DRAWS = "draws of a certificate"  # seed
    CERTIFICATE_TEST = "draws of the test error of a certificate"  # seed
    CALIBRATION_HALVES = "halves of a cross-fitted calibration"  # number of the split
    CALIBRATION_POSITIONS = "positions of a calibration map"
    REFERENCE_CHAIN = "chain of a reference"  # seed, number of the chain
    STUDY = "studies"  # numbers that the study names
    PREDICTIVE_SAMPLES = "samples of a predictive distribution"  # seed, or number of the first example
    REPRODUCTION = "reproduction of published tables"  # seed of the split


@dataclass(frozen=True)
class RandomState:
    """A snapshot of the generators of the CPU and of some accelerators."""

    cpu: Tensor
    accelerators: dict[torch.device, Tensor]

    @classmethod
    def capture(cls, model: nn.Module | None) -> "RandomState":
        """The state of every generator that a forward pass of the model, or code without a model, can use."""
        if model is None:
            return cls.capture_devices(list_initialized_accelerators())
        if not torch.accelerator.is_available():  # iterating over all parameters is slow
            return cls.capture_devices(())
        return cls.capture_devices_of(model.parameters())

    @classmethod
    def capture_devices_of(cls, tensors: Iterable[Tensor]) -> "RandomState":
        """The state of every generator that an operation on these tensors can use."""
        if not torch.accelerator.is_available():
            return cls(torch.get_rng_state(), {})
        devices = {t.device for t in tensors if not (t.is_cpu or t.is_meta)}
        if any(device.type == "cuda" for device in devices) and torch.cuda.is_current_stream_capturing():
            return cls.capture_devices(())  # a graph is recorded, in which nothing is random
        return cls.capture_devices(devices)

    @classmethod
    def capture_devices(cls, devices: Iterable[torch.device]) -> "RandomState":
        """The state of the generators of the CPU and of these accelerators."""
        states = {d: torch.get_device_module(d.type).get_rng_state(d) for d in devices}
        return cls(torch.get_rng_state(), states)

    @classmethod
    def from_seed(cls, seed: int, devices: Iterable[torch.device]) -> "RandomState":
        """The state of the generators of the CPU and of these accelerators after seeding them."""
        states = {device: torch.Generator(device).manual_seed(seed).get_state() for device in devices}
        return cls(torch.Generator("cpu").manual_seed(seed).get_state(), states)

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Tensor], device: torch.device) -> "RandomState":
        """The inverse of `state_dict`; the device may have another number than when the state was saved.

        The states of other devices than this one and the CPU are left out.
        """
        states = [state for name, state in state_dict.items() if torch.device(name).type == device.type != "cpu"]
        return cls(state_dict["cpu"], {device: states[0]} if states else {})

    def state_dict(self) -> dict[str, Tensor]:
        """The states by name of device."""
        return {"cpu": self.cpu} | {str(device): state for device, state in self.accelerators.items()}

    def equals(self, other: "RandomState") -> bool:
        """Whether the next random numbers are the same."""
        pairs = [(self.cpu, other.cpu), *((s, other.accelerators[d]) for d, s in self.accelerators.items())]
        return all(torch.equal(left, right) for left, right in pairs)

    def restore(self) -> None:
        """Set the generators to this state."""
        torch.set_rng_state(self.cpu)
        for device, state in self.accelerators.items():
            torch.get_device_module(device.type).set_rng_state(state, device)


@contextmanager
def replay_rng(state: RandomState) -> Iterator[None]:
    """Inside, random numbers start from `state`; afterwards the generators are as they were before."""
    outer_state = RandomState.capture_devices(state.accelerators)
    state.restore()
    try:
        yield
    finally:
        outer_state.restore()


@contextmanager
def rewind_rng(state: RandomState) -> Iterator[None]:
    """Inside and afterwards, random numbers go on from `state`; an exception restores the state from before.

    The states of accelerators, which are slow to set, are not set if no random numbers were drawn since `state`.
    """
    outer_state = RandomState.capture_devices(state.accelerators)
    if not (state.accelerators and outer_state.equals(state)):
        state.restore()
    try:
        yield
    except BaseException:
        outer_state.restore()
        raise


@contextmanager
def seeded_rng(seed: int, model: nn.Module | None) -> Iterator[None]:
    """Inside, random numbers start from `seed`; afterwards the generators are as they were before.

    `torch.manual_seed` would also seed accelerators that are not restored. Without a model, all devices that this
    process has initialized are seeded and restored.
    """
    state = RandomState.capture(model)
    RandomState.from_seed(seed, state.accelerators).restore()
    try:
        yield
    finally:
        state.restore()


@contextmanager
def preserve_rng(model: nn.Module | None) -> Iterator[None]:
    """Restore the generators of the CPU and of the model's devices, or of all initialized ones, at the end."""
    state = RandomState.capture(model)
    try:
        yield
    finally:
        state.restore()


def draw_seed(generator: torch.Generator) -> int:
    """Draw a seed for another generator from this one."""
    device = generator.device
    return int(torch.randint(2**62, (), generator=generator, device=device).item())


def spawn_seeds(stream: Stream, *key: SupportsIndex, count: int) -> list[int]:
    """Derive independent seeds of a random stream from a key, as a pure function.

    The name of the stream, the length of the key and its integers are hashed, so that neither another stream nor a
    longer key gives the same seeds (`numpy.random.SeedSequence` alone pads keys with zeros).

    Raises:
        ValueError: An integer is negative.
    """
    numbers = [index(number) for number in key]
    if any(number < 0 for number in numbers):
        raise ValueError(f"Seeds are whole numbers of at least 0, got {min(numbers)}.")
    digest = hashlib.sha256(repr((str(stream), *numbers)).encode()).digest()
    state = np.random.SeedSequence(int.from_bytes(digest)).generate_state(count, np.uint64)
    return [int(word) >> 1 for word in state]  # torch takes 63 bits on every device


def spawn_unnamed_seed(*key: int) -> int:
    """The seed that version 0.1 derived from a key, for the draws of its artefacts; zeros at the end are ignored."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]) >> 1


def spawn_seed(stream: Stream, *key: SupportsIndex) -> int:
    """Derive the seed of a random stream from a key: the first of `spawn_seeds`."""
    return spawn_seeds(stream, *key, count=1)[0]


def make_generator(stream: Stream, *key: SupportsIndex, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator of a random stream; see `spawn_seeds`."""
    return torch.Generator(device).manual_seed(spawn_seed(stream, *key))


def draw_normal(like: Iterable[Tensor], seeds: Iterable[int], *, stacked: bool = False) -> list[Tensor]:
    """Standard normal noise in the shapes of tensors, from seeds alone; the global generators are not used.

    There is one seed, or with `stacked` one for each network along the first dimension, which gets the noise that it
    gets alone.
    """
    tensors = list(like)
    noise = [
        _draw_network_normal([t[k] for t in tensors] if stacked else tensors, seed) for k, seed in enumerate(seeds)
    ]
    if not stacked:
        return noise[0]
    values = [torch.stack(rows) for rows in zip(*noise, strict=True)]
    clear_padding_rows(values, tensors)
    return values


def iter_normal_noise(
    like: Sequence[Tensor], generators: Mapping[torch.device, torch.Generator] | None = None
) -> Iterator[tuple[list[int], list[Tensor]]]:
    """Draw standard normal noise for tensors, group by group.

    Without generators, the global ones are used.

    Yields:
        Indices of tensors, and the noise of each. On an accelerator a group has one kernel.
    """
    return _iter_noise(torch.randn, torch.randn_like, like, generators)


def iter_uniform_noise(like: Sequence[Tensor]) -> Iterator[tuple[list[int], list[Tensor]]]:
    """Draw uniform noise on [0, 1) with the global generators, group by group; see `iter_normal_noise`."""
    return _iter_noise(torch.rand, torch.rand_like, like, None)


def _iter_noise(
    draw: Callable[..., Tensor],
    draw_like: Callable[[Tensor], Tensor],
    like: Sequence[Tensor],
    generators: Mapping[torch.device, torch.Generator] | None,
) -> Iterator[tuple[list[int], list[Tensor]]]:
    is_grouped = any_on_accelerator(like)
    for group in group_tensors(like) if is_grouped else [[k] for k in range(len(like))]:
        members = [like[k] for k in group]
        first, total = members[0], sum(t.numel() for t in members)
        if generators is None and not is_grouped:
            noise = [draw_like(first)]
            clear_padding_rows(noise, members)
            yield group, noise
            continue
        generator = None if generators is None else generators[first.device]
        vector = draw(total, generator=generator, device=first.device, dtype=first.dtype)
        noise = unflatten(vector, members)
        clear_padding_rows(noise, members)
        yield group, noise


def _draw_network_normal(like: list[Tensor], seed: int) -> list[Tensor]:
    generators = {t.device: torch.Generator(t.device).manual_seed(seed) for t in like}
    noise = list(like)
    for group, values in iter_normal_noise(like, generators):
        for k, value in zip(group, values, strict=True):
            noise[k] = value
    return noise
