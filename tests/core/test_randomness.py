"""Random state: replayed, rewound, seeded, preserved; and derived seeds."""

import re
from itertools import product
from pathlib import Path

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


@pytest.mark.parametrize("has_accelerator", [False, True])
def test_seeded_numbers_are_those_of_torch_on_every_device(monkeypatch, has_accelerator):
    seed_all_devices, seeds = torch.manual_seed, []
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: has_accelerator)
    monkeypatch.setattr(torch, "manual_seed", lambda seed: [seeds.append(seed), seed_all_devices(seed)])
    with seeded_rng(2**63 - 1, None):
        numbers = torch.rand(3)
    assert seeds == [2**63 - 1] * has_accelerator
    with preserve_rng(None):
        seed_all_devices(2**63 - 1)
        assert torch.equal(torch.rand(3), numbers)


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
    sources = {
        path: path.read_text()
        for folder in ("src", "studies", "reproduction")
        for path in (root / folder).rglob("*.py")
        if path.name != "randomness.py"
    }
    text = "\n".join(sources.values())
    assert [stream.name for stream in Stream if f"Stream.{stream.name}" not in text] == []
    constant = [
        path.name for path, source in sources.items() if re.search(r"manual_seed\(\d+\)|SeedSequence", source)
    ]
    assert set(constant) <= {"mixing.py", "__main__.py"}, (
        "an example in a docstring, and the choice of a student's inputs"
    )

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
