import torch

from flatbayes.data import Diabetes, Digits


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
