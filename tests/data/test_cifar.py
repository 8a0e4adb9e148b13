import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from flatbayes.data import CIFAR10, CIFAR100


@pytest.fixture
def folder(tmp_path, write_parquet, pixels):
    root = tmp_path / "cifar10"
    write_parquet(root / "train.parquet", pixels(40), list(range(10)) * 4)
    write_parquet(root / "test.parquet", pixels(10, seed=1), list(range(10)))
    return root


def test_a_folder_with_parquet_files(folder):
    splits = CIFAR10(root=str(folder), val_size=10).load(0)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (30, 10, 10)
    assert splits.class_names[:2] == ("airplane", "automobile")
    assert splits.test.targets.tolist() == list(range(10))
    assert (splits.augment.flip, splits.augment.pad) == (True, 4)


def test_the_environment_variable_names_the_parent_folder(folder, monkeypatch):
    monkeypatch.setenv("FLATBAYES_DATA", str(folder.parent))
    assert len(CIFAR10().read().unsplit) == 40


def test_without_a_folder_it_is_downloaded(folder, monkeypatch):
    monkeypatch.delenv("FLATBAYES_DATA", raising=False)
    requested_names = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **_: requested_names.append(name) or str(folder)
    )
    assert len(CIFAR10().read().unsplit) == 40
    assert requested_names == ["uoft-cs/cifar10"]


def test_a_missing_folder_says_what_to_set(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*nothing.*FLATBAYES_DATA"):
        CIFAR10(root=str(tmp_path / "nothing")).read()


def test_cifar100_has_fine_and_coarse_labels(tmp_path, png, pixels):
    for name, count in (("train", 4), ("test", 2)):
        column = [{"bytes": png(image), "path": None} for image in pixels(count, 32, 32)]
        table = pa.table({"img": column, "fine_label": [0, 1, 2, 3][:count], "coarse_label": [1, 0, 1, 0][:count]})
        pq.write_table(table, tmp_path / f"{name}.parquet")
    assert CIFAR100(root=str(tmp_path)).read().unsplit.targets.tolist() == [0, 1, 2, 3]
    assert CIFAR100(root=str(tmp_path), labels="coarse").read().test.targets.tolist() == [1, 0]
    with pytest.raises(ValueError, match="labels must be fine or coarse, got 'both'"):
        CIFAR100(root="anywhere", labels="both").read()


@pytest.mark.real_data
def test_the_published_images(real_data):
    raw = CIFAR10().read()
    assert (len(raw.unsplit), len(raw.test)) == (50_000, 10_000)
    assert raw.unsplit.targets.bincount().tolist() == [5000] * 10
    assert raw.test.targets.bincount().tolist() == [1000] * 10
    sample = raw.unsplit.take(torch.arange(0, 50_000, 100))
    assert sample.inputs.shape == (500, 3, 32, 32)
    assert sample.inputs.dtype == torch.uint8
    # Published means of the channels: 125.3, 123.0, 113.9.
    expected = torch.tensor([125.3, 123.0, 113.9])
    torch.testing.assert_close(sample.inputs.float().mean((0, 2, 3)), expected, atol=5.0, rtol=0)
