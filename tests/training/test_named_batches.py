"""Loaders and lists of batches whose labels are names of classes."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from flatbayes import MAP, SAM, SWAG, FittedPosterior, Plain, TrainingConfig, evaluate, fit
from flatbayes.data.checks import DataWarning
from flatbayes.prediction.example_batches import NumberedBatches

X = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(30) % 3
NAMES = [("ant", "bee", "cat")[label] for label in LABELS.tolist()]
PAIRS = list(zip(X, NAMES, strict=True))
CONFIG = TrainingConfig(epochs=2)


class TextPairs(torch.utils.data.IterableDataset):
    """A stream, which has no length."""

    def __iter__(self):
        return iter(PAIRS)


def make_network(num_outputs=3):
    torch.manual_seed(0)
    return nn.Linear(3, num_outputs)


def make_batches(convert=list, size=8, inputs=X, names=NAMES):
    return [(inputs[k : k + size], convert(names[k : k + size])) for k in range(0, len(inputs), size)]


def fit_loader(data, posterior=None, **options):
    return fit(make_network(), data, posterior or MAP(), Plain(), options.pop("config", CONFIG), **options)


@pytest.mark.parametrize(
    "data",
    [
        DataLoader(PAIRS, batch_size=8),
        DataLoader(TextPairs(), batch_size=8),
        make_batches(),
        make_batches(tuple),
        make_batches(np.array),
        make_batches(lambda names: np.array(names, dtype=object)),
    ],
    ids=["loader", "stream", "lists", "tuples", "arrays", "objects"],
)
def test_names_are_the_classes_that_arrays_of_names_have(data):
    named, numbered = fit_loader(data), fit_loader(DataLoader(TensorDataset(X, LABELS), batch_size=8))
    assert named.info["class_names"] == ["ant", "bee", "cat"]
    assert torch.equal(named.predict(X).mean, numbered.predict(X).mean)
    assert torch.equal(named.predict(data).mean, numbered.predict(X).mean)
    assert evaluate(named, data).metrics == evaluate(numbered, (X, LABELS)).metrics


def test_random_order_and_validation_are_those_of_numbers():
    def train(pairs):
        loader = DataLoader(pairs, batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(3))
        val = DataLoader(pairs, batch_size=8)
        config = TrainingConfig(epochs=3, collection={"start_fraction": 0.3})
        return fit(make_network(), loader, SWAG(), SAM(), config, val=val)

    named, numbered = train(PAIRS), train(TensorDataset(X, LABELS))
    assert named.info["training"]["last_epoch"] == numbered.info["training"]["last_epoch"]
    assert torch.equal(named.predict(X, 4).mean, numbered.predict(X, 4).mean)


def test_names_are_kept_in_the_artefact_and_checked(tmp_path):
    fitted = FittedPosterior.load(fit_loader(make_batches()).save(tmp_path / "named"), make_network())
    batches = make_batches()
    assert fitted.info["class_names"] == ["ant", "bee", "cat"]
    assert evaluate(fitted, batches).metrics["accuracy"] == evaluate(fitted, (X, LABELS)).metrics["accuracy"]
    assert fitted.check(batches).to_dict()["findings"] == fitted.check((X, LABELS)).to_dict()["findings"]
    with pytest.raises(ValueError, match="'dog' is not the name of a class"):
        evaluate(fitted, [(X[:1], ["dog"])])
    with pytest.raises(ValueError, match="in the data it is class 0"):
        fit_loader(make_batches(names=["bee", "cat", "dog"] * 10), init=fitted)


def test_a_class_of_the_validation_data_alone_is_a_class():
    with pytest.warns(DataWarning, match=r"1 of the 3 classes has no training example: \['bee'\]"):
        fitted = fit_loader(make_batches(names=["ant", "cat", "cat"] * 10), val=make_batches())
    assert fitted.info["class_names"] == ["ant", "bee", "cat"]


def test_a_new_last_layer_has_as_many_classes():
    fitted = fit(make_network(7), make_batches(), MAP(), Plain(), CONFIG, new_head=True)
    assert fitted.likelihood.num_outputs == 3


def test_a_dictionary_holds_names():
    class OfDictionary(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            return self.layer(x)

    batches = [{"x": inputs, "label": labels} for inputs, labels in make_batches()]
    fitted = fit(OfDictionary(), batches, MAP(), Plain(), CONFIG)
    assert fitted.info["class_names"] == ["ant", "bee", "cat"]
    assert evaluate(fitted, batches).metrics == evaluate(fitted, ({"x": X}, LABELS)).metrics


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (make_batches(), {"num_data": 30}, "one process reads in whole, without num_data"),
        (DataLoader(PAIRS, 8, sampler=DistributedSampler(PAIRS, 1, 0)), {}, "one process reads in whole"),
        (make_batches(), {"likelihood": "Gaussian"}, "The targets of a batch are of the type"),
        ([*make_batches(), (X, LABELS)], {}, "The training data: Batch 4 .* has labels that are not names"),
        (make_batches(), {"val": [(X, LABELS)]}, "The validation data: Batch 0 .* has labels that are not names"),
        ([(X, LABELS)], {"val": make_batches()}, "The validation data: Batch 0 .* not of validation data alone"),
        ([(X[:2], ["ant", None])], {}, "Batch 0 .*: its labels: 1 of 2 labels is missing"),
    ],
    ids=["num_data", "shared", "regression", "mixed", "numbers beside", "names beside", "missing"],
)
def test_names_that_are_no_classes_are_refused(data, options, message):
    with pytest.raises(ValueError, match=message):
        fit_loader(data, **options)


def test_other_attributes_are_those_of_the_loader():
    loader = DataLoader(PAIRS, batch_size=8)
    batches = NumberedBatches(loader, ("ant", "bee", "cat"))
    assert (len(batches), batches.sampler, batches.batch_size) == (len(loader), loader.sampler, 8)
    assert next(iter(batches))[1].tolist() == LABELS[:8].tolist()
