import threading

import pytest
import torch

from flatbayes.core.spread import get_weight_distribution, weight_distribution


def params():
    return [torch.zeros(2), torch.zeros(2)]  # equal, but not the same


def numbers(*values):
    return [torch.full((2,), value) for value in values]


def found(ps):
    spreads = [get_weight_distribution(p) for p in ps]
    return [None if s is None else (s.mean[0].item(), s.std[0].item()) for s in spreads]


def test_offers_to_the_very_tensor_and_only_inside():
    ps = params()
    assert found(ps) == [None, None]
    with weight_distribution(ps[:1], numbers(1.0), numbers(2.0)):
        assert found(ps) == [(1, 2), None]
        ps[0].add_(5)  # whatever it holds
        assert found(ps) == [(1, 2), None]
    assert found(ps) == [None, None]


def test_inner_offers_replace_outer_ones_until_they_end():
    ps = params()
    with weight_distribution(ps, numbers(1.0, 2.0), numbers(3.0, 4.0)):
        with weight_distribution(ps[1:], numbers(5.0), numbers(6.0)):
            assert found(ps) == [(1, 3), (5, 6)]
        assert found(ps) == [(1, 3), (2, 4)]


def test_ends_with_an_exception():
    ps = params()
    with pytest.raises(KeyboardInterrupt), weight_distribution(ps, numbers(1.0, 2.0), numbers(3.0, 4.0)):
        raise KeyboardInterrupt
    assert found(ps) == [None, None]


def test_another_thread_hears_nothing_of_it():
    ps, heard = params(), []
    with weight_distribution(ps, numbers(1.0, 2.0), numbers(3.0, 4.0)):
        thread = threading.Thread(target=lambda: heard.append(found(ps)))
        thread.start()
        thread.join()
    assert heard == [[None, None]]


def test_refuses_an_offer_that_leaves_one_out():
    with pytest.raises(ValueError), weight_distribution(params(), numbers(1.0, 2.0), numbers(3.0)):
        pass
