"""Random state of PyTorch's global generators: capture, restore, replay, and derived seeds."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class RandomState:
    """A snapshot of the generators of the CPU and of some accelerators.

    Attributes:
        cpu: State of the CPU's generator.
        accelerators: State of the generator of each accelerator.
    """

    cpu: Tensor
    accelerators: dict[torch.device, Tensor]

    @classmethod
    def capture(cls, model: nn.Module | None) -> "RandomState":
        """The state of every generator that a forward pass of the model can use; the CPU's without a model."""
        if model is None or not torch.accelerator.is_available():  # iterating over all parameters is slow
            return cls.capture_devices(())
        return cls.capture_devices({p.device for p in model.parameters() if not (p.is_cpu or p.is_meta)})

    @classmethod
    def capture_devices(cls, devices: Iterable[torch.device]) -> "RandomState":
        """The state of the generators of the CPU and of these accelerators."""
        states = {d: torch.get_device_module(d.type).get_rng_state(d) for d in devices}
        return cls(torch.get_rng_state(), states)

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Tensor]) -> "RandomState":
        """The inverse of `state_dict`."""
        others = {torch.device(name): state for name, state in state_dict.items() if name != "cpu"}
        return cls(state_dict["cpu"], others)

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
    """Inside, random numbers start from `state`; afterwards the generators are as they were before.

    Args:
        state: Also says which accelerators are restored.
    """
    outer_state = RandomState.capture_devices(state.accelerators)
    state.restore()
    try:
        yield
    finally:
        outer_state.restore()


@contextmanager
def rewind_rng(state: RandomState) -> Iterator[None]:
    """Inside and afterwards, random numbers go on from `state`; an exception restores the state from before."""
    outer_state = RandomState.capture_devices(state.accelerators)
    state.restore()
    try:
        yield
    except BaseException:
        outer_state.restore()
        raise


@contextmanager
def seeded_rng(seed: int, model: nn.Module | None) -> Iterator[None]:
    """Inside, random numbers start from `seed`; afterwards the generators are as they were before.

    Args:
        seed: Any integer that `torch.manual_seed` takes.
        model: The network whose devices are restored; None for the CPU alone.
    """
    with preserve_rng(model):
        torch.manual_seed(seed)
        yield


@contextmanager
def preserve_rng(model: nn.Module | None) -> Iterator[None]:
    """Restore the generators of the CPU and of the model's devices at the end."""
    state = RandomState.capture(model)
    try:
        yield
    finally:
        state.restore()


def draw_seed(generator: torch.Generator) -> int:
    """Draw a seed for another generator from this one."""
    device = generator.device
    return int(torch.randint(2**62, (), generator=generator, device=device).item())


def spawn_seeds(*key: int, count: int) -> list[int]:
    """Derive independent seeds from a key, as a pure function.

    Args:
        key: Integers of at least 0, such as a seed and a step; each other key gives other seeds.
        count: Number of seeds.
    """
    state = np.random.SeedSequence(key).generate_state(count, np.uint64)
    return [int(word) >> 1 for word in state]  # torch takes 63 bits on every device


def draw_normal(like: Iterable[Tensor], seeds: Iterable[int], *, stacked: bool = False) -> list[Tensor]:
    """Standard normal noise in the shapes of tensors, from seeds alone; the global generators are not used.

    Args:
        like: Tensors whose shapes, dtypes and devices the noise has.
        seeds: One seed; or one for each network along the first dimension of the tensors if these are stacked.
        stacked: Whether the tensors hold several networks. Each gets the noise that it gets alone.

    Returns:
        One tensor of noise per tensor.
    """
    tensors = list(like)
    noise = [
        _draw_network_normal([t[k] for t in tensors] if stacked else tensors, seed) for k, seed in enumerate(seeds)
    ]
    return [torch.stack(rows) for rows in zip(*noise, strict=True)] if stacked else noise[0]


def _draw_network_normal(like: list[Tensor], seed: int) -> list[Tensor]:
    generators = {t.device: torch.Generator(t.device).manual_seed(seed) for t in like}
    return [torch.randn(t.shape, generator=generators[t.device], device=t.device, dtype=t.dtype) for t in like]
