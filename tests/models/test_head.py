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


@pytest.mark.parametrize("bias", [True, False])
def test_the_last_convolution_is_replaced_with_its_geometry(bias):
    last = nn.Conv2d(4, 9, 3, stride=2, padding=2, dilation=2, bias=bias, padding_mode="reflect", dtype=torch.float64)
    network = nn.ModuleDict(
        {"first": nn.Conv2d(1, 4, 3), "gate": nn.Linear(4, 4), "head": nn.Sequential(nn.ReLU(), last)}
    )
    network["aux_classifier"] = nn.Conv2d(4, 9, 1)
    shape = last(torch.ones(2, 4, 9, 9).double()).shape
    changed = replace_head(network, 3, has_positions=True)["head"][1]
    assert changed(torch.ones(2, 4, 9, 9).double()).shape == (2, 3, *shape[2:])
    assert (changed.bias is not None, changed.padding_mode) == (bias, "reflect")
    assert network["aux_classifier"].out_channels == 9
    assert replace_head(network, 3, has_positions=True)["head"][1] is changed


def test_a_convolution_named_classifier_is_the_head():
    """As in `transformers.UperNetForSemanticSegmentation`, where other convolutions are registered later."""
    head = nn.ModuleDict({"classifier": nn.Conv2d(4, 9, 1), "bottleneck": nn.Conv2d(4, 4, 3)})
    changed = replace_head(nn.ModuleDict({"backbone": nn.Conv2d(3, 4, 3), "head": head}), 2, has_positions=True)
    assert changed["head"]["classifier"].out_channels == 2
    assert changed["head"]["bottleneck"].out_channels == 4


@pytest.mark.parametrize("last", [nn.ConvTranspose2d(4, 5, 2), nn.Conv2d(4, 8, 1, groups=2)])
def test_other_convolutions_are_refused(last):
    with pytest.raises(ValueError, match=r"its last layer is 1, a Conv.*network.classifier = nn.Conv2d"):
        replace_head(nn.Sequential(nn.Conv2d(1, 4, 3), last), 3, has_positions=True)
