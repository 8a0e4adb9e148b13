import torch

from flatbayes.data import Digits


def test_digits_are_the_real_ones():
    raw = Digits().read()
    assert raw.unsplit.inputs.shape == (1797, 1, 8, 8)
    assert raw.unsplit.inputs.dtype == torch.uint8
    assert (int(raw.unsplit.inputs.min()), int(raw.unsplit.inputs.max())) == (0, 16)
    assert raw.unsplit.targets.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert raw.class_names == tuple("0123456789")


def test_they_split_as_asked():
    loaded = Digits(train_size=500, test_size=300, val_size=0.1).load(0)
    assert (len(loaded.train), len(loaded.val), len(loaded.test)) == (500, 150, 300)
    assert loaded.input_shape == (1, 8, 8)
    assert loaded.num_classes == 10
