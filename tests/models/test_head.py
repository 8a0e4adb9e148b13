import pytest
import torch
from torch import nn

from flatbayes.models import replace_head


class Backbone(nn.Module):
    def __init__(self, bias=True):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), nn.ReLU())
        self.head = nn.ModuleDict({"last": nn.Linear(6, 1000, bias, dtype=torch.float64)})

    def forward(self, x):
        return self.head["last"](self.body(x).double())


@pytest.mark.parametrize("bias", [True, False])
def test_the_last_linear_layer_is_replaced_and_nothing_else(bias):
    model = Backbone(bias)
    body = {name: tensor.clone() for name, tensor in model.body.state_dict().items()}
    changed = replace_head(model, 3)
    assert changed is model
    assert model(torch.ones(2, 4)).shape == (2, 3)
    assert (model.head["last"].bias is not None) == bias
    assert all(torch.equal(model.body.state_dict()[name], tensor) for name, tensor in body.items())


def test_a_head_of_the_right_size_is_kept():
    model = Backbone()
    head = model.head["last"]
    assert replace_head(model, 1000).head["last"] is head


def test_a_single_layer_is_its_own_head():
    assert replace_head(nn.Linear(4, 6), 2).out_features == 2


def test_a_network_without_a_linear_layer_is_refused():
    with pytest.raises(ValueError, match=r"Sequential has no torch.nn.Linear to replace"):
        replace_head(nn.Sequential(nn.Conv2d(1, 2, 3)), 3)
