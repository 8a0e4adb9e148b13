import numpy as np
import pytest
import torch

from flatbayes.data import UCI

ROWS = 40


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Two splits of forty rows; the second feature comes after the target."""
    monkeypatch.delenv("FLATBAYES_DATA", raising=False)
    folder = tmp_path / "toy"
    folder.mkdir()
    random = np.random.default_rng(0)
    data = np.stack([np.arange(ROWS), 10 * np.arange(ROWS) + 0.5, random.normal(size=ROWS)], axis=1)
    np.savetxt(folder / "data.txt", data)
    np.savetxt(folder / "index_features.txt", [0, 2])
    np.savetxt(folder / "index_target.txt", [1])
    np.savetxt(folder / "n_splits.txt", [2])
    for number in range(2):
        order = random.permutation(ROWS)
        np.savetxt(folder / f"index_train_{number}.txt", order[4:], fmt="%d")
        np.savetxt(folder / f"index_test_{number}.txt", order[:4], fmt="%d")
    return tmp_path


def rows(split):
    return split.inputs[:, 0].long().tolist()


def test_features_and_target_are_where_the_files_say(root):
    splits = UCI(name="toy", root=str(root)).load(0)
    assert splits.feature_names == ("0", "2")
    assert splits.target_names == ("column 1",)
    for split in (splits.train, splits.val, splits.test):
        torch.testing.assert_close(split.targets, 10 * split.inputs[:, 0] + 0.5)


def test_several_targets(root):
    (root / "toy" / "index_target.txt").write_text("1\n2\n")
    splits = UCI(name="toy", root=str(root)).load(0)
    assert splits.target_names == ("column 1", "column 2")
    assert splits.test.targets.shape == (4, 2)


def test_the_seed_is_the_number_of_the_split(root):
    for number in range(2):
        splits = UCI(name="toy", root=str(root)).load(number)
        expected = {split: np.loadtxt(root / "toy" / f"index_{split}_{number}.txt") for split in ("train", "test")}
        assert rows(splits.test) == expected["test"].tolist()
        assert sorted(rows(splits.train) + rows(splits.val)) == sorted(expected["train"].tolist())
        assert (len(splits.train), len(splits.val)) == (29, 7)


def test_the_same_seed_is_the_same_split(root):
    first, second = (UCI(name="toy", root=str(root)).load(1) for _ in range(2))
    assert (rows(first.train), rows(first.val)) == (rows(second.train), rows(second.val))


def test_sizes_apply_to_the_training_rows_of_a_split(root):
    splits = UCI(name="toy", root=str(root), val_size=0.5, train_size=10).load(0)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (10, 18, 4)


def test_seeds_beyond_the_splits_are_refused(root):
    with pytest.raises(
        ValueError, match=r"come with 2 splits, and the seed is the number of the split: 0 to 1, got 2"
    ):
        UCI(name="toy", root=str(root)).load(2)


def test_the_environment_variable_names_the_root(root, tmp_path, monkeypatch):
    (tmp_path / "shared").mkdir()
    (root / "toy").rename(tmp_path / "shared" / "toy")
    (tmp_path / "shared").rename(tmp_path / "uci")
    monkeypatch.setenv("FLATBAYES_DATA", str(tmp_path))
    assert len(UCI(name="toy").load(0).test) == 4


def test_the_layout_of_the_original_repository(root):
    (root / "toy" / "data").mkdir()
    for file in list((root / "toy").glob("*.txt")):
        file.rename(root / "toy" / "data" / file.name)
    assert len(UCI(name="toy", root=str(root)).load(0).test) == 4


def test_missing_files_are_named(root, tmp_path):
    with pytest.raises(ValueError, match=r"UCI is not downloaded, and no folder is given. Set root .* UCI_Datasets"):
        UCI(name="toy").load(0)
    with pytest.raises(FileNotFoundError, match=r"no .*boston/data.txt. Datasets in .*: toy\. Check name and root"):
        UCI(name="boston", root=str(root)).load(0)
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere for UCI"):
        UCI(name="toy", root=str(tmp_path / "nowhere")).load(0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty holds no datasets\. Check name and root"):
        UCI(name="toy", root=str(tmp_path / "empty")).load(0)
    (root / "toy" / "index_test_1.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"no file .*index_test_1.txt. Copy all files"):
        UCI(name="toy", root=str(root)).load(0)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("index_train_0.txt", "0\n40\n", "index_train_0.txt must hold whole numbers from 0 to 39, got 0 to 40"),
        ("index_target.txt", "1.5\n", "index_target.txt must hold whole numbers from 0 to 2"),
        ("index_test_0.txt", "", "index_test_0.txt is empty"),
        ("data.txt", "1 2 3\n4 5\n", "data.txt cannot be read as rows of numbers"),
        (
            "index_test_0.txt",
            "0\n1\n2\n3\n4\n5\n",
            r"Split 0 of .* has \d examples both for training and for the test",
        ),
    ],
)
def test_damaged_files_are_named(root, file, text, message):
    (root / "toy" / file).write_text(text)
    with pytest.raises(ValueError, match=message):
        UCI(name="toy", root=str(root)).load(0)


def test_constant_and_missing_targets_are_refused(root):
    data = np.loadtxt(root / "toy" / "data.txt")
    for value, message in (
        (7.0, "'column 1' is 7 in all 40 given examples"),
        (np.nan, "40 targets that are missing"),
    ):
        data[:, 1] = value
        np.savetxt(root / "toy" / "data.txt", data)
        with pytest.raises(ValueError, match=message):
            UCI(name="toy", root=str(root)).load(0)


@pytest.mark.real_data
@pytest.mark.parametrize(("name", "size", "features"), [("concrete", 1030, 8), ("energy", 768, 8)])
def test_the_published_datasets(real_data, name, size, features):
    splits = UCI(name=name).load(19)
    assert len(splits.train) + len(splits.val) + len(splits.test) == size
    assert len(splits.test) == round(size / 10)
    assert splits.input_shape == (features,)
