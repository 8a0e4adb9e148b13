import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from flatbayes.data import STL10, stl10


@pytest.fixture
def folder(tmp_path):
    inner = tmp_path / "stl10_binary"
    inner.mkdir()
    for part, count in (("train", 20), ("test", 10)):
        images = np.random.default_rng(count).integers(0, 256, (count, 3, 96, 96), dtype=np.uint8)
        (inner / f"{part}_X.bin").write_bytes(images.transpose(0, 1, 3, 2).tobytes())  # column by column
        (inner / f"{part}_y.bin").write_bytes(bytes(1 + i % 10 for i in range(count)))
    return tmp_path


def test_binary_files(folder):
    raw = STL10(root=str(folder)).read()
    images = np.random.default_rng(20).integers(0, 256, (20, 3, 96, 96), dtype=np.uint8)
    assert torch.equal(raw.unsplit.inputs, torch.from_numpy(images))
    assert raw.unsplit.targets.tolist() == list(range(10)) * 2
    assert raw.test.targets.tolist() == list(range(10))
    assert raw.class_names[2] == "car"


def test_the_archive(folder, tmp_path, monkeypatch):
    import tarfile

    packed = tmp_path / "packed"
    packed.mkdir()
    with tarfile.open(packed / "stl10_binary.tar.gz", "w:gz") as tar:
        tar.add(folder / "stl10_binary", "stl10_binary")
    found = hashlib.md5((packed / "stl10_binary.tar.gz").read_bytes()).hexdigest()
    monkeypatch.setattr(stl10, "ARCHIVE", replace(stl10.ARCHIVE, md5=found))
    one, other = STL10(root=str(packed)).read(), STL10(root=str(folder)).read()
    assert torch.equal(one.unsplit.inputs, other.unsplit.inputs)


def test_bad_files_are_named(folder, tmp_path, truncate):
    with pytest.raises(FileNotFoundError, match=r"neither stl10_binary.tar.gz nor stl10_binary in"):
        (tmp_path / "empty").mkdir()
        STL10(root=str(tmp_path / "empty")).read()
    (folder / "stl10_binary" / "train_y.bin").write_bytes(b"\x01")
    with pytest.raises(ValueError, match=r"train_X.bin.* 20 inputs and 1 labels"):
        STL10(root=str(folder)).read()
    truncate(folder / "stl10_binary" / "train_X.bin", 0.51)
    with pytest.raises(ValueError, match=r"train_X.bin\) has \d+ bytes, which are no whole images"):
        STL10(root=str(folder)).read()
