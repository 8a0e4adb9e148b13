"""Stacked networks: what takes all weights together answers for each of them."""

import pytest
import torch

from flatbayes.core.stacked import broadcast_per_network, num_vectorized, vectorized, vectorized_norms
from flatbayes.core.weights import axpy


def test_it_is_said_inside_alone_also_after_an_exception():
    assert num_vectorized() == 0
    with pytest.raises(KeyError), vectorized(3):
        assert num_vectorized() == 3
        with vectorized(0):
            assert num_vectorized() == 0
        raise KeyError
    assert num_vectorized() == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_norms_are_those_of_each_network(dtype):
    tensors = [torch.randn(3, 4, 2).to(dtype), torch.randn(3).to(dtype), torch.randn(3, 2, 2, 2).to(dtype).mT]
    expected = [torch.cat([t[k].flatten() for t in tensors]).double().norm() for k in range(3)]
    norms = vectorized_norms(tensors)
    assert norms.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(norms.double(), torch.stack(expected), rtol=1e-6, atol=0)


def test_each_network_has_its_own_factor():
    params = [torch.ones(2, 2), torch.ones(2)]
    params = axpy(params, [torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.ones(2)], torch.tensor([3.0, 0.0]))
    assert [p.tolist() for p in params] == [[[4.0, 7.0], [1.0, 1.0]], [4.0, 1.0]]
    assert broadcast_per_network(torch.tensor(2.0), torch.ones(2, 3)).ndim == 0
    assert broadcast_per_network(torch.ones(2), torch.ones(2, 3, 4)).shape == (2, 1, 1)
