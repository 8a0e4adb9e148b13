import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes, load_digits

from flatbayes.data import Diabetes, Digits, sklearn_datasets


def test_files_are_those_that_scikit_learn_reads():
    digits, diabetes = Digits().read(), Diabetes().read()
    images, labels = load_digits(return_X_y=True)
    assert np.array_equal(digits.unsplit.inputs.flatten(1).numpy(), images)
    assert np.array_equal(digits.unsplit.targets.numpy(), labels)
    expected = load_diabetes(scaled=False)
    assert np.array_equal(diabetes.unsplit.inputs.numpy(), expected.data)
    assert np.array_equal(diabetes.unsplit.targets.numpy(), expected.target)
    assert diabetes.feature_names == tuple(expected.feature_names)


def test_a_missing_file_is_an_error(monkeypatch):
    with pytest.raises(ImportError, match=r"none\.csv of scikit-learn is missing"):
        sklearn_datasets.read_bundled_table("none.csv")
    monkeypatch.setattr(sklearn_datasets, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install scikit-learn"):
        Digits().read()


def test_digits_are_the_published_images():
    raw = Digits().read()
    assert raw.unsplit.inputs.shape == (1797, 1, 8, 8)
    assert raw.unsplit.inputs.dtype == torch.uint8
    assert (int(raw.unsplit.inputs.min()), int(raw.unsplit.inputs.max())) == (0, 16)
    assert raw.unsplit.targets.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert raw.class_names == tuple("0123456789")


def test_digits_splits_have_the_requested_sizes():
    splits = Digits(train_size=500, test_size=300, val_size=0.1).load(0)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (500, 150, 300)
    assert splits.input_shape == (1, 8, 8)
    assert splits.num_classes == 10


def test_diabetes_has_the_published_patients():
    raw = Diabetes().read()
    assert raw.unsplit.inputs.shape == (442, 10)
    assert raw.feature_names[:4] == ("age", "sex", "bmi", "bp")
    assert raw.target_names == ("progression",)
    assert raw.unsplit.targets.dtype == torch.float64
    assert (raw.unsplit.targets.min(), raw.unsplit.targets.max()) == (25, 346)
    assert raw.unsplit.inputs[0, :2].tolist() == [59, 2]  # years, not standard deviations


def test_diabetes_splits_have_the_requested_sizes():
    splits = Diabetes(train_size=200).load(0)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (200, 71, 88)
    assert splits.is_regression
    assert torch.equal(splits.test.targets, Diabetes().load(1).test.targets)
