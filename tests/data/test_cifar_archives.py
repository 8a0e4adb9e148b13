"""The original archives of CIFAR, written byte by byte as they are published."""

import hashlib
import io
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch

from flatbayes.data import CIFAR10, CIFAR100, cifar10, cifar100
from flatbayes.data.pickled_arrays import PickledArrays

FINE = [f"fine{label}" for label in range(4)]
COARSE = ["big", "small"]


def images(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)


def word(text):
    return b"U" + bytes([len(text)]) + text.encode()


def numbers(values):
    return b"]q\x05(" + b"".join(b"K" + bytes([value]) for value in values) + b"e"


def pickled(pixels, **labels):
    """As Python 2 wrote the batches: a dictionary of lists, and of an array whose bytes are one string."""
    content = pixels.tobytes()
    rows = b"M" + len(pixels).to_bytes(2, "little")
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85q\tU\x01bq\n\x87q\x0bRq\x0c(K\x01"
        + rows
        + b"M\x00\x0c\x86q\rcnumpy\ndtype\nq\x0eU\x02u1q\x0fK\x00K\x01\x87q\x10Rq\x11(K\x03U\x01|q\x12NNN"
        + b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x13b\x89T"
        + len(content).to_bytes(4, "little")
        + content
        + b"q\x14tq\x15b"
    )
    lists = b"".join(word(key) + b"q\x04" + numbers(values) for key, values in labels.items())
    return (
        b"\x80\x02}q\x01("
        + word("batch_label")
        + b"q\x02"
        + word("batch 1")
        + b"q\x03"
        + lists
        + word("data")
        + array
        + b"u."
    )


def pickled_words(**lists):
    inner = b"".join(
        word(key) + b"]q\x02(" + b"".join(word(w) + b"q\x03" for w in words) + b"e" for key, words in lists.items()
    )
    return b"\x80\x02}q\x01(" + inner + b"u."


def write_tar(path, folder, files):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return hashlib.md5(path.read_bytes()).hexdigest()


def ten(kind):
    """Files of CIFAR-10 with two images in each batch, images and labels of the training part."""
    parts = [images(2, seed) for seed in range(6)]
    labels = [[seed, 9 - seed] for seed in range(6)]
    if kind == "binary":
        contents = [
            b"".join(bytes([label]) + image.tobytes() for label, image in zip(some, part, strict=True))
            for some, part in zip(labels, parts, strict=True)
        ]
    else:
        contents = [pickled(part, labels=some) for some, part in zip(labels, parts, strict=True)]
    archive = cifar10.BINARY if kind == "binary" else cifar10.PYTHON
    files = dict(zip(archive.files, contents, strict=True))
    return files, np.concatenate(parts[:5]), [label for some in labels[:5] for label in some]


def hundred(kind):
    parts = {"train": (images(4), [0, 1, 2, 3], [0, 1, 0, 1]), "test": (images(2, 1), [3, 0], [1, 0])}
    if kind == "binary":
        files = {
            f"{name}.bin": b"".join(bytes([c, f]) + i.tobytes() for i, f, c in zip(*part, strict=True))
            for name, part in parts.items()
        }
        files |= {"fine_label_names.txt": "\n".join(FINE).encode() + b"\n", "coarse_label_names.txt": b"big\nsmall\n"}
    else:
        files = {name: pickled(i, coarse_labels=c, fine_labels=f) for name, (i, f, c) in parts.items()}
        files["meta"] = pickled_words(fine_label_names=FINE, coarse_label_names=COARSE)
    return files, *parts["train"]


def place(folder, archive, files, packed, monkeypatch, module, name):
    folder.mkdir(exist_ok=True)
    if packed:
        found = write_tar(folder / archive.name, archive.folder, files)
        monkeypatch.setattr(module, name, replace(archive, md5=found))
        return folder / archive.name
    (folder / archive.folder).mkdir()
    for file, content in files.items():
        (folder / archive.folder / file).write_bytes(content)
    return folder / archive.folder


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("kind", ["binary", "python"])
def test_cifar10(tmp_path, kind, packed, monkeypatch):
    files, pixels, labels = ten(kind)
    name = kind.upper()
    place(tmp_path, getattr(cifar10, name), files, packed, monkeypatch, cifar10, name)
    raw = CIFAR10(root=str(tmp_path)).read()
    assert raw.class_names == cifar10.CIFAR10_CLASS_NAMES
    assert torch.equal(raw.unsplit.inputs, torch.from_numpy(pixels))
    assert raw.unsplit.targets.tolist() == labels
    assert raw.test.targets.tolist() == [5, 4]
    assert raw.test.inputs.shape == (2, 3, 32, 32)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("kind", ["binary", "python"])
def test_cifar100(tmp_path, kind, packed, monkeypatch):
    files, pixels, fine, coarse = hundred(kind)
    name = kind.upper()
    place(tmp_path, getattr(cifar100, name), files, packed, monkeypatch, cifar100, name)
    raw = CIFAR100(root=str(tmp_path)).read()
    assert raw.class_names == tuple(FINE)
    assert torch.equal(raw.unsplit.inputs, torch.from_numpy(pixels))
    assert raw.unsplit.targets.tolist() == fine
    assert raw.test.targets.tolist() == [3, 0]
    groups = CIFAR100(root=str(tmp_path), labels="coarse").read()
    assert groups.class_names == tuple(COARSE)
    assert groups.unsplit.targets.tolist() == coarse


def test_cifar100_from_parquet(tmp_path, png, pixels):
    import pyarrow as pa
    import pyarrow.parquet as pq

    for part, count in (("train", 4), ("test", 2)):
        column = [{"bytes": png(image), "path": None} for image in pixels(count, 32, 32)]
        table = pa.table({"img": column, "fine_label": [0, 1, 2, 3][:count], "coarse_label": [1, 0, 1, 0][:count]})
        pq.write_table(table, tmp_path / f"{part}.parquet")
    assert CIFAR100(root=str(tmp_path)).read().unsplit.targets.tolist() == [0, 1, 2, 3]
    assert CIFAR100(root=str(tmp_path), labels="coarse").read().test.targets.tolist() == [1, 0]


def test_nothing_in_a_pickle_is_run(tmp_path):
    # A pickle that would create a file, were it loaded.
    target = tmp_path / "made"
    bad = b"\x80\x02cbuiltins\nopen\n(" + word(str(target)) + word("w") + b"tR0" + pickled(images(1), labels=[3])[2:]
    assert PickledArrays(bad, "batch").numbers("labels") == [3]
    assert not target.exists()


def test_a_wrong_checksum_says_what_to_do(tmp_path):
    files, *_ = ten("binary")
    write_tar(tmp_path / "cifar-10-binary.tar.gz", "cifar-10-batches-bin", files)
    with pytest.raises(ValueError, match=r"cifar-10-binary.tar.gz has the MD5 checksum .*download it again"):
        CIFAR10(root=str(tmp_path)).read()


def test_a_truncated_archive_is_named(tmp_path, monkeypatch, truncate):
    files, *_ = ten("binary")
    path = place(tmp_path, cifar10.BINARY, files, True, monkeypatch, cifar10, "BINARY")
    truncate(path)
    found = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setattr(cifar10, "BINARY", replace(cifar10.BINARY, md5=found))
    with pytest.raises(ValueError, match=r"cifar-10-binary.tar.gz is damaged"):
        CIFAR10(root=str(tmp_path)).read()


def test_an_archive_without_a_file_is_named(tmp_path, monkeypatch):
    files, *_ = ten("binary")
    del files["data_batch_3.bin"]
    place(tmp_path, cifar10.BINARY, files, True, monkeypatch, cifar10, "BINARY")
    with pytest.raises(ValueError, match=r"cifar-10-binary.tar.gz lacks \['data_batch_3.bin'\]"):
        CIFAR10(root=str(tmp_path)).read()


def test_a_missing_file_is_named(tmp_path, monkeypatch):
    files, *_ = ten("python")
    place(tmp_path, cifar10.PYTHON, files, False, monkeypatch, cifar10, "PYTHON")
    (tmp_path / cifar10.PYTHON.folder / "data_batch_2").unlink()
    with pytest.raises(FileNotFoundError, match=r"no file .*data_batch_2"):
        CIFAR10(root=str(tmp_path)).read()


@pytest.mark.parametrize("kind", ["binary", "python"])
def test_a_truncated_file_is_named(tmp_path, kind, monkeypatch, truncate):
    files, *_ = ten(kind)
    archive = getattr(cifar10, kind.upper())
    place(tmp_path, archive, files, False, monkeypatch, cifar10, kind.upper())
    truncate(tmp_path / archive.folder / archive.files[0])
    with pytest.raises(ValueError, match=r"data_batch_1(.bin)? (is damaged|has \d+ bytes)"):
        CIFAR10(root=str(tmp_path)).read()


def test_labels_that_are_missing_are_named(tmp_path, monkeypatch):
    files, *_ = hundred("python")
    files["train"] = pickled(images(4), fine_labels=[0, 1, 2])
    place(tmp_path, cifar100.PYTHON, files, False, monkeypatch, cifar100, "PYTHON")
    with pytest.raises(ValueError, match=r"train has 3 labels and 12288 bytes of pixels"):
        CIFAR100(root=str(tmp_path)).read()
    with pytest.raises(ValueError, match=r"train has nothing called 'coarse_labels'"):
        CIFAR100(root=str(tmp_path), labels="coarse").read()


def test_wrong_labels_are_refused():
    with pytest.raises(ValueError, match="labels must be fine or coarse, got 'both'"):
        CIFAR100(root="anywhere", labels="both").read()
