"""Random state: replayed, rewound, seeded, preserved; and derived seeds."""

import pytest
import torch

from flatbayes.core.randomness import (
    RandomState,
    draw_normal,
    draw_seed,
    preserve_rng,
    replay_rng,
    rewind_rng,
    seeded_rng,
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


def test_preserve_restores_after_an_exception():
    before = torch.get_rng_state()
    with pytest.raises(ArithmeticError), preserve_rng(None):
        torch.rand(2)
        raise ArithmeticError
    assert torch.equal(torch.get_rng_state(), before)


def test_seeds_are_functions_of_their_key():
    assert spawn_seeds(1, 2, count=3) == spawn_seeds(1, 2, count=3)
    assert len({*spawn_seeds(1, 2, count=3), *spawn_seeds(2, 1, count=3), *spawn_seeds(1, count=3)}) == 9
    assert all(0 <= seed < 2**63 for seed in spawn_seeds(0, count=100))
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
