"""Norms over all tensors, of one network and of each vectorized network."""

import pytest
import torch

from flatbayes.core.context import vectorized
from flatbayes.core.norms import broadcast_per_network, global_norm
from flatbayes.core.weights import axpy

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])


@DTYPES
def test_the_norm_is_joint_over_tensors(dtype):
    tensors = [torch.randn(4, 2).to(dtype), torch.randn(()).to(dtype)]
    norm = global_norm(tensors)
    assert norm.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = torch.cat([t.flatten() for t in tensors]).double().norm()
    torch.testing.assert_close(norm.double(), expected, rtol=1e-6, atol=0)


@DTYPES
def test_vectorized_norms_are_those_of_each_network(dtype):
    tensors = [torch.randn(3, 4, 2).to(dtype), torch.randn(3).to(dtype), torch.randn(3, 2, 2, 2).to(dtype).mT]
    expected = [torch.cat([t[k].flatten() for t in tensors]).double().norm() for k in range(3)]
    with vectorized(3):
        norms = global_norm(tensors)
    assert norms.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(norms.double(), torch.stack(expected), rtol=1e-6, atol=0)


def test_each_network_has_its_own_factor():
    params = [torch.ones(2, 2), torch.ones(2)]
    params = axpy(params, [torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.ones(2)], torch.tensor([3.0, 0.0]))
    assert [p.tolist() for p in params] == [[[4.0, 7.0], [1.0, 1.0]], [4.0, 1.0]]
    assert broadcast_per_network(torch.tensor(2.0), torch.ones(2, 3)).ndim == 0
    assert broadcast_per_network(torch.ones(2), torch.ones(2, 3, 4)).shape == (2, 1, 1)
