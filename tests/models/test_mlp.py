import pytest
import torch

from flatbayes.core.constant_scale import ConstantScale
from flatbayes.models import MLP


def test_constant_scales_are_equal_for_all_inputs_and_means_are_not():
    outputs = MLP((3,), 4, hidden=(5,), constant_scale=True)(torch.randn(6, 3))
    assert outputs.shape == (6, 4)
    assert (outputs[:, 2:] == outputs[0, 2:]).all()
    assert (outputs[1:, :2] != outputs[0, :2]).all()


def test_constant_scales_are_learnt():
    layer = ConstantScale(torch.nn.Linear(3, 1))
    layer(torch.randn(5, 3)).sum().backward()
    assert layer.raw_scale.grad.tolist() == [5.0]


def test_parameter_count_with_a_constant_scale():
    """One hidden layer of 50 units, one output, one noise level."""
    model = MLP((8,), 2, hidden=(50,), constant_scale=True)
    assert sum(p.numel() for p in model.parameters()) == 8 * 50 + 50 + 50 + 1 + 1


def test_constant_scale_is_for_regression_only():
    with pytest.raises(ValueError, match="an even number of outputs, got 3. It is for regression only"):
        MLP((8,), 3, constant_scale=True)
