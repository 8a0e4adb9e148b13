import hashlib

import huggingface_hub
import numpy as np
import pytest
import torch
from scipy.io import savemat

from flatbayes.data import SVHN, svhn


@pytest.fixture
def write(tmp_path, monkeypatch):
    def make(name, count, seed=0, **arrays):
        images = np.random.default_rng(seed).integers(0, 256, (32, 32, 3, count), dtype=np.uint8)
        labels = (1 + np.arange(count) % 10).astype(np.uint8)[:, None]  # the digit 0 is called 10
        path = tmp_path / name
        savemat(path, {"X": images, "y": labels} | arrays)
        monkeypatch.setitem(svhn.MD5, name, hashlib.md5(path.read_bytes()).hexdigest())
        return images

    return make


def test_mat_files(tmp_path, write):
    images = write("train_32x32.mat", 20)
    write("test_32x32.mat", 10, 1)
    raw = SVHN(root=str(tmp_path)).read()
    assert torch.equal(raw.unsplit.inputs[3], torch.from_numpy(images[..., 3]).permute(2, 0, 1))
    assert raw.unsplit.targets.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0] * 2
    assert len(raw.test) == 10
    with pytest.raises(FileNotFoundError, match=r"no file .*extra_32x32.mat"):
        SVHN(root=str(tmp_path), extra=True).read()
    write("extra_32x32.mat", 30, 2)
    assert len(SVHN(root=str(tmp_path), extra=True).read().unsplit) == 50


def test_bad_files_are_named(tmp_path, write, monkeypatch):
    write("test_32x32.mat", 10, 1)
    with pytest.raises(FileNotFoundError, match=r"no file .*train_32x32.mat"):
        SVHN(root=str(tmp_path)).read()
    write("train_32x32.mat", 20, y=np.zeros((3, 1), np.uint8))
    with pytest.raises(ValueError, match=r"train_32x32.mat must hold X, .* 3 labels"):
        SVHN(root=str(tmp_path)).read()
    (tmp_path / "train_32x32.mat").write_bytes(b"short")
    with pytest.raises(ValueError, match=r"train_32x32.mat has the MD5 checksum"):
        SVHN(root=str(tmp_path)).read()
    monkeypatch.setitem(svhn.MD5, "train_32x32.mat", hashlib.md5(b"short").hexdigest())
    with pytest.raises(ValueError, match=r"train_32x32.mat cannot be read as a file of MATLAB 5"):
        SVHN(root=str(tmp_path)).read()


def test_parquet_files_of_the_hub(tmp_path, write_parquet, pixels, monkeypatch):
    folder = tmp_path / "cropped_digits"
    write_parquet(folder / "train.parquet", pixels(20), list(range(10)) * 2, image="image")
    write_parquet(folder / "test.parquet", pixels(10), list(range(10)), image="image")
    write_parquet(tmp_path / "full_numbers" / "train.parquet", pixels(10), list(range(10)), image="image")
    monkeypatch.delenv("FLATBAYES_DATA", raising=False)
    asked = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **more: asked.append((name, more)) or str(tmp_path)
    )
    assert len(SVHN().read().unsplit) == 20
    assert asked[0][0] == "ufldl-stanford/svhn"
    assert asked[0][1]["allow_patterns"] == "cropped_digits/*.parquet"
    with pytest.raises(ValueError, match="extra is read from extra_32x32.mat"):
        SVHN(extra=True).read()
