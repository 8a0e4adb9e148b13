"""Defaults that follow from the network: AdamW for transformers and large trained networks, `FINE_TUNING`."""

from copy import deepcopy
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from flatbayes import (
    MAP,
    MLP,
    SGLD,
    SGVB,
    SWAG,
    ConvNet,
    Digits,
    Ensemble,
    Laplace,
    Plain,
    PreResNet,
    TrainingConfig,
    ViT,
    evaluate,
    fit,
)
from flatbayes.flatness import SAM
from flatbayes.posteriors import BSAM, IVON
from flatbayes.training import FINE_TUNING, fit_together, network_defaults
from flatbayes.training.arguments import resolve_config
from flatbayes.training.network_defaults import choose_optimizer, has_layer_norm, has_trained_weights
from flatbayes.training.preparation import prepare_runs
from flatbayes.training.setup import TrainingSetup

TINY = partial(ViT, patch=2, dim=24, depth=1)
SHORT = TrainingConfig(epochs=2)


@pytest.fixture(scope="module")
def digits():
    return Digits(train_size=200).load(seed=0)


class T5LayerNorm(nn.Module):
    """A layer of another library."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return x * self.weight


def build_normalized(*layers, is_trained=False):
    network = nn.Sequential(nn.Linear(4, 4), *layers, nn.Linear(4, 3))
    if is_trained:
        with torch.no_grad():
            network[1].weight[0] = 1.3
    return network


def describe(posterior, network, *, is_trained=False):
    optimizer = choose_optimizer(posterior.default_optimizer, network, is_trained=is_trained)
    return None if optimizer is None else (optimizer.func.__name__, *optimizer.keywords.values())


@pytest.mark.parametrize(
    "norm", [nn.LayerNorm(4), nn.RMSNorm(4), T5LayerNorm()], ids=lambda norm: type(norm).__name__
)
def test_layer_normalization_makes_adamw_the_default(norm):
    network = build_normalized(norm)
    for posterior in (MAP(), SWAG(), Ensemble(SWAG(), size=2)):
        assert describe(posterior, network) == ("AdamW", 3e-4, 0.01)
    assert describe(MAP(prior_precision=2.0), network) == ("AdamW", 3e-4, 0.0)  # the posterior has the prior


def test_other_networks_and_methods_keep_their_optimizer():
    transformer = build_normalized(nn.LayerNorm(4))
    assert [describe(posterior, transformer) for posterior in (SGLD(), SGVB())] == [None, None]
    for network in (build_normalized(), build_normalized(nn.BatchNorm1d(4)), build_normalized(nn.GroupNorm(1, 4))):
        assert describe(MAP(), network) is None
    assert not has_layer_norm(build_normalized(nn.LayerNorm(4), nn.BatchNorm1d(4)))


def test_adapters_have_a_larger_learning_rate():
    network = nn.Sequential(nn.Linear(4, 40), nn.LayerNorm(40), nn.Linear(40, 40), nn.Linear(40, 3)).requires_grad_(
        False
    )
    network[3].requires_grad_(True)
    assert describe(MAP(), network) == ("AdamW", 3e-3, 0.01)
    network[2].requires_grad_(True)
    assert describe(MAP(), network) == ("AdamW", 3e-4, 0.01)


def test_large_trained_networks_have_adamw():
    network = nn.Sequential(nn.Linear(999, 999), nn.BatchNorm1d(999), nn.Linear(999, 3))
    assert describe(MAP(), network) is None
    assert describe(MAP(), network, is_trained=True) == ("AdamW", 1e-3, 0.01)
    assert describe(SWAG(prior_precision=2.0), network, is_trained=True) == ("AdamW", 1e-3, 0.0)
    assert describe(SGLD(), network, is_trained=True) is None
    assert describe(MAP(), nn.Sequential(network, nn.LayerNorm(3)), is_trained=True) == ("AdamW", 1e-3, 0.01)
    assert describe(MAP(), nn.Sequential(nn.Linear(999, 999), nn.LayerNorm(999)), is_trained=True)[1] == 3e-4
    network[0].requires_grad_(False)
    assert describe(MAP(), network, is_trained=True) == ("AdamW", 3e-3, 0.01)
    for count, optimizer in ((998, None), (999, ("AdamW", 1e-3, 0.01))):  # 999,998 and 1,000,998 parameters
        assert describe(MAP(), nn.Linear(1001, count), is_trained=True) == optimizer


def test_trained_weights_of_either_kind_are_fine_tuned_with_adamw(digits, monkeypatch):
    monkeypatch.setattr(network_defaults, "LARGE_NETWORK", 1000)
    config = FINE_TUNING.with_options(epochs=1, early_stopping=False)
    trained = fit(partial(PreResNet, depth=8), digits, MAP(), Plain(), SHORT)
    assert "optimizer" not in trained.info
    for model, init in ((trained.states[0].model, None), (partial(PreResNet, depth=8), trained)):
        again = fit(model, digits, SWAG(rank=2), Plain(), config, init=init)
        assert "AdamW with a constant learning rate of 0.0003" in again.summary()


def test_the_artefact_says_which_optimizer_the_network_got(digits):
    fitted = fit(TINY, digits, MAP(), Plain(), SHORT)
    assert fitted.info["optimizer"]["class_path"] == "torch.optim.AdamW"
    assert "optimizer   AdamW with a learning rate of 0.0003, the default for this network" in fitted.summary()
    tuned = fit(TINY, digits, MAP(), Plain(), FINE_TUNING.with_options(epochs=1, early_stopping=False))
    used = "AdamW with a constant learning rate of 9e-05, the default for this network"
    assert used in " ".join(tuned.summary().split())
    given = fit(TINY, digits, MAP(), Plain(), TrainingConfig(epochs=2, optimizer=torch.optim.AdamW))
    for other in (given, fit(MLP, digits, MAP(), Plain(), SHORT)):
        assert "optimizer" not in other.info
        assert "optimizer" not in other.summary()
    together = fit_together(TINY, digits, [MAP(), SWAG(rank=2)], Plain(), SHORT)
    assert together[1].info["cost"]["num_posteriors"] == 2
    for name, weight in fitted.states[0].model.state_dict().items():
        assert torch.equal(weight, together[0].states[0].model.state_dict()[name])


def test_laplace_has_a_prior_beside_adamw(digits):
    for posterior in (Laplace(), Ensemble(Laplace(), size=2)):
        fitted = fit(TINY, digits, posterior, Plain(), SHORT)
        member = fitted.posterior.member if isinstance(fitted.posterior, Ensemble) else fitted.posterior
        assert member.tune == "evidence"
        assert fitted.predict(digits.test.inputs[:4]).mean.isfinite().all()
    assert fit(TINY, digits, Laplace(prior_precision=3.0), Plain(), SHORT).posterior.tune == "none"
    assert fit(MLP, digits, Laplace(), Plain(), SHORT).posterior.tune == "none"


def test_checkpoints_of_another_default_optimizer_are_those_of_another_training(digits):
    optimizers = []
    for model in (TINY, MLP):
        factory, spec = prepare_runs(model, digits, MAP(), Plain(), SHORT)
        optimizers.append(TrainingSetup.create(factory, spec, None).identity["optimizer"])
    assert optimizers[0]["class_path"] == "torch.optim.AdamW"
    assert optimizers[1] is None  # that of the posterior


def test_a_transformer_learns_with_the_defaults(digits):
    model, nlls = partial(ViT, patch=4, dim=192, depth=1), {}
    for name, optimizer in (("default", None), ("SGD", MAP().default_optimizer)):
        config = TrainingConfig(epochs=8, batch_size=10, optimizer=optimizer, num_validations=0)
        nlls[name] = evaluate(fit(model, digits, MAP(), Plain(), config), digits.test).metrics["nll"]
    assert nlls["default"] < 0.5 * nlls["SGD"]


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm1d(4), nn.LayerNorm(4), nn.GroupNorm(2, 4), T5LayerNorm()], ids=lambda n: type(n).__name__
)
def test_scales_that_differ_are_trained_weights(norm):
    assert not has_trained_weights(build_normalized(norm))
    assert has_trained_weights(build_normalized(norm, is_trained=True))


class NormalizedLinear(nn.Linear):
    """No normalization layer, although its name begins like one."""


class LayerNorm2d(nn.LayerNorm):
    """A layer of another library, for images."""


class FrozenBatchNorm2d(nn.Module):
    """A layer of another library whose scales are a buffer."""

    def __init__(self, scales):
        super().__init__()
        self.register_buffer("weight", torch.tensor(scales))


def test_layers_of_other_libraries_are_recognised():
    assert has_layer_norm(nn.Sequential(LayerNorm2d(4)))
    assert not has_trained_weights(nn.Sequential(NormalizedLinear(4, 4), FrozenBatchNorm2d([1.0, 1.0])))
    assert has_trained_weights(FrozenBatchNorm2d([1.0, 1.1]))


def test_networks_without_scales_count_as_fresh():
    assert not has_trained_weights(build_normalized(nn.LayerNorm(4, elementwise_affine=False)))
    assert not has_trained_weights(PreResNet((3, 8, 8), 4, depth=8))
    with torch.device("meta"):
        assert not has_trained_weights(build_normalized(nn.LayerNorm(4)))


def test_trained_networks_have_the_configuration_of_fine_tuning():
    trained = build_normalized(nn.LayerNorm(4), is_trained=True)
    build_trained = partial(build_normalized, nn.LayerNorm(4), is_trained=True)
    for model in (trained, lambda: trained, build_trained):
        assert resolve_config(None, model) == FINE_TUNING
        assert resolve_config({"batch_size": 8}, model) == FINE_TUNING.with_options(batch_size=8)
        assert resolve_config(SHORT, model) is SHORT
    fresh = build_normalized(nn.LayerNorm(4))
    for model in (None, fresh, lambda: fresh, lambda num_classes: trained, MLP, "MLP", partial(ConvNet, width=4)):
        assert resolve_config(None, model) == TrainingConfig()
    assert resolve_config(None, fresh, init={}) == FINE_TUNING


def test_looking_at_a_function_leaves_the_random_state_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    resolve_config(None, lambda: build_normalized(nn.LayerNorm(4)))
    assert torch.equal(torch.rand(2), expected)


def test_options_of_trained_weights_are_not_those_of_a_fresh_table():
    x = torch.randn(120, 4)
    data, val = (x[:90], x[:90, 0]), (x[90:], x[90:, 0])
    for is_trained in (False, True):
        network = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        if is_trained:
            nn.init.normal_(network[1].weight)
        config = resolve_config(None, network)
        factory, _ = prepare_runs(network, data, MAP(), SAM(), config, val=val)
        assert factory.is_trained == is_trained
        assert factory.has_default_training == (not is_trained)
        assert factory.config.schedule == (FINE_TUNING if is_trained else TrainingConfig()).schedule


def test_the_learning_rate_of_trained_networks_rises_over_the_first_tenth():
    factors = [FINE_TUNING.schedule.factor(step, 300) for step in (0, 14, 29, 30, 299)]
    assert factors == pytest.approx([0.01, 0.15, 0.3, 0.3, 0.3])


@pytest.mark.parametrize("posterior", [IVON(), BSAM(), Ensemble(IVON(), size=2)], ids=["IVON", "BSAM", "Ensemble"])
def test_the_noise_of_variational_steps_is_small_for_trained_networks(posterior, digits):
    trained = fit(partial(PreResNet, depth=8), digits, MAP(), Plain(), SHORT).states[0].model
    config = FINE_TUNING.with_options(min_epochs=1, min_steps=1)

    def fit_temperature(model, config):
        builder = partial(deepcopy, model) if isinstance(posterior, Ensemble) else model
        found = fit(builder, digits, posterior, Plain(), config).posterior
        return (found.member if isinstance(found, Ensemble) else found).temperature

    assert fit_temperature(trained, config) == 0.1
    assert fit_temperature(trained, SHORT) is None  # a number of epochs is given: the Bayesian posterior
    assert fit_temperature(PreResNet((1, 8, 8), 10, depth=8), config) is None
    assert replace(IVON(), temperature=0.5).with_automatic_options(is_trained=True).temperature == 0.5


@pytest.mark.parametrize("posterior", [IVON, BSAM])
def test_no_temperature_is_one(posterior, digits):
    networks = [
        fit(partial(ConvNet, width=4), digits, posterior(temperature=t), Plain(), SHORT).states[0].model
        for t in (None, 1.0)
    ]
    for one, other in zip(*(network.parameters() for network in networks), strict=True):
        assert torch.equal(one, other)
