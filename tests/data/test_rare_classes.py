"""Classes with few examples or none: what fit, evaluate and the held-out validation examples make of them."""

import pytest
import torch
from torch.utils.data import TensorDataset

from flatbayes import MAP, MLP, Categorical, Custom, Plain, TrainingConfig, evaluate, fit
from flatbayes.calibration import CalibrationWarning, fit_calibration
from flatbayes.data import load_training_splits
from flatbayes.data.stratified_split import (
    choose_held_out,
    compute_class_quotas,
    cover_rare_classes,
    stratified_split,
)
from flatbayes.training import Callback

CONFIG = TrainingConfig(epochs=1, batch_size=16)
INPUTS = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(40) % 4


@pytest.mark.parametrize("form", ["pair", "dataset"])
@pytest.mark.parametrize("likelihood", [Categorical(6), Custom(torch.nn.functional.cross_entropy, Categorical(6))])
def test_a_likelihood_says_how_many_classes_there_are(form, likelihood):
    kept = LABELS != 1
    data = (INPUTS[kept], LABELS[kept])
    data = data if form == "pair" else TensorDataset(*data)
    fitted = fit(MLP, data, MAP(), Plain(), CONFIG, likelihood=likelihood)
    assert fitted.predict(INPUTS).mean.shape == (40, 6)
    assert fitted.info["class_names"] == ["0", "1", "2", "3", "4", "5"]


def test_one_example_of_each_class_and_fewer_examples_than_classes():
    for labels in (torch.arange(12), torch.tensor([0, 11, 3])):
        data = (INPUTS[: len(labels)], labels)
        fitted = fit(MLP, data, MAP(), Plain(), CONFIG, likelihood=Categorical(12))
        assert fitted.predict(INPUTS).mean.shape == (40, 12)


def test_a_dataset_without_some_classes_is_evaluated():
    fitted = fit(MLP, (INPUTS, LABELS), MAP(), Plain(), CONFIG)
    few = (INPUTS[[0, 3, 4]], LABELS[[0, 3, 4]])
    assert evaluate(fitted, TensorDataset(*few)).metrics == evaluate(fitted, few).metrics


def test_missing_classes_are_refused_where_their_number_is_not_known():
    with pytest.raises(ValueError, match=r"1 of the 4 classes has no example.*likelihood=Categorical\(4\)"):
        load_training_splits((INPUTS[LABELS != 1], LABELS[LABELS != 1]))
    with pytest.raises(ValueError, match="The data have 4 classes, and the likelihood has 3"):
        fit(MLP, (INPUTS, LABELS), MAP(), Plain(), CONFIG, likelihood=Categorical(3))


def test_named_classes_keep_their_names():
    splits = load_training_splits((INPUTS[:4], ["b", "a", "b", "c"]), num_classes=5)
    assert splits.class_names == ("a", "b", "c")


@pytest.mark.parametrize("num_positive", [3, 4, 10])
def test_a_rare_class_is_trained_and_held_out(num_positive):
    labels = (torch.arange(200) < num_positive).long()
    train, val = choose_held_out(labels, 0.15, 0, has_classes=True)
    assert len(val) == 30
    assert int(labels[val].sum()) >= 1
    assert int(labels[train].sum()) >= 2


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("num_rare", [3, 5])
def test_splits_of_a_source_have_every_class_to_train_and_validate(num_rare, seed):
    labels = (torch.arange(2000) < num_rare).long() + 2 * (torch.arange(2000) == 1999)
    train, val, test = stratified_split(labels, train_size=100, val_size=0.1, test_size=0, split_seed=0, seed=seed)
    assert (len(train), len(val), len(test)) == (100, 200, 0)
    assert labels[train].bincount(minlength=3)[1:].tolist() == [1, 1]
    assert labels[val].bincount(minlength=3)[1:].tolist() == [1, 0]
    assert not set(train.tolist()) & set(val.tolist())


def test_quotas_cover_classes_at_the_cost_of_the_largest_and_keep_their_sum():
    counts = torch.tensor([90, 60, 4, 2, 1])
    quotas = compute_class_quotas(counts, 12)
    covered = cover_rare_classes(counts, quotas, 2)
    assert covered.tolist() == [5, 5, 1, 1, 0]
    assert int(covered.sum()) == int(quotas.sum()) == 12
    many = torch.full((30,), 3)
    assert torch.equal(cover_rare_classes(many, compute_class_quotas(many, 12), 2), compute_class_quotas(many, 12))
    balanced = torch.full((10,), 20)
    assert torch.equal(cover_rare_classes(balanced, torch.full((10,), 3), 1), torch.full((10,), 3))


def test_a_trained_last_layer_with_other_numbers_of_the_classes_is_refused():
    names = [["a", "b", "c", "d"][label] for label in LABELS.tolist()]
    fitted = fit(MLP, (INPUTS, names), MAP(), Plain(), CONFIG)
    fit(MLP, (INPUTS, names), MAP(), Plain(), CONFIG, init=fitted)
    others = ["c" if name == "b" else name for name in names]
    with pytest.raises(ValueError, match="init was trained with 'c' as class 2, and in the data it is class 1"):
        fit(MLP, (INPUTS, others), MAP(), Plain(), CONFIG, init=fitted, likelihood=Categorical(4))
    fit(MLP, (INPUTS, others), MAP(), Plain(), CONFIG, init=fitted, new_head=True)


@pytest.mark.parametrize("method", ["temperature", "vector"])
def test_a_calibration_with_few_examples_of_the_rare_classes_warns(method):
    probs = torch.full((200, 2), 0.5)
    predictive = Categorical(2).predictive([probs.log()])
    rare = (torch.arange(200) < 7).long()
    with pytest.warns(CalibrationWarning, match="7 of the 200 examples are not of the most frequent class"):
        fit_calibration(predictive, rare, method)
    fit_calibration(predictive, (torch.arange(200) < 12).long(), method)
    few = Categorical(2).predictive([probs[:12].log()])
    fit_calibration(few, torch.arange(12) % 2, method)


def test_a_fit_says_that_few_validation_examples_are_of_the_rare_class():
    generator = torch.Generator().manual_seed(0)
    labels, texts = (torch.arange(200) < 4).long(), list[str]()
    inputs = torch.randn(200, 3, generator=generator) + labels[:, None]

    class Messages(Callback):
        def on_message(self, text):
            texts.append(text)

    config = TrainingConfig(min_epochs=1, min_steps=4, batch_size=64)
    fit(MLP, (inputs, labels), MAP(), Plain(), config, callback=Messages())
    assert any("1 of the 30 validation examples is not of the most frequent class" in text for text in texts)
