"""Data frames, lists and series in every function that takes labelled examples."""

import warnings
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from flatbayes import MLP, Arrays, calibrate, check, conformalize, distill, evaluate, fit, fit_together
from flatbayes.certification import CertificationConfig, certify
from flatbayes.data import DataWarning, Digits, Table
from flatbayes.diagnostics import (
    SharpnessConfig,
    compare_sharpness,
    compute_draw_slices,
    compute_solution_plane,
    measure_posterior_sharpness,
)
from flatbayes.experiments import compare
from flatbayes.flatness import Plain
from flatbayes.posteriors import MAP
from flatbayes.prediction import evaluate_ood, evaluate_recalibration
from flatbayes.training import TrainingConfig, fit_cross_conformal

pytestmark = pytest.mark.filterwarnings("ignore:The temperature is 100, an end of its range")  # labels are noise

RNG = np.random.default_rng(0)
FRAME = pd.DataFrame(RNG.normal(size=(48, 2)), columns=["a", "b"])
NAMES = pd.Series(["cat", "dog"] * 24)
CODES = pd.Series([0, 1] * 24)
CONFIG = TrainingConfig(epochs=1, num_validations=0)
SHARPNESS = SharpnessConfig(ascent_steps=1, num_random_starts=0, num_directions=2)
CERTIFICATION = CertificationConfig(prior_stds=(0.03,), epochs=1, num_draws=5, num_test_draws=3, num_trial_draws=3)
SMALL = partial(MLP, hidden=(4,))

USES = {
    "evaluate": lambda fitted, x, y: evaluate(fitted, (x, y)).metrics["nll"],
    "evaluate with targets": lambda fitted, x, y: evaluate(fitted, x, y).metrics["nll"],
    "check": lambda fitted, x, y: check(fitted, (x, y)).findings,
    "calibrate": lambda fitted, x, y: calibrate(fitted, (x, y)).calibration,
    "conformalize": lambda fitted, x, y: conformalize(fitted, (x, y)).predictor.thresholds,
    "recalibration": lambda fitted, x, y: evaluate_recalibration(fitted, (x, y), (x, y)).temperature,
    "sharpness": lambda fitted, x, y: compare_sharpness({"a": fitted}, (x, y), None, SHARPNESS, 1)["a"].rows,
    "sharpness of one": lambda fitted, x, y: measure_posterior_sharpness(fitted, x, y, SHARPNESS, 1).rows,
    "slices": lambda fitted, x, y: compute_draw_slices({"a": fitted}, (x, y), num_slices=2, num_steps=3)["a"],
    "plane": lambda fitted, x, y: compute_solution_plane({"a": fitted}, (x, y), num_draws=1, num_steps=3).losses,
    "fit": lambda fitted, x, y: fit(SMALL, (x, y), MAP(), config=CONFIG).predict(x).mean.tolist(),
    "fit with val": lambda fitted, x, y: (
        fit(SMALL, (x, y), MAP(), config=CONFIG, val=(x, y)).predict(x).mean.tolist()
    ),
    "fit_together": lambda fitted, x, y: (
        fit_together(SMALL, (x, y), [MAP()], config=CONFIG)[0].predict(x).mean.tolist()
    ),
    "fit_cross_conformal": lambda fitted, x, y: fit_cross_conformal(
        SMALL, (x, y), MAP(), Plain(), CONFIG, num_folds=2
    ).evaluate((x, y)),
    "certify": lambda fitted, x, y: certify(SMALL, (x, y), Plain(), CONFIG, CERTIFICATION).error.bound,
    "compare": lambda fitted, x, y: [
        run.metrics
        for run in compare(SMALL, (x, y), [MAP()], config=CONFIG, num_seeds=1, num_draws=1, num_jobs=1).runs
    ],
}


@pytest.fixture(scope="module")
def fitted():
    return fit(SMALL, (FRAME, NAMES), MAP(), config=CONFIG)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A posterior of a table with words and missing numbers, its splits, and the rows as a data frame."""
    frame = FRAME.assign(city=["Oslo", "Rome", "Bonn"] * 16, y=NAMES)
    frame.loc[::7, "a"] = np.nan
    path = tmp_path_factory.mktemp("table") / "t.csv"
    frame.to_csv(path, index=False)
    with pytest.warns(DataWarning, match="become a feature"):
        splits = Table(path=str(path), target="y").load(0)
    return fit(SMALL, splits, MAP(), config=CONFIG), splits, frame.drop(columns="y")


@pytest.mark.parametrize("name", USES)
def test_lists_and_series_are_targets_everywhere(fitted, name):
    use = USES[name]
    expected = use(fitted, FRAME, NAMES)
    for labels in ([*NAMES], NAMES.to_numpy(), NAMES.astype("category"), NAMES.to_frame()):
        assert repr(use(fitted, FRAME, labels)) == repr(expected)


@pytest.mark.parametrize("name", USES)
def test_row_labels_are_compared_everywhere(fitted, name):
    use, shuffled = USES[name], NAMES.sample(frac=1, random_state=0)
    with pytest.raises(ValueError, match=r"same row labels \(index\) in another order"):
        use(fitted, FRAME, shuffled)
    with pytest.warns(DataWarning, match=r"different row labels \(index\)"):
        use(fitted, FRAME, NAMES.set_axis(NAMES.index + 5))


@pytest.mark.parametrize("name", USES)
@pytest.mark.parametrize("value", [np.nan, None, pd.NA, ""], ids=repr)
def test_missing_labels_are_refused_everywhere(fitted, name, value):
    labels = NAMES.astype(object)
    labels[7] = value
    with pytest.raises(ValueError, match=r"1 of 48 labels is missing, the first \(.*\) in row 7"):
        USES[name](fitted, FRAME, labels)


@pytest.mark.parametrize("name", ["evaluate", "calibrate", "conformalize"])
def test_missing_numbers_of_classes_are_refused(fitted, name):
    for codes in (CODES.where(CODES.index != 3), CODES.astype("Int64").mask(CODES.index == 3)):
        with pytest.raises(ValueError, match=r"1 label is missing or not finite, the first \(nan\) for example 3"):
            USES[name](fitted, FRAME, codes)
        with pytest.raises(ValueError, match=r"1 value is missing, the first in row 3 .* leave out those examples"):
            fit(SMALL, (FRAME, codes), MAP(), config=CONFIG)


@pytest.mark.parametrize("name", USES)
def test_targets_that_are_none_are_refused_everywhere(fitted, name):
    if name in ("evaluate with targets", "sharpness of one"):
        pytest.skip("without targets the first argument is a data set")
    with pytest.raises(TypeError, match="one target for each example, got a NoneType: None"):
        USES[name](fitted, FRAME, None)


def test_groups_have_the_row_labels_of_the_inputs(fitted):
    groups = pd.Series(["u", "v"] * 24)
    conformal = conformalize(fitted, FRAME, NAMES, groups=groups, level=0.8)
    shuffled = groups.sample(frac=1, random_state=0)
    for use in (
        lambda: conformal.predict(FRAME, shuffled),
        lambda: conformal.evaluate((FRAME, NAMES), groups=shuffled),
        lambda: conformal.evaluate(FRAME, NAMES, shuffled),
        lambda: conformalize(fitted, FRAME, NAMES, groups=shuffled, level=0.8),
    ):
        with pytest.raises(ValueError, match="Inputs and groups have the same row labels"):
            use()


def test_unseen_categories_are_noted_once_for_each_prediction(table):
    fitted, _, frame = table
    new = frame.replace("Oslo", "Rom")
    for use in (fitted.predict, fitted.measure_input_distance, lambda x: evaluate(fitted, x, NAMES)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            use(new)
        [warning] = caught
        assert "Column 'city' of the data frame has the category 'Rom', which the training" in str(warning.message)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fitted.predict(new)
    assert caught[0].filename == __file__


def test_frames_of_a_table_are_inputs_of_every_function(table):
    fitted, splits, frame = table
    features = torch.cat([splits.train.inputs, splits.val.inputs, splits.test.inputs])
    assert torch.allclose(fitted.predict(frame).mean.sum(), fitted.predict(features).mean.sum())
    students = [distill(fitted, SMALL, frame, CONFIG, Plain()), distill(fitted, SMALL, frame, CONFIG, Plain())]
    assert torch.equal(students[0](features)["mean"], students[1](features)["mean"])
    ood = evaluate_ood(fitted, frame, frame)
    assert (ood.num_test, ood.num_ood) == (48, 48)
    assert measure_posterior_sharpness(fitted, frame, NAMES, SHARPNESS, 1).rows[0].mean < 10
    array = features[:5].numpy()
    for use in (fitted.compile(1), lambda x: fitted.compile(1).forward(x)):
        with pytest.raises(TypeError, match=r"raw inputs as a tensor, \[n, ...\], got a ndarray"):
            use(array)


def test_sharpness_of_batches_says_what_to_pass(fitted):
    batches = [(torch.zeros(3, 2), torch.zeros(3).long())]
    with pytest.raises(TypeError, match="needed all at once, and a list is read in parts"):
        measure_posterior_sharpness(fitted, batches)
    with pytest.raises(TypeError, match="A DataFrame holds no targets"):
        measure_posterior_sharpness(fitted, FRAME)


def test_certificates_take_what_comparisons_take():
    data = Arrays(FRAME, NAMES)
    expected = certify(SMALL, data.load(0), Plain(), CONFIG, CERTIFICATION)
    assert certify(SMALL, data, Plain(), CONFIG, CERTIFICATION) == expected
    with pytest.raises(TypeError, match="Data are a path, a pair"):
        certify(SMALL, FRAME, Plain(), CONFIG, CERTIFICATION)
    with pytest.raises(ValueError, match="Certificates exist for classification only"):
        certify(SMALL, (FRAME, FRAME["a"]), Plain(), CONFIG, CERTIFICATION)


def test_series_are_targets_of_inputs_in_a_dictionary():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 2)

        def forward(self, x):
            return self.linear(x)

    inputs = {"x": torch.tensor(FRAME.to_numpy(), dtype=torch.float32)}
    fitted = fit(Net(), (inputs, CODES), MAP(), config=CONFIG)
    assert evaluate(fitted, (inputs, CODES)).metrics == evaluate(fitted, (inputs, [*CODES])).metrics
    named = fit(Net(), (inputs, NAMES), MAP(), config=CONFIG)
    assert evaluate(named, (inputs, NAMES)).metrics == evaluate(named, (inputs, [*NAMES])).metrics


@pytest.mark.parametrize("split", ["val", "test"])
def test_classes_without_training_examples_are_noted(split):
    labels = NAMES.where(NAMES.index > 5, "dog ")
    messages = "Classes differ only in spaces"
    source = Arrays(FRAME, NAMES, **{split: (FRAME[:6], labels[:6])})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", messages)
        splits = source.load(0)
    owner = {"val": "validation", "test": "test"}[split]
    message = f"1 of the 3 classes has no training example, but some among the {owner} examples, .*: 'dog '"
    with pytest.warns(DataWarning, match=message):
        fit(SMALL, splits, MAP(), config=CONFIG)
    if split == "val":
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", messages)
            with pytest.warns(DataWarning, match=message):
                fit(SMALL, (FRAME, NAMES), MAP(), config=CONFIG, val=(FRAME[:6], labels[:6]))


def test_classes_without_any_example_say_nothing():
    fit(SMALL, Digits(train_size=200).load(0), MAP(), config=CONFIG)


def test_nested_lists_say_what_to_pass(fitted):
    with pytest.raises(ValueError, match=r"got a float. Make an array of a nested list, numpy.asarray\(inputs\)"):
        fitted.predict(FRAME.to_numpy().tolist())
    with pytest.raises(ValueError, match="is an array of the type <U1, and inputs of a network are numbers"):
        fitted.predict(np.array([["x", "y"]]))
