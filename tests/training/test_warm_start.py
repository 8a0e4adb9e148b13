"""From a network that is trained already."""

import math
import warnings
from copy import deepcopy
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from flatbayes.core.buffers import set_training_mode
from flatbayes.core.spec import short_name
from flatbayes.data import Arrays, DataSplits, DataWarning, Digits, Split, Standardize
from flatbayes.flatness import SAM, Plain
from flatbayes.likelihoods import Bernoulli, Categorical
from flatbayes.models import MLP
from flatbayes.posteriors import IVON, LRT, MAP, SGVB, SVGD, SWAG, Ensemble, Laplace, MCDropout
from flatbayes.posteriors.presets import LAPLACE_LAST_LAYER
from flatbayes.prediction import FittedPosterior, evaluate
from flatbayes.training import FINE_TUNING, Checkpoints, CollectionConfig, TrainingConfig, fit, fit_together
from flatbayes.training.warm_start import extract_mean_weights, match_weights
from support import batch, train
from support import network as with_norms

AS_IT_IS = TrainingConfig(epochs=0)
ONE_EPOCH = TrainingConfig(epochs=1, batch_size=20)
SHORT = replace(FINE_TUNING, epochs=2, batch_size=20)
build = partial(MLP, hidden=(16,))


@pytest.fixture(scope="module")
def data():
    return Digits(train_size=200).load(0)


@pytest.fixture(scope="module")
def trained(data):
    return fit(build, data, MAP(), Plain(), TrainingConfig(epochs=25, batch_size=20))


def weights(fitted, run=0):
    return fitted.states[run].model.state_dict()


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "_orig_mod.", "module._orig_mod."])
def test_wrappers_leave_their_names_behind(trained, data, prefix):
    state = {prefix + name: tensor for name, tensor in weights(trained).items()}
    found = fit(build, data, MAP(), Plain(), AS_IT_IS, init=state)
    assert same(weights(found), weights(trained))


def test_what_stands_beside_the_network_of_a_lightning_module_is_left(trained, data, tmp_path):
    state = {f"model.{name}": tensor for name, tensor in weights(trained).items()}
    torch.save({"state_dict": {**state, "criterion.weight": torch.ones(10)}, "epoch": 1}, tmp_path / "last.ckpt")
    found = fit(build, data, MAP(), Plain(), AS_IT_IS, init=tmp_path / "last.ckpt")
    assert same(weights(found), weights(trained))


def test_no_epochs_are_the_network_as_it_was(trained, data):
    found = fit(build, data, MAP(), Plain(), AS_IT_IS, init=weights(trained))
    x = data.test.inputs
    assert torch.equal(found.predict(x).log_probs, trained.predict(x).log_probs)
    laplace = fit(trained.states[0].model, data, Laplace(), Plain(), AS_IT_IS)
    assert same(weights(laplace), weights(trained))
    with pytest.raises(ValueError, match="epochs must be at least 1"):
        fit(build, data, MAP(), Plain(), AS_IT_IS)


def test_flat_swag_and_laplace_improve_the_likelihood():
    data = Digits().load(0)
    model = partial(MLP, hidden=(64, 64))
    optimizer = partial(torch.optim.Adam, lr=0.01)
    overfitted = fit(model, data, MAP(), Plain(), TrainingConfig(epochs=40, optimizer=optimizer))
    before = evaluate(overfitted, data.test.inputs, data.test.targets).metrics["nll"]
    for posterior, config in ((SWAG(), FINE_TUNING), (LAPLACE_LAST_LAYER, AS_IT_IS)):
        found = fit(model, data, posterior, SAM(rho=0.3), config, init=weights(overfitted))
        assert evaluate(found, data.test.inputs, data.test.targets).metrics["nll"] < 0.95 * before


def test_the_default_recipe_is_that_of_fine_tuning(trained, data):
    found = fit(build, data, SWAG(rank=2), Plain(), init=weights(trained))
    steps = len(data.train) // FINE_TUNING.batch_size  # fewer in an epoch than it would collect
    assert int(found.states[0].statistics["count"]) == steps * math.ceil(FINE_TUNING.min_steps / steps)


def test_our_own_folders_bring_their_standardisation(trained, data, tmp_path):
    trained.save(tmp_path)
    shifted = Split(inputs=data.train.inputs + 3.0, targets=data.train.targets)
    other = replace(data, train=shifted)
    found = fit(build, other, MAP(), Plain(), AS_IT_IS, init=tmp_path)
    assert same(weights(found), weights(trained))
    assert torch.equal(found.transform.mean, trained.transform.mean)
    given = Standardize(mean=torch.full((1, 1, 1), 2.0), std=torch.ones(1, 1, 1))
    assert fit(build, other, MAP(), Plain(), AS_IT_IS, init=tmp_path, transform=given).transform is given


def test_networks_and_fitted_posteriors_are_starts_as_their_weights_and_folders_are(trained, data, tmp_path):
    trained.save(tmp_path)
    network = trained.states[0].model
    for one, other in ((trained, tmp_path), (network, network.state_dict())):
        found = [fit(build, data, SWAG(rank=2), Plain(), SHORT, init=init) for init in (one, other)]
        assert same(weights(found[0]), weights(found[1]))
        assert torch.equal(found[0].transform.mean, found[1].transform.mean)
    ensemble = fit(build, data, Ensemble(size=2), Plain(), AS_IT_IS, init=[trained, network])
    assert same(weights(ensemble, 0), weights(ensemble, 1))


def test_the_centre_of_swag_is_its_mean():
    state, _ = train(SWAG(rank=3, params=["9.*"]), Plain())
    found, mean = extract_mean_weights(SWAG(rank=3, params=["9.*"]), state), state.statistics["mean"]
    assert torch.equal(torch.cat([found["9.weight"].flatten(), found["9.bias"]]), mean)
    assert not torch.equal(found["0.weight"], state.model[0].weight)


@pytest.mark.parametrize("posterior", [SGVB(), IVON(), LRT(), Laplace(tune="evidence"), SWAG(rank=2)], ids=repr)
def test_any_posterior_is_a_start(posterior, data, tmp_path):
    config = TrainingConfig(epochs=2, batch_size=20, collection=CollectionConfig(start_fraction=0.0))
    fit(build, data, posterior, Plain(), config).save(tmp_path)
    found = fit(build, data, MAP(), Plain(), AS_IT_IS, init=str(tmp_path))
    assert same(weights(found), extract_mean_weights(posterior, FittedPosterior.load(tmp_path).states[0]))


class TestEnsembles:
    def test_from_one_network_are_refused(self, trained, data):
        with pytest.raises(ValueError, match="Ensemble trains 2 networks, and init has 1 trained ones.* list of 2"):
            fit(build, data, Ensemble(size=2), Plain(), SHORT, init=weights(trained))

    def test_from_several(self, trained, data, tmp_path):
        other = fit(build, data, MAP(), Plain(), TrainingConfig(epochs=2), seed=5)
        found = fit(build(data.input_shape, 10), data, Ensemble(size=2), Plain(), AS_IT_IS,
                    init=[weights(trained), weights(other)])  # fmt: skip
        assert same(weights(found, 0), weights(trained))
        assert same(weights(found, 1), weights(other))
        found.save(tmp_path)
        again = fit(build, data, Ensemble(SWAG(rank=2), size=2), Plain(), SHORT, init=tmp_path)
        assert len(again.states) == 2

    @pytest.mark.filterwarnings("ignore:The last layer is a new one")
    def test_a_fresh_head_each(self, trained, data):
        fewer = of_classes(data, 3)
        found = fit(build, fewer, Ensemble(size=2), Plain(), AS_IT_IS, init=weights(trained), new_head=True)
        one, two = weights(found, 0), weights(found, 1)
        assert torch.equal(one["layers.1.weight"], two["layers.1.weight"])
        assert not torch.equal(one["layers.4.weight"], two["layers.4.weight"])


def of_classes(data: DataSplits, count: int) -> DataSplits:
    def part(one):
        rows = (one.targets < count).nonzero().flatten()
        return Split(inputs=one.inputs[rows], targets=one.targets[rows])

    return replace(data, train=part(data.train), val=part(data.val), test=part(data.test),
                   class_names=data.class_names[:count])  # fmt: skip


@pytest.mark.filterwarnings("ignore:The last layer is a new one")
def test_another_number_of_classes_takes_a_new_head(trained, data):
    fewer = of_classes(data, 3)
    with pytest.raises(
        ValueError, match=r"layers\.4\.weight \(10, 16\) for \(3, 16\).*Only the last layer.*new_head"
    ):
        fit(build, fewer, MAP(), Plain(), SHORT, init=weights(trained))
    found = fit(build, fewer, MAP(), Plain(), AS_IT_IS, init=weights(trained), new_head=True)
    assert torch.equal(weights(found)["layers.1.weight"], weights(trained)["layers.1.weight"])
    assert weights(found)["layers.4.weight"].shape == (3, 16)
    with pytest.raises(ValueError, match="new_head needs trained weights"):
        fit(build, fewer, MAP(), Plain(), SHORT, new_head=True)


X, CLASSES = torch.randn(24, 3, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 3
NUMBERS = CLASSES + 0.5 * X[:, 0]
KINDS = {
    "pair": lambda y: (X, y),
    "source": lambda y: Arrays(X, y),
    "splits": lambda y: Arrays(X, y).load(0),
    "dataset": lambda y: TensorDataset(X, y),
    "loader": lambda y: DataLoader(TensorDataset(X, y), 8),
    "batches": lambda y: [(X, y)],
}


class Pretrained(nn.Sequential):
    """A network of five outputs, whose weights are always the same."""

    def __init__(self):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            super().__init__(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5))


def test_an_untrained_new_head_is_warned_of():
    with pytest.warns(DataWarning, match=r"random weights, and without training \(epochs=0\)"):
        fit(Pretrained(), (X, CLASSES), Laplace(), Plain(), AS_IT_IS, new_head=True)
    fit(Pretrained(), (X, torch.arange(24) % 5), MAP(), Plain(), AS_IT_IS, new_head=True)  # the head is kept


def test_frozen_names_are_a_list():
    with pytest.raises(ValueError, match=r"list of name patterns, got a text: write freeze=\['0\.\*'\]"):
        fit(Pretrained(), (X, CLASSES), MAP(), Plain(), AS_IT_IS, freeze="0.*")


@pytest.mark.filterwarnings("ignore:The last layer is a new one")
@pytest.mark.parametrize("model", [Pretrained(), Pretrained], ids=["network", "class"])
@pytest.mark.parametrize(("targets", "num_outputs"), [(CLASSES, 3), (NUMBERS, 2)], ids=["classes", "numbers"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_pretrained_network_gets_a_new_head_for_every_kind_of_data(kind, targets, num_outputs, model, tmp_path):
    data, trained = KINDS[kind](targets), Pretrained().state_dict()
    config = replace(AS_IT_IS, batch_size=8)
    for init in (None, trained):
        fitted = fit(model, data, Ensemble(size=2), Plain(), config, init=init, new_head=True)
        first, second = (state.model.state_dict() for state in fitted.states)
        assert torch.equal(first["0.weight"], trained["0.weight"])
        assert first["2.weight"].shape == (num_outputs, 4)
        assert not torch.equal(first["2.weight"], second["2.weight"])
    again = FittedPosterior.load(fitted.save(tmp_path), model)
    assert torch.equal(again.predict(X).mean, fitted.predict(X).mean)
    assert Pretrained().state_dict().keys() == trained.keys()


@pytest.mark.parametrize(
    ("kind", "targets"),
    [(kind, targets) for kind in KINDS for targets in (torch.arange(24) % 6, NUMBERS)]
    + [(kind, CLASSES) for kind in KINDS if kind not in ("loader", "batches")],  # which may lack classes
)
def test_a_wrong_number_of_outputs_mentions_the_new_head(kind, targets):
    with pytest.raises(ValueError, match="new_head=True of fit, --new_head"):
        fit(Pretrained(), KINDS[kind](targets), MAP(), Plain(), AS_IT_IS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_zeros_and_ones_are_several_labels_of_each_example(kind, dtype):
    data = KINDS[kind]((torch.arange(120).reshape(24, 5) % 3 == 0).to(dtype))
    assert fit(Pretrained(), data, MAP(), Plain(), AS_IT_IS).likelihood == Bernoulli(5)
    with pytest.raises(ValueError, match="Bernoulli|is for one class of each example, and the targets are 5 labels"):
        fit(Pretrained(), data, MAP(), Plain(), AS_IT_IS, likelihood=Categorical(5))


def test_a_head_of_the_right_size_is_kept_and_no_start_of_an_ensemble(tmp_path):
    data, labels = (X, torch.arange(24) % 5), Pretrained().state_dict()
    fitted = fit(Pretrained(), data, MAP(), Plain(), AS_IT_IS, new_head=True)
    assert same(weights(fitted), labels)
    for init in (None, labels):
        with pytest.raises(ValueError, match="Ensemble trains 2 networks from the same initial weights"):
            fit(Pretrained(), data, Ensemble(size=2), Plain(), AS_IT_IS, init=init, new_head=True)


def test_mismatches_are_listed_shortly(trained):
    found = dict(weights(trained))
    found["other.weight"] = found.pop("layers.1.bias")
    with pytest.raises(ValueError) as caught:
        match_weights(found, build((1, 8, 8), 10), new_head=False)
    for text in (
        "those of MLP",
        "missing: ['layers.1.bias']",
        "not in the network: ['other.weight']",
        "Give the architecture",
    ):
        assert text in str(caught.value)
    with pytest.raises(ValueError, match="and 2 more"):
        match_weights({f"x{k}": torch.ones(1) for k in range(6)}, build((1, 8, 8), 10), new_head=False)
    found = {name: tensor.clone() for name, tensor in weights(trained).items()}
    found["layers.1.bias"][0] = torch.nan
    with pytest.raises(ValueError, match=r"layers\.1\.bias holds values that are not finite"):
        match_weights(found, build((1, 8, 8), 10), new_head=False)


def test_counters_of_old_norms_may_be_missing():
    model = with_norms()
    old = {name: tensor for name, tensor in model.state_dict().items() if "num_batches" not in name}
    assert match_weights(old, model, new_head=False).keys() == old.keys()


def test_frozen_parameters_stay_and_artefacts_remember_them(trained, data, tmp_path):
    found = fit(build, data, SWAG(rank=2), SAM(), SHORT, init=weights(trained), freeze=["layers.1.*"])
    now, before = weights(found), weights(trained)
    assert torch.equal(now["layers.1.weight"], before["layers.1.weight"])
    assert not torch.equal(now["layers.4.weight"], before["layers.4.weight"])
    assert found.states[0].statistics["mean"].numel() == 170
    found.save(tmp_path)
    again = FittedPosterior.load(tmp_path)
    x = data.test.inputs
    assert torch.equal(again.predict(x, 3).log_probs, found.predict(x, 3).log_probs)
    assert not again.states[0].model.layers[1].weight.requires_grad
    with pytest.raises(ValueError, match=r"pattern 'features\.\*' of freeze matches no trainable parameter"):
        fit(build, data, SWAG(), SAM(), SHORT, freeze=["features.*"])
    with pytest.raises(ValueError, match=r"of MLP. Did you mean 'layers.1.\*'\? Trainable: \['layers.1.weight'"):
        fit(build, data, SWAG(), SAM(), SHORT, freeze=["layers.1"])


def test_a_pattern_of_parameters_that_are_frozen_already_is_explained():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    network[0].requires_grad_(False)
    data = (torch.zeros(4, 2), torch.arange(4) % 2)
    with pytest.raises(ValueError, match="'0.*' of freeze .* do not require gradients already: leave it out"):
        fit(network, data, MAP(), config=SHORT, freeze=["0.*"])


@pytest.mark.parametrize(
    ("posterior", "flatness"),
    [
        (MAP(), Plain()),
        (SWAG(rank=2), SAM(params="last_layer")),
        (LRT(), SAM()),
        (MCDropout(), SAM()),
        (Ensemble(SVGD(num_particles=2), 2), Plain()),
    ],
    ids=short_name,
)
def test_frozen_norms_keep_their_statistics(posterior, flatness):
    data = [batch(k) for k in range(4)]
    config = replace(SHORT, optimizer=partial(torch.optim.Adam, lr=0.01))
    options = {"likelihood": Categorical(3), "freeze": ["0.*", "1.*"]}
    fitted = fit(with_norms, data, posterior, flatness, config, **options)
    for state in fitted.states:
        assert torch.equal(state.model[1].running_mean, torch.zeros(4))
        assert state.model[1].num_batches_tracked == 0
        assert state.model[6].num_batches_tracked > 0
    if posterior.needs_norm_reestimation:
        with fitted.sampled_network((0, 0, 0)) as drawn:
            assert torch.equal(drawn[1].running_var, torch.ones(4))
            assert not torch.equal(drawn[6].running_var, torch.ones(16))


def test_a_norm_without_parameters_is_frozen_with_the_block_that_it_is_in():
    block = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, affine=False)).requires_grad_(False)
    model = nn.Sequential(block, nn.BatchNorm1d(3, affine=False), nn.Linear(3, 2), nn.BatchNorm1d(2)).eval()
    set_training_mode(model)
    assert [module.training for module in (block[1], model[1], model[3])] == [False, True, True]
    model[3].weight.requires_grad_(False)
    set_training_mode(model)
    assert model[3].training
    model[3].bias.requires_grad_(False)
    set_training_mode(model)
    assert not model[3].training


def test_a_network_of_the_users_with_frozen_parts_loads_without_being_told(data, tmp_path):
    def own():
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))
        model[1].requires_grad_(False)
        return model

    def thawed():
        return own().requires_grad_(True)

    fitted = fit(own, data, SWAG(rank=2), Plain(), replace(SHORT, epochs=1))
    fitted.save(tmp_path)
    found = FittedPosterior.load(tmp_path, thawed)
    assert torch.equal(found.predict(data.test.inputs, 2).log_probs, fitted.predict(data.test.inputs, 2).log_probs)


def test_checkpoints_of_another_start_are_not_gone_on_from(trained, data, tmp_path):
    places = Checkpoints(tmp_path / "kept")
    fit(build, data, MAP(), Plain(), SHORT, init=weights(trained), checkpoints=places)
    other = {name: tensor + 1 for name, tensor in weights(trained).items()}
    for changes in ({"init": other}, {"init": weights(trained), "freeze": ["layers.1.*"]}, {"init": None}):
        with pytest.raises(ValueError, match=r"started from other weights"):
            fit(build, data, MAP(), Plain(), SHORT, checkpoints=places, **changes)


def make_pair():
    return torch.randn(60, 4, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 3


def test_a_builder_that_sets_the_seed_does_not_make_new_heads_equal():
    def build_seeded():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 7))

    fit_head = partial(fit, build_seeded, make_pair(), flatness=Plain(), config=ONE_EPOCH, new_head=True)
    members = fit_head(Ensemble(MAP(), size=2)).states
    seeds = [fit_head(MAP(), seed=seed).states[0] for seed in range(2)]
    for first, second in (members, seeds):
        assert (first.model[2].weight - second.model[2].weight).abs().max() > 0.05


@pytest.mark.parametrize("together", [False, True])
def test_members_with_equal_initial_weights_are_warned_of(together):
    def fit_ensemble(model):
        ensemble = Ensemble(MAP(), size=2)
        if together:
            return fit_together(model, make_pair(), [MAP(), ensemble], Plain(), ONE_EPOCH)
        return fit(model, make_pair(), ensemble, Plain(), ONE_EPOCH)

    network = nn.Linear(4, 3)
    with pytest.warns(UserWarning, match="start from the same weights"):
        fit_ensemble(lambda: deepcopy(network))
    with warnings.catch_warnings(action="error"):
        fit_ensemble(lambda: nn.Linear(4, 3))
