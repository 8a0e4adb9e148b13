import torch

from flatbayes.data import Diabetes


def test_the_patients_are_the_real_ones():
    raw = Diabetes().read()
    assert raw.unsplit.inputs.shape == (442, 10)
    assert raw.feature_names[:4] == ("age", "sex", "bmi", "bp")
    assert raw.target_names == ("progression",)
    assert raw.unsplit.targets.dtype == torch.float32
    assert (raw.unsplit.targets.min(), raw.unsplit.targets.max()) == (25, 346)
    assert raw.unsplit.inputs[0, :2].tolist() == [59, 2]  # years, not standard deviations


def test_they_split_as_asked():
    loaded = Diabetes(train_size=200).load(0)
    assert (len(loaded.train), len(loaded.val), len(loaded.test)) == (200, 71, 88)
    assert loaded.is_regression
    assert torch.equal(loaded.test.targets, Diabetes().load(1).test.targets)
