"""Selection of parameters by group and by pattern, and the errors of empty selections."""

import ast
import copy
import re

import pytest
import torch
from torch import nn

from flatbayes.core.parameter_selection import (
    check_selection,
    explain_unmatched,
    format_patterns,
    match_names,
    only_requires_grad,
    select_parameters,
)
from flatbayes.posteriors.sgvb import SGVB

NORMS = [nn.BatchNorm2d(4), nn.InstanceNorm2d(4, affine=True), nn.GroupNorm(2, 4), nn.LayerNorm((4, 3, 3))]


def network(norm=NORMS[0]):
    layers = {"conv": nn.Conv2d(1, 4, 3), "norm": norm, "head": nn.Linear(4, 3), "act": nn.ReLU()}
    return nn.ModuleDict(copy.deepcopy(layers))


@pytest.mark.parametrize(
    ("selection", "names"),
    [
        ("all", "conv.weight conv.bias norm.weight norm.bias head.weight head.bias"),
        ("weights", "conv.weight conv.bias head.weight head.bias"),
        ("no_biases", "conv.weight head.weight"),
        ("biases", "conv.bias head.bias"),
        ("norms", "norm.weight norm.bias"),
        ("last_layer", "head.weight head.bias"),
        (["head.*"], "head.weight head.bias"),
        (["head.*", "*.bias"], "conv.bias norm.bias head.weight head.bias"),
        (["[cn]*.b?as"], "conv.bias norm.bias"),
        (["*"], "conv.weight conv.bias norm.weight norm.bias head.weight head.bias"),
    ],
    ids=str,
)
@pytest.mark.parametrize("norm", NORMS, ids=lambda norm: type(norm).__name__)
def test_groups_and_patterns_select_the_named_parameters(selection, names, norm):
    model = network(norm)
    selected = select_parameters(model, selection, "params")
    assert " ".join(selected) == names
    assert all(param is model.get_parameter(name) for name, param in selected.items())
    state = SGVB(params=selection).init(model, None, 10)
    assert state.statistics["mean"].numel() == sum(p.numel() for p in selected.values())


def test_only_trainable_parameters_are_selected_and_tied_ones_once():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.RMSNorm(3), nn.Linear(3, 3), nn.Linear(3, 2))
    model[1].weight = model[0].weight
    model[4].requires_grad_(False)
    model[0].bias.requires_grad_(False)
    assert list(select_parameters(model, "weights", "params")) == ["0.weight", "1.bias", "3.weight", "3.bias"]
    assert list(select_parameters(model, "last_layer", "params")) == ["3.weight", "3.bias"]
    assert list(select_parameters(model, ["1.*"], "params")) == ["0.weight", "1.bias"]  # by any of its names
    with pytest.raises(ValueError, match=r"pattern '4\.\*' .* matches none"):
        select_parameters(model, ["4.*"], "params")


def test_biases_are_recognised_in_longer_names():
    attention = nn.MultiheadAttention(4, 2)
    assert list(select_parameters(attention, "no_biases", "params")) == ["in_proj_weight", "out_proj.weight"]
    assert list(select_parameters(attention, "biases", "params")) == ["in_proj_bias", "out_proj.bias"]


def test_parametrised_tensors_belong_to_their_layer():
    model = nn.Sequential(nn.Linear(3, 3), nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)))
    nn.utils.parametrize.register_parametrization(model[0], "bias", nn.Identity())
    names = ["1.bias", "1.parametrizations.weight.original0", "1.parametrizations.weight.original1"]
    assert list(select_parameters(model, "last_layer", "params")) == names
    assert list(select_parameters(model, "biases", "params")) == ["0.parametrizations.bias.original", "1.bias"]
    assert list(select_parameters(model, "no_biases", "params")) == ["0.weight", *names[1:]]


@pytest.mark.parametrize("selection", ["weights", "no_biases", "biases"])
def test_an_empty_group_is_refused(selection):
    model = nn.Sequential(nn.Linear(3, 3).requires_grad_(False), nn.BatchNorm1d(3))
    message = f"params='{selection}' selects none of the 2 trainable parameters of Sequential: ['1.weight', '1.bias']"
    with pytest.raises(ValueError, match=re.escape(message)):
        SGVB(params=selection).init(model, None, 10)


def test_a_pattern_without_match_is_refused_beside_others():
    message = (
        r"The pattern 'Head\.\*' of params matches none .* ModuleDict. Did you mean 'head\.\*'\? Trainable: \['conv"
    )
    with pytest.raises(ValueError, match=message):
        SGVB(params=["*.bias", "Head.*"]).init(network(), None, 10)


def test_long_lists_of_names_are_cut():
    model = nn.ParameterList(torch.zeros(1) for _ in range(40))
    with pytest.raises(ValueError, match=r"'29'\] and 10 more"):
        select_parameters(model, ["x"], "params")


@pytest.mark.parametrize("selection", ["head.*", "Weights", []])
def test_other_values_are_refused(selection):
    with pytest.raises(ValueError, match=r"params must be weights or .*, or a list of name patterns such as \['head"):
        check_selection(selection, "params")


def test_only_requires_grad_is_undone_after_an_exception():
    model = network()
    model["conv"].bias.requires_grad_(False)
    norms = select_parameters(model, "norms", "params")
    with pytest.raises(ArithmeticError), only_requires_grad(model, norms):
        assert [name for name, p in model.named_parameters() if p.requires_grad] == ["norm.weight", "norm.bias"]
        raise ArithmeticError
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["conv.bias"]


NAMES = [f"bert.encoder.layer.{k}.{name}" for k in range(20) for name in ("dense.weight", "norm.weight")]
NAMES += ["bert.embeddings.words.weight", "classifier.weight", "classifier.bias"]


@pytest.mark.parametrize(
    ("pattern", "suggestion"),
    [
        ("bert.encoder", "'bert.encoder.*'"),
        ("encoder.*", "'*.encoder.*'"),
        ("layer.3.*", "'*.layer.3.*'"),
        ("classifer.*", "'classifier.*'"),
        ("bert.embedding.*", "'bert.embeddings.*'"),
        ("Bert.*", "'bert.*'"),
    ],
)
def test_a_pattern_that_matches_nothing_gets_a_suggestion_and_the_modules(pattern, suggestion):
    text = explain_unmatched(pattern, NAMES)
    assert text.startswith(f"Did you mean {suggestion}? Trainable: [")
    assert text.endswith(
        "Trainable: ['bert.encoder.layer.*', 'bert.embeddings.words.*', 'classifier.weight', 'classifier.bias']."
    )
    assert match_names(NAMES, suggestion.strip("'"))


def test_patterns_of_modules_name_all_parameters_or_single_modules():
    assert explain_unmatched("xyz", NAMES[:4]).startswith("Trainable: ['bert.encoder.layer.0.dense.weight', ")
    assert format_patterns([f"layer{k}.weight" for k in range(40)]).endswith("'layer29.*'] and 10 more")
    assert format_patterns([]) == "[]"
    for names in (NAMES, NAMES[:9]):
        patterns = ast.literal_eval(format_patterns(names))
        assert {name for pattern in patterns for name in match_names(names, pattern)} == set(names)


def test_the_option_params_explains_its_pattern():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(
        ValueError, match=r"'2' of params matches none .* Sequential\. Trainable: \['0.weight', '0.bias'"
    ):
        select_parameters(network, ["2"], "params")
