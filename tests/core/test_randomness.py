import pytest
import torch

from flatbayes.core.randomness import RandomState, draw_seed, preserve_rng, replay_rng, seeded_rng, spawn_seeds


def test_replayed_repeats_and_uses_nothing_up():
    state = RandomState.capture(None)
    first = torch.rand(3)
    after = torch.get_rng_state()
    with replay_rng(state):
        assert torch.equal(torch.rand(3), first)
    assert torch.equal(torch.get_rng_state(), after)


def test_forked_depends_on_the_seed_alone():
    with seeded_rng(5, None):
        first = torch.rand(3)
    torch.rand(7)
    with seeded_rng(5, None):
        assert torch.equal(torch.rand(3), first)


def test_unmoved_restores_after_an_exception():
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
