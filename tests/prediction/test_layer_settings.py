"""Artefacts record the settings of layers that predictions depend on and weights do not show."""

import json

import pytest
import torch
from torch import nn

from flatbayes import MAP, Categorical, Ensemble, FittedPosterior, MCDropout
from flatbayes.core.adapters import describe_scaling
from flatbayes.posteriors.mc_dropout import describe_dropout
from flatbayes.prediction.metadata import METADATA_FILE, read_metadata, write_metadata

INPUTS = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


def make_network(first=0.1, second=None, eps=1e-5, kind=nn.Dropout, activation=None):
    return nn.Sequential(
        nn.Linear(4, 8),
        nn.LayerNorm(8, eps=eps),
        nn.ReLU() if activation is None else activation,
        nn.Identity() if first is None else kind(first),
        nn.Linear(8, 8),
        nn.Identity() if second is None else kind(second),
        nn.Linear(8, 3),
    )


def make_fitted(posterior, *networks):
    states = [posterior.init(network, None, 10) for network in networks]
    return FittedPosterior(posterior, states, Categorical(3))


@pytest.mark.parametrize("posterior", [MCDropout(), MCDropout(rate=0.2), Ensemble(MCDropout(), size=1)])
@pytest.mark.parametrize("change", [{"first": None}, {"second": 0.1}, {"first": None, "second": 0.1}])
def test_dropout_at_other_places_is_refused(posterior, change, tmp_path):
    folder = make_fitted(posterior, make_network()).save(tmp_path)
    with pytest.raises(ValueError, match="random layers of the draws.* [35]: .* in the fit and .* here"):
        FittedPosterior.load(folder, make_network(**change))


def test_other_rates_are_refused_where_the_posterior_has_none(tmp_path):
    fitted = make_fitted(MCDropout(), make_network())
    folder = fitted.save(tmp_path)
    with pytest.raises(ValueError, match=r"3: class Dropout, p 0.1 in the fit and class Dropout, p 0.5 here"):
        FittedPosterior.load(folder, make_network(0.5))
    with pytest.raises(ValueError, match="class AlphaDropout, p 0.1 here"):
        FittedPosterior.load(folder, make_network(kind=nn.AlphaDropout))
    again = FittedPosterior.load(folder, make_network())
    assert torch.equal(again.predict(INPUTS, 4).mean, fitted.predict(INPUTS, 4).mean)


@pytest.mark.parametrize("posterior", [MCDropout(rate=0.2), MCDropout(draw_rate=0.2)])
def test_rates_that_the_posterior_sets_may_differ(posterior, tmp_path):
    fitted = make_fitted(posterior, make_network())
    again = FittedPosterior.load(fitted.save(tmp_path), make_network(0.5))
    assert torch.equal(again.predict(INPUTS, 4).mean, fitted.predict(INPUTS, 4).mean)


def test_dropout_may_differ_where_draws_do_not_use_it(tmp_path):
    fitted = make_fitted(MAP(), make_network())
    again = FittedPosterior.load(fitted.save(tmp_path), make_network(None, 0.3))
    assert torch.equal(again.predict(INPUTS).mean, fitted.predict(INPUTS).mean)


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        (make_network(), make_network(eps=0.1), "1: eps 1e-05 in the fit and eps 0.1 here"),
        (
            make_network(activation=nn.GELU()),
            make_network(activation=nn.GELU("tanh")),
            "2: approximate none in the fit and approximate tanh here",
        ),
        (
            make_network(activation=nn.ReLU(inplace=True)),
            make_network(activation=nn.Tanh()),
            "2: activation ReLU in the fit and activation Tanh here",
        ),
        (
            nn.Sequential(nn.RNN(4, 3)),
            nn.Sequential(nn.RNN(4, 3, nonlinearity="relu")),
            "0: mode RNN_TANH, nonlinearity tanh in the fit and mode RNN_RELU, nonlinearity relu here",
        ),
        (
            nn.TransformerEncoderLayer(4, 2, 8),
            nn.TransformerEncoderLayer(4, 2, 8, activation="gelu", norm_first=True),
            "the model: norm_first False, activation relu in the fit and norm_first True, activation gelu here",
        ),
        (
            nn.Sequential(nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 3, 2, padding=1), nn.AvgPool2d(2), nn.Flatten()),
            nn.Sequential(nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 3, 2, padding=0), nn.Flatten()),
            r"1: padding \[1, 1\] in the fit and padding \[0, 0\] here",
        ),
    ],
)
def test_other_options_of_layers_are_refused(before, after, text, tmp_path):
    folder = make_fitted(MAP(), before).save(tmp_path)
    with pytest.raises(ValueError, match=f"settings that its weights do not show.* {text}. Build the network with"):
        FittedPosterior.load(folder, after)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"hidden_act": "relu"}, "the model: hidden_act gelu in the fit and hidden_act relu here"),
        ({"num_attention_heads": 4}, "num_attention_heads 2 in the fit and num_attention_heads 4 here"),
    ],
)
def test_another_configuration_of_transformers_is_refused(change, text, tmp_path):
    transformers = pytest.importorskip("transformers")

    def make_bert(**options):
        sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
        config = transformers.BertConfig(**{"vocab_size": 20, "num_labels": 3} | sizes | options)
        return transformers.BertForSequenceClassification(config)

    folder = make_fitted(MAP(), make_bert()).save(tmp_path)
    FittedPosterior.load(folder, make_bert(hidden_dropout_prob=0.3))
    with pytest.raises(ValueError, match=text):
        FittedPosterior.load(folder, make_bert(**change))


@pytest.mark.parametrize("change", [{"lora_alpha": 64}, {"is_disabled": True}])
def test_another_scaling_of_adapters_is_refused(change, tmp_path):
    peft = pytest.importorskip("peft")

    def make_adapted(is_disabled=False, **options):
        network = peft.get_peft_model(make_network(), peft.LoraConfig(**{"r": 2, "target_modules": ["4"]} | options))
        if is_disabled:
            network.base_model.disable_adapter_layers()
        return network

    folder = make_fitted(MAP(), make_adapted()).save(tmp_path)
    FittedPosterior.load(folder, make_adapted())
    with pytest.raises(ValueError, match=r"model.4: scaling of adapters {'default': 4.0} in the fit and"):
        FittedPosterior.load(folder, make_adapted(**change))


def test_artefacts_without_the_record_load(tmp_path):
    folder = make_fitted(MCDropout(), make_network()).save(tmp_path)
    metadata = read_metadata(folder)
    del metadata["layers"], metadata["checksum"]
    write_metadata(folder, metadata)
    FittedPosterior.load(folder, make_network(0.5, eps=0.1))


def test_a_damaged_record_is_an_error(tmp_path):
    folder = make_fitted(MCDropout(), make_network()).save(tmp_path)
    metadata = read_metadata(folder) | {"layers": {"random": {"3": 0.1}}}
    del metadata["checksum"]
    write_metadata(folder, metadata)
    with pytest.raises(ValueError, match="'layers' must be an object of objects by name of the layer"):
        FittedPosterior.load(folder, make_network())


def test_members_with_other_settings_are_not_saved(tmp_path):
    fitted = make_fitted(Ensemble(MCDropout(), size=2), make_network(), make_network(0.5))
    with pytest.raises(ValueError, match="cannot be saved, since its first member was fitted to another network"):
        fitted.save(tmp_path)
    assert not (tmp_path / METADATA_FILE).exists()


def test_rates_of_modules_that_are_no_dropout_layers():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention_dropout, self.num_dropped = 0.25, 3

    network = nn.ModuleDict(
        {"a": Attention(), "b": nn.GRU(2, 2, num_layers=2, dropout=0.5), "c": nn.Dropout(0.0), "d": nn.Linear(2, 2)}
    )
    assert describe_dropout(network) == {"a": {"attention_dropout": 0.25}, "b": {"dropout": 0.5}}


def test_scaling_of_adapters_of_other_libraries():
    layer = nn.Linear(2, 2)
    assert describe_scaling(layer) is None
    layer.lora_A, layer.scaling = nn.Parameter(torch.ones(1, 2)), 0.5
    assert describe_scaling(layer) == {"scaling": 0.5}
    layer.alpha = 4
    assert json.dumps(describe_scaling(layer)) == '{"scaling": 0.5, "alpha": 4.0}'
