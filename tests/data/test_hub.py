import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from flatbayes.data.hub import download_dataset, is_hub_name


@pytest.mark.parametrize("name", ["uoft-cs/cifar10", "ylecun/mnist", "a/b_c.d"])
def test_names_of_the_hub(name):
    assert is_hub_name(name)


@pytest.mark.parametrize("name", ["cifar10", "./data/x", "/abs/path", "a/b/c", "../x", "a/train.parquet", "a/"])
def test_other_paths(name):
    assert not is_hub_name(name)


def test_a_local_path_is_no_hub_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert not is_hub_name("owner/name")


def test_only_parquet_files_of_the_dataset_are_downloaded(monkeypatch, tmp_path):
    requests = []
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda *args, **kwargs: requests.append((args, kwargs)) or str(tmp_path),
    )
    assert download_dataset("owner/name") == tmp_path
    assert requests == [(("owner/name",), {"repo_type": "dataset", "allow_patterns": "*.parquet"})]


@pytest.mark.parametrize("error", [LocalEntryNotFoundError("offline"), OSError("refused"), ValueError("bad")])
def test_a_failed_download_names_the_alternative(monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(FileNotFoundError, match=r"owner/name is not a local path.*give the path of a folder"):
        download_dataset("owner/name")
