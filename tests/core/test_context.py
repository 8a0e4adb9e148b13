"""The closure context: batch fraction, weight distributions and vectorized networks, per thread and per block."""

import threading

import pytest
import torch

from flatbayes.core import subset_batch
from flatbayes.core.context import (
    batch_fraction,
    get_batch_fraction,
    num_vectorized,
    vectorized,
)
from flatbayes.core.gaussians import weight_distribution
from support import get_weight_distribution

ROWS, LABELS = torch.arange(24).view(8, 3), torch.arange(8)


def make_params():
    return [torch.zeros(2), torch.zeros(2)]  # equal values, different tensors


def full(*values):
    return [torch.full((2,), value) for value in values]


def read_distributions(params):
    distributions = [get_weight_distribution(p) for p in params]
    return [None if d is None else (d.mean[0].item(), d.std[0].item()) for d in distributions]


def read_context(params):
    return get_batch_fraction(), read_distributions(params), num_vectorized()


def test_the_whole_batch_is_the_default():
    rows, labels = subset_batch(ROWS, LABELS)
    assert rows is ROWS
    assert labels is LABELS


@pytest.mark.parametrize(("fraction", "count"), [(1.0, 8), (0.5, 4), (0.3, 3), (0.25, 2), (0.01, 2)])
def test_a_subset_has_the_first_examples_rounded_up_and_at_least_two(fraction, count):
    with batch_fraction(fraction):
        rows, labels = subset_batch(ROWS, LABELS)
    assert torch.equal(rows, ROWS[:count])
    assert torch.equal(labels, LABELS[:count])


def test_the_size_of_a_subset_has_no_rounding_error():
    with batch_fraction(0.55):
        assert len(subset_batch(torch.zeros(100, 1))[0]) == 55  # in floating point 0.55 * 100 is above 55


def test_a_batch_of_one_stays_whole():
    with batch_fraction(0.5):
        assert len(subset_batch(ROWS[:1])[0]) == 1


def test_a_distribution_belongs_to_the_very_tensor_and_to_the_block():
    params = make_params()
    assert read_distributions(params) == [None, None]
    with weight_distribution(params[:1], full(1.0), full(2.0)):
        assert read_distributions(params) == [(1, 2), None]
        params[0].add_(5)  # its value does not matter
        assert read_distributions(params) == [(1, 2), None]
    assert read_distributions(params) == [None, None]


def test_an_inner_block_overrides_what_it_names():
    params = make_params()
    with weight_distribution(params, full(1.0, 2.0), full(3.0, 4.0)), vectorized(3), batch_fraction(0.5):
        with weight_distribution(params[1:], full(5.0), full(6.0)), vectorized(0), batch_fraction(1.0):
            assert read_context(params) == (1.0, [(1, 3), (5, 6)], 0)
        assert read_context(params) == (0.5, [(1, 3), (2, 4)], 3)


def test_an_exception_restores_the_outer_context():
    params = make_params()
    with (
        pytest.raises(KeyboardInterrupt),
        weight_distribution(params, full(1.0, 2.0), full(3.0, 4.0)),
        vectorized(3),
        batch_fraction(0.5),
    ):
        raise KeyboardInterrupt
    assert read_context(params) == (1.0, [None, None], 0)


def test_the_context_belongs_to_its_thread():
    params, contexts = make_params(), []
    with weight_distribution(params, full(1.0, 2.0), full(3.0, 4.0)), vectorized(3), batch_fraction(0.5):
        thread = threading.Thread(target=lambda: contexts.append(read_context(params)))
        thread.start()
        thread.join()
    assert contexts == [(1.0, [None, None], 0)]


def test_every_parameter_needs_a_distribution():
    with pytest.raises(ValueError), weight_distribution(make_params(), full(1.0, 2.0), full(3.0)):
        pass
