"""Data frames in the estimators: their columns, row labels, and missing labels."""

import numpy as np
import pandas as pd
import pytest

from flatbayes import evaluate
from flatbayes.data import DataWarning
from flatbayes.estimators import FlatBayesClassifier, FlatBayesRegressor
from flatbayes.posteriors import MAP

FRAME = pd.DataFrame(np.random.default_rng(0).normal(size=(40, 2)), columns=["a", "b"])
NAMES = pd.Series(["cat", "dog"] * 20)
ESTIMATORS = [
    (FlatBayesClassifier(MAP(), hidden=(4,), epochs=1, random_state=0), NAMES),
    (FlatBayesRegressor(MAP(), hidden=(4,), epochs=1, random_state=0), FRAME["a"] + 1),
]


@pytest.mark.parametrize(("estimator", "y"), ESTIMATORS, ids=["classifier", "regressor"])
def test_row_labels_are_compared(estimator, y):
    with pytest.raises(
        ValueError, match=r"X and y have the same row labels .* y.loc\[X.index\]; .* pass y.to_numpy\(\)"
    ):
        estimator.fit(FRAME, y.sample(frac=1, random_state=0))
    with pytest.warns(DataWarning, match="X and y have different row labels"):
        estimator.fit(FRAME, y.set_axis(y.index + 1))


@pytest.mark.parametrize(
    "values", [pd.date_range("2020", periods=40), ["u", "v"] * 20, pd.Categorical(["u", "v"] * 20)]
)
@pytest.mark.parametrize(("estimator", "y"), ESTIMATORS, ids=["classifier", "regressor"])
def test_columns_that_are_no_numbers_are_named(estimator, y, values):
    message = "Column 'b' of the data frame X must hold numbers, and 40 of its 40 values are not numbers"
    with pytest.raises(ValueError, match=message):
        estimator.fit(FRAME.assign(b=values), y)
    estimator.fit(FRAME, y)
    with pytest.raises(ValueError, match=message):
        estimator.predict(FRAME.assign(b=values))
    assert estimator.fit(FRAME.astype(object), y).predict(FRAME.astype(str)).shape == (40,)


@pytest.mark.parametrize("value", [None, pd.NA, np.nan], ids=repr)
@pytest.mark.parametrize("kind", [object, "string", "category"])
def test_missing_labels_are_located(value, kind):
    labels = NAMES.astype(object)
    labels[3] = value
    with pytest.raises(ValueError, match=r"1 label is missing, the first \(.*\) in row 3"):
        ESTIMATORS[0][0].fit(FRAME, labels.astype(kind))


@pytest.mark.parametrize(("hidden", "example"), [(8, r"\(8,\)"), ("8", r"\(64, 64\)"), ((8.5,), r"\(64, 64\)")])
def test_hidden_is_a_sequence_of_whole_numbers(hidden, example):
    with pytest.raises(TypeError, match=f"hidden has the units of each hidden layer, such as {example}; got "):
        FlatBayesClassifier(MAP(), hidden=hidden, epochs=1).fit(FRAME, NAMES)


def test_hidden_may_be_a_list_or_an_array():
    estimators = [FlatBayesClassifier(MAP(), hidden=h, epochs=1, random_state=0) for h in ((4,), [4], np.array([4]))]
    first, *others = (estimator.fit(FRAME, NAMES).predict_proba(FRAME) for estimator in estimators)
    assert all(np.array_equal(first, other) for other in others)


def test_columns_of_targets_are_their_names():
    targets = pd.DataFrame(np.random.default_rng(1).normal(size=(40, 2)), columns=["u", "v"])
    estimator = FlatBayesRegressor(MAP(), hidden=(4,), epochs=1, random_state=0).fit(FRAME, targets)
    fitted = estimator.posterior_
    assert fitted.info["target_names"] == ["u", "v"]
    expected = evaluate(fitted, (FRAME, targets.to_numpy())).metrics
    assert evaluate(fitted, (FRAME, targets[["v", "u"]])).metrics == expected
    assert np.array_equal(estimator.fit(FRAME, targets.to_numpy()).predict(FRAME), fitted.predict(FRAME).mean.numpy())
    with pytest.raises(ValueError, match=r"data frame y has several columns of the same name: \['u'\]"):
        estimator.fit(FRAME, targets.set_axis(["u", "u"], axis=1))
