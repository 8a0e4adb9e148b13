import numpy as np
import pytest
import torch

from flatbayes.data import CIFAR10C


@pytest.fixture
def folder(tmp_path):
    generator = np.random.default_rng(0)
    np.save(tmp_path / "fog.npy", generator.integers(0, 256, (30, 4, 5, 3), dtype=np.uint8))
    np.save(tmp_path / "snow.npy", generator.integers(0, 256, (30, 4, 5, 3), dtype=np.uint8))
    np.save(tmp_path / "labels.npy", np.tile(np.array([3, 1, 4, 1, 5, 9]), 5))
    return tmp_path


def test_a_severity_selects_its_rows(folder):
    reader = CIFAR10C(path=str(folder))
    assert reader.corruption_names() == ("fog", "snow")
    stored = np.load(folder / "fog.npy")
    for severity in range(1, 6):
        split = reader.read_split("fog", severity)
        assert split.inputs.dtype == torch.uint8
        expected = stored[6 * (severity - 1) : 6 * severity].transpose(0, 3, 1, 2)
        assert np.array_equal(split.inputs.numpy(), expected)
        assert split.targets.tolist() == [3, 1, 4, 1, 5, 9]
        assert split.targets.dtype == torch.int64


def test_labels_of_one_severity_apply_to_all(folder):
    np.save(folder / "labels.npy", np.array([3, 1, 4, 1, 5, 9], dtype=np.uint8))
    assert CIFAR10C(path=str(folder)).read_split("snow", 5).targets.tolist() == [3, 1, 4, 1, 5, 9]


def test_max_examples_reads_the_first_images(folder):
    split = CIFAR10C(path=str(folder), max_examples=2).read_split("fog", 2)
    assert np.array_equal(split.inputs.numpy(), np.load(folder / "fog.npy")[6:8].transpose(0, 3, 1, 2))
    assert split.targets.tolist() == [3, 1]
    assert len(CIFAR10C(path=str(folder), max_examples=99).read_split("fog", 5)) == 6
    with pytest.raises(ValueError, match="1 or more, or None; got 0"):
        CIFAR10C(path=str(folder), max_examples=0)


def test_images_are_copies_of_the_file(folder):
    split = CIFAR10C(path=str(folder)).read_split("fog", 1)
    split.inputs.add_(1)
    assert not np.array_equal(split.inputs.numpy(), np.load(folder / "fog.npy")[:6].transpose(0, 3, 1, 2))


class TestRefuses:
    def test_a_folder_without_images(self, tmp_path):
        for path in (tmp_path, tmp_path / "nothing"):
            with pytest.raises(FileNotFoundError, match=r"no corrupted images in .* Unpack"):
                CIFAR10C(path=str(path)).corruption_names()

    def test_unknown_names_and_severities(self, folder):
        with pytest.raises(ValueError, match=r"no rain\.npy .* Known: fog, snow"):
            CIFAR10C(path=str(folder)).read_split("rain", 1)
        for severity in (0, 6):
            with pytest.raises(ValueError, match=f"from 1 to 5, got {severity}"):
                CIFAR10C(path=str(folder)).read_split("fog", severity)

    def test_missing_labels(self, folder):
        (folder / "labels.npy").unlink()
        with pytest.raises(FileNotFoundError, match=r"labels\.npy"):
            CIFAR10C(path=str(folder)).read_split("fog", 1)

    @pytest.mark.parametrize(
        "array", [np.zeros((31, 4, 5, 3), np.uint8), np.zeros((30, 4, 5, 3)), np.zeros((30, 4), np.uint8)]
    )
    def test_images_of_another_format(self, folder, array):
        np.save(folder / "fog.npy", array)
        with pytest.raises(ValueError, match=r"fog\.npy .* must hold images of 5 severities"):
            CIFAR10C(path=str(folder)).read_split("fog", 1)

    @pytest.mark.parametrize("array", [np.zeros(7, int), np.zeros(30), np.zeros((30, 1), int)])
    def test_labels_of_another_format(self, folder, array):
        np.save(folder / "labels.npy", array)
        with pytest.raises(ValueError, match="must hold 6 or 30 whole numbers"):
            CIFAR10C(path=str(folder)).read_split("fog", 1)

    def test_pickles_and_damage(self, folder):
        np.save(folder / "fog.npy", np.array([{}] * 5, dtype=object), allow_pickle=True)
        with pytest.raises(ValueError, match="cannot be read as an array"):
            CIFAR10C(path=str(folder)).read_split("fog", 1)
        (folder / "fog.npy").write_bytes(b"nonsense")
        with pytest.raises(ValueError, match="cannot be read as an array"):
            CIFAR10C(path=str(folder)).read_split("fog", 1)
