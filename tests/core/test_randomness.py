import pytest
import torch

from flatbayes.core.randomness import RandomState, forked, fresh_seed, replayed, spawn, unmoved


def test_replayed_repeats_and_uses_nothing_up():
    state = RandomState.capture(None)
    first = torch.rand(3)
    after = torch.get_rng_state()
    with replayed(state):
        assert torch.equal(torch.rand(3), first)
    assert torch.equal(torch.get_rng_state(), after)


def test_forked_depends_on_the_seed_alone():
    with forked(5, None):
        first = torch.rand(3)
    torch.rand(7)
    with forked(5, None):
        assert torch.equal(torch.rand(3), first)


def test_unmoved_restores_after_an_exception():
    before = torch.get_rng_state()
    with pytest.raises(ArithmeticError), unmoved(None):
        torch.rand(2)
        raise ArithmeticError
    assert torch.equal(torch.get_rng_state(), before)


def test_seeds_are_functions_of_their_key():
    assert spawn(1, 2, count=3) == spawn(1, 2, count=3)
    assert len({*spawn(1, 2, count=3), *spawn(2, 1, count=3), *spawn(1, count=3)}) == 9
    assert all(0 <= seed < 2**63 for seed in spawn(0, count=100))
    generator = torch.Generator().manual_seed(0)
    assert fresh_seed(generator) != fresh_seed(generator)
