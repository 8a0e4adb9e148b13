"""Random state: replayed, rewound, seeded, preserved; and derived seeds."""

import re
from itertools import product
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from flatbayes.core import randomness
from flatbayes.core.randomness import (
    RandomState,
    Stream,
    draw_normal,
    draw_seed,
    make_generator,
    preserve_rng,
    replay_rng,
    rewind_rng,
    seeded_rng,
    spawn_seed,
    spawn_seeds,
)


def test_replay_repeats_numbers_and_restores_the_state():
    state = RandomState.capture(None)
    first = torch.rand(3)
    after = torch.get_rng_state()
    with replay_rng(state):
        assert torch.equal(torch.rand(3), first)
    assert torch.equal(torch.get_rng_state(), after)


def test_seeded_numbers_depend_on_the_seed_only():
    with seeded_rng(5, None):
        first = torch.rand(3)
    torch.rand(7)
    with seeded_rng(5, None):
        assert torch.equal(torch.rand(3), first)


def test_seeded_numbers_are_those_of_torch():
    with seeded_rng(2**63 - 1, None):
        numbers = torch.rand(3)
    torch.manual_seed(2**63 - 1)
    assert torch.equal(torch.rand(3), numbers)


class TwoDevices:
    """Stands for `torch.cuda` on a machine with two devices, whose generators are those of the CPU."""

    def __init__(self):
        self.states = {torch.device("cuda", k): torch.Generator().manual_seed(k).get_state() for k in range(2)}
        self.is_initialized = lambda: True
        self.changed = []

    def get_rng_state(self, device):
        return self.states[device].clone()

    def set_rng_state(self, state, device):
        self.states[device] = state.clone()
        self.changed.append(device)


@pytest.fixture
def two_devices(monkeypatch):
    module, make = TwoDevices(), torch.Generator
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "get_device_module", lambda kind: module)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch, "Generator", lambda device="cpu": make())
    monkeypatch.setattr(torch, "manual_seed", lambda seed: pytest.fail("it seeds devices that are not restored"))
    return module


class OnDevice(torch.nn.Module):
    """A network whose parameters are said to be on a device."""

    def __init__(self, device):
        super().__init__()
        self.device = device

    def parameters(self, recurse=True):
        yield Mock(device=self.device, is_cpu=self.device.type == "cpu", is_meta=False)


@pytest.mark.parametrize(
    ("model", "seeded"),
    [
        (None, {0, 1}),
        (OnDevice(torch.device("cuda", 1)), {1}),
        (OnDevice(torch.device("cpu")), set()),
    ],
)
def test_seeding_and_preserving_leave_the_random_state_of_every_device(two_devices, model, seeded):
    before = {device: state.clone() for device, state in two_devices.states.items()}
    with seeded_rng(7, model):
        state_of_seed = torch.Generator().manual_seed(7).get_state()
        assert seeded == {d.index for d, state in two_devices.states.items() if torch.equal(state, state_of_seed)}
    with preserve_rng(model):
        for index in seeded:
            two_devices.set_rng_state(torch.Generator().manual_seed(99).get_state(), torch.device("cuda", index))
    assert all(torch.equal(state, before[device]) for device, state in two_devices.states.items())
    assert {device.index for device in two_devices.changed} == seeded


def test_devices_that_are_not_initialized_are_left_alone(two_devices):
    two_devices.is_initialized = lambda: False
    with seeded_rng(7, None):
        pass
    assert not two_devices.changed
    assert not RandomState.capture(None).accelerators


def test_a_saved_state_is_restored_on_the_device_of_this_process_only(two_devices):
    saved = RandomState.capture_devices([torch.device("cuda", 1)]).state_dict()
    here = RandomState.from_state_dict(saved, torch.device("cuda", 0))
    here.restore()
    assert two_devices.changed == [torch.device("cuda", 0)]
    assert torch.equal(two_devices.states[torch.device("cuda", 0)], saved["cuda:1"])
    assert not RandomState.from_state_dict(saved, torch.device("cpu")).accelerators


def test_preserve_restores_after_an_exception():
    before = torch.get_rng_state()
    with pytest.raises(ArithmeticError), preserve_rng(None):
        torch.rand(2)
        raise ArithmeticError
    assert torch.equal(torch.get_rng_state(), before)


def test_seeds_are_functions_of_their_stream_and_key():
    assert spawn_seeds(Stream.DRAW, 1, 2, count=3) == spawn_seeds(Stream.DRAW, 1, 2, count=3)
    assert spawn_seed(Stream.DRAW, 1, 2) == spawn_seeds(Stream.DRAW, 1, 2, count=3)[0]
    assert spawn_seed(Stream.DRAW, 1) == spawn_seed(Stream.DRAW, np.int64(1)) == spawn_seed(Stream.DRAW, True)
    assert all(0 <= seed < 2**63 for seed in spawn_seeds(Stream.DRAW, 0, count=100))
    with pytest.raises(ValueError, match="Seeds are whole numbers of at least 0, got -2"):
        spawn_seed(Stream.DRAW, 1, -2)


def test_no_two_streams_or_keys_have_the_same_seeds():
    numbers = (0, 1, 2, 7, 2**32, 2**32 + 1, 2**64)
    keys = [(), *((a,) for a in numbers), *product(numbers, repeat=2), *((3, 1, *[0] * n) for n in range(6))]
    keys += [(3, 1, member, step) for member in range(3) for step in range(30)]
    seeds = [seed for stream in Stream for key in keys for seed in spawn_seeds(stream, *key, count=2)]
    assert len(keys) == 153
    assert len({*keys}) == 152, "(3, 1, 0, 0) is there twice"
    assert len({*seeds}) == len(Stream) * 152 * 2
    assert len({stream.value for stream in Stream}) == len(Stream)


def test_streams_of_equal_keys_are_uncorrelated():
    noise = torch.stack([torch.randn(2000, generator=make_generator(stream, 3, 1)) for stream in Stream])
    correlations = torch.corrcoef(noise) - torch.eye(len(noise))
    assert correlations.abs().max() < 5 / 2000**0.5


def test_every_stream_is_used_and_no_seed_goes_around_them():
    root = Path(randomness.__file__).parents[3]
    sources = {  # without examples of docstrings
        path: re.sub(r"^ *(>>>|\.\.\.) .*$", "", path.read_text(), flags=re.MULTILINE)
        for folder in ("src", "studies", "reproduction")
        for path in (root / folder).rglob("*.py")
        if path.name != "randomness.py"
    }
    text = "\n".join(sources.values())
    assert [stream.name for stream in Stream if f"Stream.{stream.name}" not in text] == []
    constant = {
        path.name for path, source in sources.items() if re.search(r"manual_seed\(\d+\)|SeedSequence", source)
    }
    assert constant <= {"mixing.py", "__main__.py"}, "an example in a text, and the choice of a student's inputs"

    generator = torch.Generator().manual_seed(0)
    assert draw_seed(generator) != draw_seed(generator)


def test_rewind_goes_on_from_the_state_and_is_undone_by_an_exception():
    state = RandomState.capture(None)
    numbers = torch.rand(6)
    before = torch.get_rng_state()
    with pytest.raises(ArithmeticError), rewind_rng(state):
        raise ArithmeticError
    assert torch.equal(torch.get_rng_state(), before)
    with rewind_rng(state):
        assert torch.equal(torch.rand(3), numbers[:3])
    assert torch.equal(torch.rand(3), numbers[3:])


def test_noise_has_the_shapes_and_dtypes_and_leaves_the_global_generator():
    tensors = [torch.zeros(2, 3, dtype=torch.float64), torch.zeros(2)]
    before = torch.get_rng_state()
    noise = draw_normal(tensors, [5])
    assert [(t.shape, t.dtype) for t in noise] == [(t.shape, t.dtype) for t in tensors]
    stacked = draw_normal(tensors, [5, 6], stacked=True)
    assert torch.equal(stacked[0][1], draw_normal([tensors[0][1], tensors[1][1]], [6])[0])
    assert torch.equal(torch.get_rng_state(), before)
