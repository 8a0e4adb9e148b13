import gzip
import hashlib
import struct

import numpy as np
import pytest
import torch

from flatbayes.data import KMNIST, MNIST, FashionMNIST, mnist


def idx(array):
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def arrays():
    generator = np.random.default_rng(0)
    found = []
    for count in (20, 10):
        found.append(generator.integers(0, 256, (count, 28, 28), dtype=np.uint8))
        found.append((np.arange(count) % 10).astype(np.uint8))
    return found


@pytest.fixture
def folder(tmp_path):
    for name, array in zip(mnist.FILES, arrays(), strict=True):
        (tmp_path / name).write_bytes(idx(array))
    return tmp_path


@pytest.mark.parametrize(
    ("source", "names"), [(MNIST, ("0", "1")), (FashionMNIST, ("T-shirt/top", "Trouser")), (KMNIST, ("o", "ki"))]
)
def test_idx_files(folder, source, names):
    raw = source(root=str(folder)).read()
    images, labels, *_ = arrays()
    assert torch.equal(raw.unsplit.inputs, torch.from_numpy(images)[:, None])
    assert raw.unsplit.targets.tolist() == labels.tolist()
    assert len(raw.test) == 10
    assert raw.class_names[:2] == names
    assert source(root=str(folder), val_size=5).load(0).input_shape == (1, 28, 28)


def test_compressed_files_have_their_checksums(tmp_path, monkeypatch):
    inner = tmp_path / "MNIST" / "raw"  # where torchvision puts them
    inner.mkdir(parents=True)
    sums = []
    for name, array in zip(mnist.FILES, arrays(), strict=True):
        content = gzip.compress(idx(array))
        (inner / f"{name}.gz").write_bytes(content)
        sums.append(hashlib.md5(content).hexdigest())
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte.gz has the MD5 checksum"):
        MNIST(root=str(tmp_path)).read()
    monkeypatch.setitem(mnist.MD5, "MNIST", tuple(sums))
    assert MNIST(root=str(tmp_path)).read().test.targets.tolist() == list(range(10))
    cut = (inner / f"{mnist.FILES[3]}.gz").read_bytes()[:-12]
    (inner / f"{mnist.FILES[3]}.gz").write_bytes(cut)
    monkeypatch.setitem(mnist.MD5, "MNIST", (*sums[:3], hashlib.md5(cut).hexdigest()))
    with pytest.raises(ValueError, match=r"t10k-labels-idx1-ubyte.gz is damaged"):
        MNIST(root=str(tmp_path)).read()


def test_names_with_a_point_and_parquet_files(folder, tmp_path, write_parquet, pixels):
    for name in mnist.FILES:
        (folder / name).rename(folder / name.replace("-idx", ".idx"))
    assert len(MNIST(root=str(folder)).read().unsplit) == 20
    other = tmp_path / "other"
    grey = pixels(20, 28, 28)[..., 0]
    write_parquet(other / "train.parquet", grey, list(range(10)) * 2, image="image")
    write_parquet(other / "test.parquet", grey[:10], list(range(10)), image="image")
    loaded = FashionMNIST(root=str(other), val_size=4).load(0)
    assert loaded.input_shape == (1, 28, 28)
    assert loaded.class_names == mnist.CLOTHES


def test_bad_files_are_named(folder, truncate):
    (folder / mnist.FILES[1]).write_bytes(idx(np.zeros(3, np.uint8)))
    with pytest.raises(ValueError, match="train examples have 20 inputs and 3 labels"):
        MNIST(root=str(folder)).read()
    truncate(folder / mnist.FILES[0])
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte has \d+ bytes, .*\(20, 28, 28\) needs"):
        MNIST(root=str(folder)).read()
    (folder / mnist.FILES[0]).write_bytes(b"GIF89a")
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte is not an IDX file of bytes with 3 axes"):
        MNIST(root=str(folder)).read()
    (folder / mnist.FILES[0]).unlink()
    with pytest.raises(FileNotFoundError, match=r"no file .*train-images-idx3-ubyte"):
        MNIST(root=str(folder)).read()


def test_missing_folders(tmp_path, monkeypatch):
    monkeypatch.delenv("FLATBAYES_DATA", raising=False)
    with pytest.raises(ValueError, match=r"KMNIST is read from a folder of yours, and none is named. Set root"):
        KMNIST().read()
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere for MNIST.*neither to download"):
        MNIST(root=str(tmp_path / "nowhere")).read()
    with pytest.raises(FileNotFoundError, match=r"neither the files train-images-idx3-ubyte"):
        MNIST(root=str(tmp_path)).read()
