"""Validation examples that `fit` holds out of its training examples, where a choice needs some and none are given."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from flatbayes import MAP, MLP, SAM, SWAG, Arrays, Categorical, Gaussian, Plain, evaluate, fit, fit_together
from flatbayes.data import Split
from flatbayes.data.checks import DataWarning
from flatbayes.data.stratified_split import HELD_OUT_FRACTION, MAX_HELD_OUT, hold_out_validation
from flatbayes.prediction.example_batches import read_targets
from flatbayes.training import Callback, TrainingConfig
from flatbayes.training.arguments import hold_out_examples
from flatbayes.training.cross_conformal import fit_cross_conformal
from flatbayes.training.draw_choice import explain_validation
from flatbayes.training.preparation import prepare_runs

SHORT = TrainingConfig(min_epochs=2, min_steps=8, batch_size=16)


class Messages(Callback):
    """Messages of a fit."""

    def __init__(self):
        self.texts = []

    def on_message(self, text):
        """Keep it."""
        self.texts.append(text)


def make_numbers(count, num_columns=3):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, num_columns, generator=generator)
    return x, x[:, 0] + 0.5 * torch.randn(count, generator=generator)


@pytest.mark.parametrize("form", ["pair", "dataset"])
def test_a_seventh_is_held_out_where_nothing_is_given(form):
    x, y = make_numbers(200)
    data, messages = (x, y) if form == "pair" else TensorDataset(x, y), Messages()
    fitted = fit(nn.Linear(3, 2), data, MAP(), Plain(), SHORT, callback=messages)
    assert (fitted.info["held_out"], fitted.states[0].num_data) == (30, 170)
    assert "170 training examples, 30 held out for validation" in fitted.summary()
    assert any("30 examples are held out" in text and "or a number of epochs" in text for text in messages.texts)
    assert fitted.info["training"]["history"]["val_nll"]
    assert "held_out" not in fit(nn.Linear(3, 2), data, MAP(), Plain(), TrainingConfig(epochs=2)).info
    val = data if form == "dataset" else (x[:20], y[:20])
    given = fit(nn.Linear(3, 2), data, MAP(), Plain(), SHORT, val=val)
    assert ("held_out" not in given.info, given.states[0].num_data) == (True, 200)


class Named(Dataset):
    """Items that are dictionaries."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.y)

    def __getitem__(self, row):
        return {"first": self.x[row, :1], "rest": self.x[row, 1:], "labels": self.y[row]}


class TakesNamed(nn.Linear):
    def forward(self, first, rest):
        return super().forward(torch.cat([first, rest], 1))


@pytest.mark.parametrize("form", ["pair", "dataset"])
@pytest.mark.parametrize("likelihood", [Categorical(2), Gaussian()], ids=["classes", "numbers"])
def test_examples_with_dictionaries_of_inputs_are_held_out_too(form, likelihood):
    (x, y), messages = make_numbers(200), Messages()
    y = (y > 0).long() if isinstance(likelihood, Categorical) else y
    data = ({"first": x[:, :1], "rest": x[:, 1:]}, y) if form == "pair" else Named(x, y)
    arguments = {"likelihood": likelihood, "callback": messages}
    fitted = fit(TakesNamed(3, 2), data, MAP(), Plain(), SHORT, **arguments)
    assert (fitted.info["held_out"], fitted.states[0].num_data) == (30, 170)
    assert "170 training examples, 30 held out for validation" in fitted.summary()
    assert any("30 examples are held out" in text for text in messages.texts)
    assert fitted.info["training"]["history"]["val_nll"]
    assert "held_out" not in fit(TakesNamed(3, 2), data, MAP(), Plain(), {"epochs": 2}, **arguments).info
    given = fit(TakesNamed(3, 2), data, MAP(), Plain(), SHORT, val=data, **arguments)
    assert ("held_out" not in given.info, given.states[0].num_data) == (True, 200)


def test_the_rows_are_those_of_a_pair_of_arrays():
    x, y = make_numbers(200)
    y = (y > 1).long()
    splits = prepare_runs(MLP, (x, y), MAP(), Plain(), SHORT, seed=4)[0].training_data.splits
    for data in (({"x": x}, y), Named(x, y)):
        train, val, count = hold_out_examples(data, None, seed=4)
        assert count == 30
        assert torch.equal(read_targets(val), splits.val.targets)
        assert torch.equal(read_targets(train), splits.train.targets)
    assert torch.equal(hold_out_examples(({"x": x}, y), None, seed=4)[1][0]["x"], splits.val.inputs)
    tokens = {"x": x}, torch.randint(0, 5, (200, 7))
    assert hold_out_examples(tokens, Categorical(5), seed=0)[2] == 30
    assert hold_out_examples(({"x": x[:40]}, y[:40]), None, seed=0)[1:] == (None, 0)


def test_the_same_examples_are_held_out_for_both_twins_and_together():
    data = make_numbers(120)
    plain, flat = (fit(MLP, data, MAP(), flatness, SHORT, seed=3) for flatness in (Plain(), SAM(rho=0.05)))
    assert plain.info["data_fingerprint"] == flat.info["data_fingerprint"]
    together = fit_together(MLP, data, [MAP(), SWAG(rank=2)], Plain(), SHORT, seed=3)
    assert [fitted.info["held_out"] for fitted in together] == [18, 18]
    for ours, theirs in zip(
        together[0].states[0].model.parameters(), plain.states[0].model.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_a_radius_to_choose_needs_validation_examples_too():
    data, messages = make_numbers(120), Messages()
    fitted = fit(nn.Linear(3, 2), data, MAP(), SAM(rho="auto"), TrainingConfig(epochs=8), callback=messages)
    assert fitted.info["held_out"] == 18
    assert len(fitted.info["radius"]["scores"]) > 1
    assert "18 examples are held out for validation, which decides on the radius" in messages.texts[0]


def test_every_class_stays_in_the_training_examples():
    x = np.random.default_rng(0).normal(size=(100, 3)).astype("float32")
    y = np.array(["common"] * 98 + ["rare"] * 2)
    factory, _ = prepare_runs(MLP, (x, y), MAP(), Plain(), SHORT)
    splits = factory.training_data.splits
    assert (len(splits.train), len(splits.val)) == (85, 15)
    assert set(splits.train.targets.tolist()) == {0, 1}
    labels = np.r_[np.arange(40), np.full(60, 40)]  # 40 classes of one example
    whole = replace(splits, train=Split(inputs=torch.from_numpy(x), targets=torch.from_numpy(labels)))
    splits = hold_out_validation(whole, HELD_OUT_FRACTION, seed=0)
    assert len(splits.val) == 15
    assert set(splits.train.targets.tolist()) == set(range(41))
    many = torch.zeros(20_000, 1), torch.arange(20_000) % 2
    assert len(prepare_runs(MLP, many, MAP(), Plain(), SHORT)[0].training_data.splits.val) == MAX_HELD_OUT


@pytest.mark.parametrize("form", ["few", "loader"])
def test_a_warning_says_that_there_are_no_validation_examples(form):
    x, y = make_numbers(40)
    data = (x, y) if form == "few" else DataLoader(TensorDataset(*make_numbers(200)), batch_size=16)
    with pytest.warns(DataWarning, match="There are no validation examples"):
        fit(nn.Linear(3, 2), data, MAP(), Plain(), SHORT)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(nn.Linear(3, 2), data, MAP(), Plain(), TrainingConfig(epochs=2, batch_size=16))


def test_splits_are_taken_as_they_are():
    x, y = make_numbers(200)
    splits = Arrays(x, y, val_size=0.1, test_size=0.2).load(seed=0)
    for given in (splits, replace(splits, val=splits.val.take(torch.arange(0)))):
        fitted = fit(nn.Linear(3, 2), given, MAP(), Plain(), SHORT)
        assert ("held_out" not in fitted.info, fitted.states[0].num_data) == (True, 144)


def test_folds_of_cross_conformal_prediction_hold_out_examples_too():
    data = make_numbers(150)
    cross = fit_cross_conformal(nn.Linear(3, 2), data, MAP(), Plain(), SHORT, num_folds=2)
    assert [member.states[0].num_data for member in cross.members] == [64, 64]
    fixed = fit_cross_conformal(nn.Linear(3, 2), data, MAP(), Plain(), TrainingConfig(epochs=2), num_folds=2)
    assert [member.states[0].num_data for member in fixed.members] == [75, 75]


def test_intervals_without_options_cover():
    """Without validation examples they covered half of the targets."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(500, 10, generator=generator)
    y = x[:, :3].sum(1) + 2 * torch.randn(500, generator=generator)
    fitted = fit(MLP, (x[:300], y[:300]), SWAG())
    assert evaluate(fitted, (x[300:], y[300:])).metrics["coverage_95"] > 0.85


@pytest.mark.parametrize(("num_val", "is_few"), [(9, True), (10, False), (11, False), (35, False)])
def test_few_validation_examples_are_counted_exactly(num_val, is_few):
    x, y = make_numbers(100)
    factory, _ = prepare_runs(nn.Linear(3, 2), (x, y), MAP(), Plain(), SHORT, val=(x[:num_val], y[:num_val]))
    message = explain_validation(factory.training_data, stops_early=True, is_automatic=True)
    assert message is None if not is_few else message.startswith("9 validation examples decide when training stops")
