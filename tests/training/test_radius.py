"""The radius that is chosen on validation data: the pilot, its cost, its record, and what is refused."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from flatbayes.core import TrainingProgress
from flatbayes.core.spec import short_name
from flatbayes.data import DataSplits, Split
from flatbayes.flatness import LESAM, MSAM, SAM, Delayed, Plain, PosteriorSAM
from flatbayes.likelihoods import Categorical, Custom
from flatbayes.posteriors import MAP, SGLD, SGVB, SWAG, Ensemble
from flatbayes.prediction import FittedPosterior
from flatbayes.training import Callback, Checkpoints, TrainingConfig, candidates, choices, fit
from flatbayes.training.radius import (
    MAX_COST,
    MIN_GAIN,
    compute_pilot_fraction,
    describe_radius,
    make_candidate,
    select_radius,
)
from flatbayes.training.sharing import try_fit_together
from support import FLATNESSES, named

AUTO = [flat.with_radius("auto") for flat in FLATNESSES if flat.radius is not None]
CONFIG = TrainingConfig(epochs=8, batch_size=10, num_validations=1, collection={"start_fraction": 0.5})


class Net(nn.Module):
    """A network that counts its forward passes with gradients."""

    num_passes = 0

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Dropout(0.2), nn.Linear(6, 2))

    def forward(self, x):
        if self.training and torch.is_grad_enabled():
            Net.num_passes += 1
        return self.layers(x)


def make_data(with_val=True, random=False):
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(80) % 2
    inputs = torch.randn(80, 3, generator=generator) + targets.view(-1, 1)
    train, val = (Split(inputs=inputs[rows], targets=targets[rows]) for rows in (slice(50), slice(50, None)))
    if random:  # nothing but overfitting
        train = Split(inputs=train.inputs, targets=torch.randint(0, 2, (50,), generator=generator))
    val = val if with_val else val.take(torch.arange(0))
    return DataSplits(train=train, val=val, test=val, class_names=("a", "b"), feature_names=(), augment=None)


def weights(fitted):
    return torch.cat([p.detach().flatten() for s in fitted.states for p in s.model.parameters()])


def posterior_of(flat):
    return SGVB() if flat.needs_weight_distribution else SWAG(rank=2)


@pytest.mark.parametrize("posterior", [MAP(), SWAG(rank=2), Ensemble(size=2)], ids=short_name)
@pytest.mark.parametrize(("epochs", "overfits"), [(6, False), (150, True)])
def test_with_early_stopping_whole_trainings_are_tried(posterior, epochs, overfits):
    config, data = replace(CONFIG, epochs=epochs, early_stopping=True), make_data(random=overfits)
    fitted = fit(Net, data, posterior, SAM(rho="auto"), config)
    record = fitted.info["radius"]
    assert record["start"] == 0
    assert {0.0, 0.05} <= dict(map(tuple, record["scores"])).keys()
    straight = config if record["epochs"] is None else replace(config, epochs=record["epochs"])
    again = fit(Net, data, posterior, make_candidate(SAM(), record["value"], 0.0), straight)
    assert torch.equal(weights(fitted), weights(again))
    assert again.info["training"] == fitted.info["training"]
    assert fitted.info["cost"]["gradients"] <= MAX_COST * 2 * 5 * epochs * posterior.num_members
    if overfits:
        history = fit(Net, data, MAP(), Plain(), config).info["training"]["history"]["val_nll"]
        lowest = min(value for value in history if value is not None)
        assert dict(map(tuple, record["scores"]))[0.0] <= lowest


OFTEN = (SAM(rho="auto"), MSAM(rho="auto"), LESAM(loss_budget="auto"), PosteriorSAM(rho="auto"))


@pytest.mark.parametrize(
    "flat",
    [pytest.param(flat, marks=() if flat in OFTEN else pytest.mark.slow, id=short_name(flat)) for flat in AUTO],
)
def test_the_result_is_that_of_a_straight_training_with_the_best_radius(flat):
    data, posterior = make_data(), posterior_of(flat)
    fitted = fit(Net, data, posterior, flat, CONFIG, seed=1)
    record = fitted.info["radius"]
    scores = dict(map(tuple, record["scores"]))
    assert 0.0 in scores
    assert len(scores) >= 2  # of 3, where batches of a few examples cost more gradients than planned
    assert record["value"] == select_radius(scores, errors=dict(map(tuple, record["errors"])))
    assert record["reason"] in fitted.summary()

    straight = make_candidate(flat, record["value"], record["start"])
    again = fit(Net, data, posterior, straight, CONFIG, seed=1)
    assert torch.equal(weights(fitted), weights(again))
    assert all(torch.equal(x, again.states[0].statistics[n]) for n, x in fitted.states[0].statistics.items())
    assert again.info["training"] == fitted.info["training"]
    assert scores[record["value"]] == again.info["training"]["last_epoch"]["val_nll"]
    plain = fit(Net, data, posterior, Plain(), CONFIG, seed=1)
    assert scores[0.0] == plain.info["training"]["last_epoch"]["val_nll"]


@pytest.mark.parametrize("flat", [SAM(rho="auto"), MSAM(rho="auto"), Delayed(SAM(rho="auto"))], ids=short_name)
def test_the_pilot_is_counted_and_costs_at_most_a_quarter_more(flat):
    data, config = make_data(), replace(CONFIG, epochs=16)
    counts, costs = [], []
    for candidate in (flat, flat.with_radius(flat.reference_radius)):
        Net.num_passes = 0
        fitted = fit(Net, data, MAP(), candidate, config)
        counts.append(Net.num_passes)
        costs.append(fitted.info["cost"]["gradients"])
    trial = counts[1] - costs[1]  # passes of the trial before training, in both
    assert counts[0] == costs[0] + trial
    assert 16 * 5 < costs[0] <= MAX_COST * costs[1]


@pytest.mark.parametrize("flat", AUTO, ids=named(AUTO))
def test_the_last_part_is_as_long_as_the_budget_allows(flat):
    fraction = compute_pilot_fraction(flat)
    active = flat
    while isinstance(active, Delayed):
        active = active.flatness
    cost = 1 + 2 * fraction * active.gradients_per_step
    assert cost <= MAX_COST * flat.gradients_per_step * (1 + 1e-12)
    assert fraction == 0.5 or cost == pytest.approx(MAX_COST * flat.gradients_per_step)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ({0.0: 0.5, 0.1: 0.4, 1.0: 0.3}, 1.0),
        ({0.0: 0.5, 0.1: 0.4, 1.0: None}, 0.1),
        ({0.0: 0.5, 0.1: 0.5 - 0.9 * MIN_GAIN, 1.0: 0.6}, 0.0),
        ({0.0: 0.5, 0.1: 0.5 - 1.1 * MIN_GAIN, 1.0: 0.6}, 0.1),
        ({0.0: 0.5, 0.1: 0.4, 1.0: 0.4}, 0.1),
        ({0.0: None, 0.1: 9.0}, 0.1),
        ({0.0: None, 0.1: None}, 0.0),
    ],
)
def test_radius_0_is_taken_unless_another_gains_enough(scores, expected):
    assert select_radius(scores) == expected


def test_a_gain_within_a_standard_error_is_not_taken():
    scores = {0.0: 0.5, 0.05: 0.48, 0.1: 0.4}
    assert select_radius(scores, 0.05, {0.05: 0.01, 0.1: 0.01}) == 0.1
    assert select_radius(scores, 0.05, {0.05: 0.01, 0.1: 0.09}) == 0.05
    assert select_radius(scores, 0.05, {0.05: 0.03, 0.1: 0.09}) == 0.0
    assert select_radius({0.0: None, 0.05: 9.0}, 0.05, {0.05: 0.0}) == 0.05
    text = describe_radius("rho", 0.0, 0.0, scores, 0.05, {0.05: 0.03, 0.1: 0.09})
    assert "rho is 0: no other lowers the validation NLL by more than its standard error" in text
    assert "0.05: 0.4800 ± 0.0300" in text


@pytest.mark.parametrize("form", ["splits", "loader", "regression"])
def test_the_record_has_the_standard_errors_of_the_differences(form):
    data, model, config = make_data(), Net, replace(CONFIG, epochs=12, early_stopping=False)
    if form == "regression":
        data = replace(
            data,
            **{
                name: replace(split, targets=split.targets.double() + split.inputs[:, 0])
                for name, split in (("train", data.train), ("val", data.val), ("test", data.test))
            },
            class_names=(),
            target_names=("y",),
        )
    arguments = [data]
    if form == "loader":
        arguments = [
            DataLoader(list(zip(split.inputs, split.targets, strict=True)), batch_size=7, shuffle=True)
            for split in (data.train, data.val)
        ]
    fitted = fit(model, arguments[0], MAP(), SAM(rho="auto"), config, val=arguments[1] if form == "loader" else None)
    record = fitted.info["radius"]

    def measure(radius):
        flat = make_candidate(SAM(), radius, record["start"])
        val = arguments[1] if form == "loader" else None
        other = fit(model, arguments[0], MAP(), flat, config, val=val)
        predictive, targets = other.predict(data.val.inputs), data.val.targets
        if form == "regression":
            return -predictive.log_prob(targets.double())
        return -predictive.log_probs.gather(-1, targets[:, None])[:, 0]

    plain = measure(0.0)
    for radius, error in record["errors"]:
        differences = (measure(radius) - plain).double()
        assert error == pytest.approx(float(differences.std()) / len(differences) ** 0.5, rel=1e-3)
    assert {radius for radius, _ in record["errors"]} == {radius for radius, _ in record["scores"] if radius}


def test_a_loss_of_several_examples_has_no_standard_error():
    def loss(outputs, targets):
        if len(targets) < 2:
            raise ValueError("at least two examples")
        return nn.functional.cross_entropy(outputs, targets)

    fitted = fit(Net, make_data(), MAP(), SAM(rho="auto"), CONFIG, likelihood=Custom(loss, Categorical(2)))
    assert {error for _, error in fitted.info["radius"]["errors"]} == {0.0}


@pytest.mark.parametrize("members", ["one_by_one", "vectorized", "workers"])
def test_further_members_get_the_radius_of_the_first(members):
    config = CONFIG.with_options(**{"distribution.members": members})
    fitted = fit(make_net, make_data(), Ensemble(size=2), SAM(rho="auto"), config)
    record = fitted.info["radius"]
    straight = make_candidate(SAM(rho="auto"), record["value"], record["start"])
    again = fit(make_net, make_data(), Ensemble(size=2), straight, CONFIG)
    torch.testing.assert_close(weights(fitted), weights(again), rtol=1e-4, atol=1e-6)
    alone = fit(make_net, make_data(), MAP(), SAM(rho="auto"), CONFIG).info["radius"]
    assert record["value"] == alone["value"]


def make_net():
    return nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))


def test_posteriors_of_one_training_get_what_they_get_alone():
    methods = [(MAP(), CONFIG), (SWAG(rank=2), CONFIG), (Ensemble(size=2), CONFIG)]
    outcomes = try_fit_together(Net, make_data(), methods, SAM(rho="auto"), seed=1)
    for (posterior, config), outcome in zip(methods, outcomes, strict=True):
        alone = fit(Net, make_data(), posterior, SAM(rho="auto"), config, seed=1)
        assert torch.equal(weights(alone), weights(outcome.fitted))
        assert outcome.fitted.info["radius"] == alone.info["radius"]
        assert outcome.fitted.info["cost"]["gradients"] == alone.info["cost"]["gradients"]


def test_a_divergent_radius_is_not_chosen(monkeypatch):
    def make_divergent(flat, radius, start):
        return make_candidate(flat, 1e30 if radius == 0.1 else radius, start)

    monkeypatch.setattr(candidates, "make_candidate", make_divergent)
    record = fit(Net, make_data(), MAP(), SAM(rho="auto"), CONFIG).info["radius"]
    assert [0.1, None] in record["scores"]
    assert record["value"] != 0.1
    assert "0.1: diverged" in record["reason"]


def test_without_validation_data_the_usual_radius_is_used():
    messages = []
    callback = type("Messages", (Callback,), {"on_message": lambda _, text: messages.append(text)})()
    fitted = fit(Net, make_data(with_val=False), MAP(), SAM(rho="auto"), CONFIG, callback=callback)
    usual = fit(Net, make_data(with_val=False), MAP(), SAM(rho=0.05), CONFIG)
    assert torch.equal(weights(fitted), weights(usual))
    assert messages == ["rho is 0.05, its usual value: there are no validation data to choose it on."]
    assert fitted.info["radius"]["scores"] == []


def test_a_loader_branches_at_the_end_of_an_epoch():
    data = make_data()
    pairs = [list(zip(part.inputs, part.targets, strict=True)) for part in (data.train, data.val)]
    train, val = (DataLoader(examples, batch_size=10) for examples in pairs)
    record = fit(Net, train, MAP(), SAM(rho="auto"), CONFIG, val=val).info["radius"]
    assert record["start"] == 5 / 8
    short = fit(Net, train, MAP(), SAM(rho="auto"), replace(CONFIG, epochs=1), val=val)
    assert "too short" in short.info["radius"]["reason"]


def test_the_choice_is_saved_with_artefact_and_checkpoints(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    fitted = fit(Net, make_data(), Ensemble(size=2), SAM(rho="auto"), CONFIG, checkpoints=checkpoints)
    fitted.save(tmp_path / "run")
    loaded = FittedPosterior.load(tmp_path / "run", Net)
    assert loaded.info["radius"] == fitted.info["radius"]
    monkeypatch.setattr(choices, "choose_training", None)  # not called again
    again = fit(Net, make_data(), Ensemble(size=2), SAM(rho="auto"), CONFIG, checkpoints=checkpoints)
    assert torch.equal(weights(again), weights(fitted))
    checkpoints.remove()
    assert not checkpoints.folder.exists()


@pytest.mark.parametrize(
    ("posterior", "flat", "options", "message"),
    [
        (SGLD(), SAM(rho="auto", ascent_batch_fraction=0.25), {}, r"trains plain before 0.775.*Give the radius as a"),
        (MAP(), SAM(rho="auto"), {"distribution.strategy": "fsdp"}, "not possible with distribution.strategy fsdp"),
        (MAP(), SAM(rho="auto"), {"precision.cuda_graph": True}, "not possible with precision.cuda_graph"),
    ],
)
def test_what_cannot_go_back_to_an_earlier_step_is_refused(posterior, flat, options, message):
    with pytest.raises(ValueError, match=message):
        fit(Net, make_data(), posterior, flat, CONFIG.with_options(collection={"start_fraction": 0.7}, **options))


@pytest.mark.parametrize("flat", AUTO, ids=named(AUTO))
def test_a_loop_of_your_own_needs_a_number(flat):
    model = make_net()
    progress = TrainingProgress(step=10, total_steps=12)
    with pytest.raises(ValueError, match=r"has no number yet.*fitted.info\['radius'\]\['value'\]"):
        flat(lambda: model(torch.ones(1, 3)).sum(), model, progress)()
