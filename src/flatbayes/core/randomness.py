"""Random state of torch's global generators: captured, replayed, forked."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class RandomState:
    """A snapshot of the generators of the CPU and of some accelerators."""

    cpu: Tensor
    accelerators: dict[torch.device, Tensor]

    @staticmethod
    def capture(model: nn.Module | None) -> "RandomState":
        """The state of every generator that a forward pass of the model can use; the CPU's without a model."""
        if model is None or not torch.accelerator.is_available():  # looking at every parameter takes a while
            return RandomState.capture_devices(())
        return RandomState.capture_devices({p.device for p in model.parameters() if not (p.is_cpu or p.is_meta)})

    @staticmethod
    def capture_devices(devices: Iterable[torch.device]) -> "RandomState":
        """The state of the generators of the CPU and of these accelerators."""
        states = {d: torch.get_device_module(d.type).get_rng_state(d) for d in devices}
        return RandomState(torch.get_rng_state(), states)

    def state_dict(self) -> dict[str, Tensor]:
        """The states by device, as plain data."""
        return {"cpu": self.cpu} | {str(device): state for device, state in self.accelerators.items()}

    @staticmethod
    def from_state_dict(state_dict: Mapping[str, Tensor]) -> "RandomState":
        """The inverse of `state_dict`."""
        others = {torch.device(name): state for name, state in state_dict.items() if name != "cpu"}
        return RandomState(state_dict["cpu"], others)

    def equals(self, other: "RandomState") -> bool:
        """Whether the numbers that come next are the same."""
        pairs = [(self.cpu, other.cpu), *((s, other.accelerators[d]) for d, s in self.accelerators.items())]
        return all(torch.equal(mine, yours) for mine, yours in pairs)

    def restore(self) -> None:
        """Put the generators back to this state."""
        torch.set_rng_state(self.cpu)
        for device, state in self.accelerators.items():
            torch.get_device_module(device.type).set_rng_state(state, device)


@contextmanager
def replay_rng(state: RandomState) -> Iterator[None]:
    """Inside, randomness starts again from `state`; afterwards it goes on as if nothing had happened."""
    after = RandomState.capture_devices(state.accelerators)
    state.restore()
    try:
        yield
    finally:
        after.restore()


@contextmanager
def seeded_rng(seed: int, model: nn.Module | None) -> Iterator[None]:
    """Inside, randomness starts from `seed`; afterwards it goes on as if nothing had happened."""
    with preserve_rng(model):
        torch.manual_seed(seed)
        yield


@contextmanager
def preserve_rng(model: nn.Module | None) -> Iterator[None]:
    """Whatever randomness is used inside, none is used up."""
    before = RandomState.capture(model)
    try:
        yield
    finally:
        before.restore()


def draw_seed(generator: torch.Generator) -> int:
    """A seed for another generator, drawn from this one."""
    device = generator.device
    return int(torch.randint(2**62, (), generator=generator, device=device).item())


def spawn_seeds(*key: int, count: int) -> list[int]:
    """`count` independent seeds, a pure function of the key."""
    state = np.random.SeedSequence(key).generate_state(count, np.uint64)
    return [int(word) >> 1 for word in state]  # torch takes 63 bits on every device
