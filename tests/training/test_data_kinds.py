"""The five-line start: `fit`, `predict` and `evaluate` with every kind of data that people have."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from flatbayes import (
    MAP,
    SWAG,
    Categorical,
    Custom,
    DataSplits,
    Digits,
    FittedPosterior,
    Gaussian,
    Split,
    Table,
    conformalize,
    evaluate,
    fit,
)
from flatbayes.data import Arrays, Standardize, read_inputs
from flatbayes.training import History
from flatbayes.training.likelihood_inference import infer_loader_likelihood
from flatbayes.training.loader_data import LoaderData

RNG = np.random.default_rng(0)
X = RNG.normal(size=(48, 3)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int64)
NAMES = np.array(["cat", "dog"])[Y]
PRICES = X[:, 0] * 30 + 100.5
FRAME = pd.DataFrame(X, columns=["a", "b", "c"])
DATASET = TensorDataset(torch.as_tensor(X), torch.as_tensor(Y))
PRICED = TensorDataset(torch.as_tensor(X), torch.as_tensor(PRICES))
OPTIONS = {"epochs": 2, "batch_size": 16, "optimization": {"clip_norm": 1.0}}
torch.manual_seed(0)  # initial weights of the networks below


class SizedStream(IterableDataset):
    def __iter__(self):
        return iter(DATASET)

    def __len__(self):
        return len(DATASET)


class Dictionaries(torch.utils.data.Dataset):
    def __len__(self):
        return len(Y)

    def __getitem__(self, index):
        return {"first": torch.as_tensor(X[index, :2]), "second": torch.as_tensor(X[index, 2:]), "labels": Y[index]}


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, first, second):
        return {"logits": self.layer(torch.cat([first, second], -1)), "hidden": first}


KINDS = {
    "arrays": ("MLP", (X, Y)),
    "tensors": ("MLP", (torch.as_tensor(X), torch.as_tensor(Y))),
    "data frame and series": ("MLP", (FRAME, pd.Series(NAMES))),
    "texts": ("MLP", (X, NAMES)),
    "numbers": ("MLP", (X, PRICES)),
    "numbers in a frame": ("MLP", (FRAME, pd.DataFrame({"price": PRICES}))),
    "images without channels": ("ConvNet", (RNG.integers(0, 255, (48, 8, 8)).astype(np.uint8), Y)),
    "images with channels last": ("ConvNet", (RNG.integers(0, 255, (48, 8, 8, 3)).astype(np.uint8), Y)),
    "dataset": ("MLP", DATASET),
    "splits": ("MLP", Digits(train_size=32).load(0)),
    "loader": (nn.Linear(3, 2), DataLoader(DATASET, 16, shuffle=True)),
    "list of batches": (nn.Linear(3, 2), list(DataLoader(DATASET, 16))),
    "iterable with a length": (nn.Linear(3, 2), SizedStream()),
    "loader of numbers": (
        nn.Linear(3, 2),
        DataLoader(TensorDataset(torch.as_tensor(X), torch.as_tensor(PRICES)), 16),
    ),
    "dictionaries": (TwoInputs(), DataLoader(Dictionaries(), 16)),
}


COUNTS = np.round(PRICES)
COUNTED = TensorDataset(torch.as_tensor(X), torch.as_tensor(COUNTS))
GAUSSIAN = Gaussian.fit(torch.as_tensor(COUNTS))


@pytest.mark.parametrize("likelihood", [GAUSSIAN, Gaussian, "gaussian", Custom(GAUSSIAN.loss, GAUSSIAN)])
@pytest.mark.parametrize(
    "data", [(X, COUNTS), (X, COUNTS.astype(int)), COUNTED], ids=["floats", "integers", "dataset"]
)
def test_a_gaussian_says_that_whole_numbers_are_a_regression(data, likelihood):
    fitted = fit("MLP", data, MAP(), config=OPTIONS, likelihood=likelihood)
    assert "rmse" in evaluate(fitted, data).metrics


@pytest.mark.filterwarnings("ignore:The loader gives the examples in a random order")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("posterior", [MAP(), SWAG(rank=2)], ids=["MAP", "SWAG"])
def test_five_lines_are_enough(kind, posterior):
    model, data = KINDS[kind]
    fitted = fit(model, data, posterior, config=OPTIONS)
    evaluation = evaluate(fitted, data.train if isinstance(data, DataSplits) else data, num_draws=2)
    assert isinstance(fitted.likelihood, Gaussian if "number" in kind else Categorical)
    assert set(evaluation.metrics) >= ({"rmse", "nll"} if "number" in kind else {"accuracy", "nll"})
    inputs = data[0] if isinstance(data, tuple) else data.train.inputs if isinstance(data, DataSplits) else data
    inputs = torch.as_tensor(X) if isinstance(data, TensorDataset | SizedStream) else inputs
    assert len(fitted.predict(inputs, 2).mean) == (32 if isinstance(data, DataSplits) else 48)


@pytest.mark.filterwarnings("ignore::flatbayes.data.DataWarning")
def test_a_table_with_words_and_missing_numbers_predicts_the_same_from_a_file_and_a_frame(tmp_path):
    frame = pd.DataFrame(
        {"age": X[:, 0].astype(float), "flag": X[:, 1] > 0, "city": np.array(["Oslo", "Rome", None])[[0, 1, 2] * 16]}
    )
    frame.loc[::5, "age"] = np.nan
    frame.assign(y=NAMES).to_csv(tmp_path / "t.csv", index=False)
    data = Table(path=str(tmp_path / "t.csv"), target="y").load(0)
    fitted = fit("MLP", data, SWAG(rank=2), config=OPTIONS)
    assert fitted.info["feature_names"] == ["age", "age=", "flag", "city=", "city=Oslo", "city=Rome"]
    fitted.save(tmp_path / "run")
    loaded = FittedPosterior.load(tmp_path / "run")
    [(_, inputs)] = read_inputs(tmp_path / "t.csv", (6,), fitted.info["feature_names"])
    assert inputs[::5, 0].isnan().all()
    expected = loaded.predict(torch.where(inputs.isnan(), fitted.transform.mean.double(), inputs), 2).mean
    for new in (inputs, frame, frame.iloc[:, ::-1]):
        assert torch.equal(loaded.predict(new, 2).mean, expected)
    distances = [loaded.measure_input_distance(new).distance for new in (inputs, frame.iloc[:, ::-1])]
    assert torch.equal(*distances)
    with pytest.raises(ValueError, match="data frame lacks: city. It has age, flag"):
        loaded.predict(frame[["age", "flag"]], 2)
    with pytest.raises(ValueError, match="missing .* feature 'flag'"):
        loaded.predict(frame.assign(flag=[None, *frame["flag"][1:]]), 2)


def test_all_kinds_of_the_same_examples_train_the_same_network():
    weights = [
        fit("MLP", data, MAP(), config=OPTIONS).states[0].model.state_dict()
        for data in ((X, Y), (torch.as_tensor(X), torch.as_tensor(Y)), (FRAME, NAMES), DATASET)
    ]
    for other in weights[1:]:
        assert all(torch.equal(weights[0][name], other[name]) for name in other)


@pytest.mark.parametrize("kind", ["arrays", "texts", "numbers", "dataset", "loader", "dictionaries"])
def test_validation_data_are_evaluated_while_training(kind):
    model, data = KINDS[kind]
    history = History()
    fit(model, data, MAP(), config=OPTIONS | {"validate_every_n_epochs": 1}, val=data, callback=history)
    metrics = [record["val_nll"] for record in history.records]
    assert len(metrics) == 2
    assert np.isfinite(metrics).all()
    assert ("val_accuracy" in history.records[0]) == (kind != "numbers")


def test_validation_by_class_probabilities_has_no_accuracy():
    soft = torch.softmax(torch.as_tensor(X[:, :2]), -1)
    loader, history = DataLoader(TensorDataset(torch.as_tensor(X), soft), 16), History()
    fit(nn.Linear(3, 2), loader, MAP(), config=OPTIONS, likelihood=Categorical(2), val=loader, callback=history)
    assert "val_nll" in history.records[-1]
    assert "val_accuracy" not in history.records[-1]


def test_validation_of_a_loader_is_that_of_the_same_splits():
    split = Split(inputs=torch.as_tensor(X), targets=torch.as_tensor(Y))
    names = {"class_names": ("a", "b"), "feature_names": ("x", "y", "z")}
    splits = DataSplits(train=split, val=split, test=split, augment=None, **names)
    history, other = History(), History()
    network = nn.Linear(3, 2)
    config = {"epochs": 1, "batch_size": 48, "validate_every_n_epochs": 1}
    fit(network, splits, MAP(), config=config, callback=history)
    mean, std = X.mean(0, dtype=np.float64), X.std(0, dtype=np.float64)
    loader = DataLoader(TensorDataset(torch.as_tensor(((X - mean) / std).astype(np.float32)), split.targets), 48)
    fit(network, loader, MAP(), config=config, callback=other, val=loader)
    for name in ("val_nll", "val_accuracy"):
        assert history.records[-1][name] == pytest.approx(other.records[-1][name], rel=1e-5)


@pytest.mark.parametrize(
    ("model", "targets", "message"),
    [
        (nn.Linear(3, 1), torch.as_tensor(Y) + 1, "with 1 output for each example"),
        (nn.Linear(3, 2), torch.as_tensor(Y).float(), "not clear from targets of torch.float32"),
        (nn.Linear(3, 5), torch.as_tensor(PRICES), "with 5 outputs"),
        (nn.Linear(3, 2), torch.as_tensor(Y).bool(), "not clear from targets of torch.bool"),
    ],
)
def test_a_likelihood_that_is_not_clear_is_asked_for(model, targets, message):
    with pytest.raises(ValueError, match=f"{message}.*likelihood=Categorical"):
        fit(model, DataLoader(TensorDataset(torch.as_tensor(X), targets), 16), MAP(), config=OPTIONS)


@pytest.mark.parametrize(
    ("data", "val", "message"),
    [
        ((X, Y), DATASET, "a pair .* beside a pair"),
        (DATASET, (X, Y), "a dataset beside a dataset"),
        (Digits(train_size=32).load(0), (X, Y), "have a validation split"),
        (DataLoader(DATASET, 16), (X, Y), "val is a loader too"),
    ],
    ids=["dataset beside pair", "pair beside dataset", "pair beside splits", "pair beside loader"],
)
def test_validation_data_of_another_kind_are_refused(data, val, message):
    with pytest.raises(TypeError, match=message):
        fit(nn.Linear(3, 2), data, MAP(), config=OPTIONS, val=val)


@pytest.mark.parametrize("data", [DataLoader(DATASET, 16), ({"x": torch.as_tensor(X)}, Y)], ids=["loader", "pair"])
def test_a_transform_of_what_is_not_standardized_is_refused(data):
    transform = Standardize(mean=torch.zeros(3), std=torch.ones(3))
    with pytest.raises(ValueError, match="transform standardizes one array of inputs.*leave transform out"):
        fit(nn.Linear(3, 2), data, MAP(), config=OPTIONS, transform=transform)


def test_wrong_validation_batches_are_refused_before_training():
    wrong = DataLoader(TensorDataset(torch.as_tensor(X), torch.as_tensor(Y) + 5), 16)
    with pytest.raises(ValueError, match="The validation data: Batch 0"):
        fit(nn.Linear(3, 2), DataLoader(DATASET, 16), MAP(), config=OPTIONS, val=wrong)


def test_checks_of_loaders_change_no_random_state():
    network, generators = nn.Linear(3, 2), [torch.Generator().manual_seed(seed) for seed in range(2)]
    loader, val = (DataLoader(PRICED, 16, shuffle=True, generator=generator) for generator in generators)
    states = [*(generator.get_state() for generator in generators), torch.get_rng_state()]
    likelihood = infer_loader_likelihood(loader, network)
    LoaderData(loader, val=val, likelihood=likelihood).check_batches()
    after = [*(generator.get_state() for generator in generators), torch.get_rng_state()]
    assert all(torch.equal(state, before) for state, before in zip(after, states, strict=True))


class CountingLoader:
    def __init__(self, inputs, targets):
        self.batches = list(DataLoader(TensorDataset(inputs, targets), 16))
        self.num_read = 0

    def __iter__(self):
        for batch in self.batches:
            self.num_read += 1
            yield batch

    def __len__(self):
        return len(self.batches)


@pytest.mark.parametrize(
    ("inputs", "targets", "likelihood", "num_passes"),
    [
        (X, Y, Categorical(2), 1),
        (X.round().astype(np.int64), Y, Categorical(2), 1),
        (X, PRICES, None, 2),
    ],
    ids=["floating inputs", "integer inputs", "scale of the targets"],
)
def test_a_loader_is_read_as_often_as_necessary_before_training(inputs, targets, likelihood, num_passes):
    loader = CountingLoader(torch.as_tensor(inputs), torch.as_tensor(targets))
    fit(nn.Linear(3, 2), loader, MAP(), config={"epochs": 1}, likelihood=likelihood)
    assert loader.num_read == (num_passes + 1) * len(loader) + 1  # the first batch: are its labels names of classes?


def test_a_loader_without_batches_is_refused():
    with pytest.raises(ValueError, match="smaller than batch_size=64"):
        fit(nn.Linear(3, 2), DataLoader(DATASET, 64, drop_last=True), MAP(), config=OPTIONS)


def test_data_frames_are_matched_by_name():
    fitted = fit("MLP", (FRAME, Y), MAP(), config=OPTIONS)
    expected = fitted.predict(X).mean
    assert torch.equal(fitted.predict(FRAME[["c", "a", "b"]].assign(extra=1.0)).mean, expected)
    with pytest.raises(ValueError, match="lacks: b"):
        fitted.predict(FRAME[["a", "c"]])


def test_a_data_frame_of_validation_examples_is_matched_by_name():
    config, values = OPTIONS | {"validate_every_n_epochs": 1}, []
    for frame in (FRAME, FRAME[["c", "b", "a"]].assign(word="x")):
        history = History()
        fit("MLP", (FRAME, Y), MAP(), config=config, val=(frame, Y), callback=history)
        values.append([record["val_nll"] for record in history.records])
    assert values[0] == values[1]
    with pytest.raises(ValueError, match="lacks: a. It has z, b, c"):
        fit("MLP", (FRAME, Y), MAP(), config=OPTIONS, val=(FRAME.rename(columns={"a": "z"}), Y))


def test_columns_that_are_numbered_are_matched_by_name():
    frame = pd.DataFrame(X)
    fitted = fit("MLP", (frame, Y), MAP(), config=OPTIONS)
    expected = fitted.predict(X).mean
    assert torch.equal(fitted.predict(frame[[2, 1, 0]]).mean, expected)
    assert torch.equal(fitted.predict(FRAME).mean, expected)  # the names of arrays are these numbers too


def test_several_targets_in_a_data_frame_are_matched_by_name():
    targets = pd.DataFrame({"u": PRICES, "v": PRICES[::-1] * 7})
    fitted = fit("MLP", (FRAME, targets), MAP(), config=OPTIONS)
    expected = evaluate(fitted, FRAME, targets).metrics
    assert evaluate(fitted, (FRAME, targets[["v", "u"]])).metrics == expected
    conformal = [conformalize(fitted, FRAME, frame).predictor.thresholds for frame in (targets, targets[["v", "u"]])]
    assert conformal[0] == conformal[1]
    with pytest.raises(ValueError, match="lacks: v"):
        evaluate(fitted, FRAME, targets.rename(columns={"v": "w"}))
    fitted = fit("MLP", (X, targets.to_numpy()), MAP(), config=OPTIONS)
    assert evaluate(fitted, FRAME, targets).metrics == evaluate(fitted, X, targets.to_numpy()).metrics


def test_names_of_classes_are_labels_of_an_evaluation():
    fitted = fit("MLP", (X, NAMES), MAP(), config=OPTIONS)
    assert evaluate(fitted, X, NAMES).metrics == evaluate(fitted, X, Y).metrics
    with pytest.raises(ValueError, match="'cow' is not the name of a class of the training: 'cat', 'dog'"):
        evaluate(fitted, X, np.where(Y == 0, "cow", "dog"))


def test_unlabelled_examples_of_a_loader_are_left_out():
    fitted = fit(nn.Linear(3, 2), DataLoader(DATASET, 16), MAP(), config=OPTIONS)
    labels = np.where(np.arange(48) % 3 == 0, -100, Y)
    loader = DataLoader(TensorDataset(torch.as_tensor(X), torch.as_tensor(labels)), 10)
    assert evaluate(fitted, loader).metrics == evaluate(fitted, X[labels >= 0], Y[labels >= 0]).metrics


@pytest.mark.parametrize(
    "data", [Digits(train_size=32).load(0), X, "digits", Arrays(X, Y)], ids=lambda d: type(d).__name__
)
def test_an_evaluation_without_targets_says_what_to_pass(data):
    fitted = fit("MLP", (X, Y), MAP(), config=OPTIONS)
    with pytest.raises(TypeError, match=r"evaluate\(fitted, "):
        evaluate(fitted, data)


def test_unlabelled_examples_of_several_inputs_are_left_out():
    fitted = fit(TwoInputs(), DataLoader(Dictionaries(), 16), MAP(), config=OPTIONS)
    labels = np.where(np.arange(48) % 3 == 0, -100, Y)
    rows = labels >= 0

    def make_inputs(features):
        return {"first": torch.as_tensor(features[:, :2]), "second": torch.as_tensor(features[:, 2:])}

    expected = evaluate(fitted, make_inputs(X[rows]), Y[rows]).metrics
    assert evaluate(fitted, make_inputs(X), labels).metrics == pytest.approx(expected)
