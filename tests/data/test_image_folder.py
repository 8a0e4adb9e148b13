import pytest
import torch

from flatbayes.data import ImageFolder


@pytest.fixture
def write(png, pixels):
    def write(folder, **counts):
        for name, count in counts.items():
            (folder / name).mkdir(parents=True, exist_ok=True)
            for index, image in enumerate(pixels(count, seed=len(name))):
                (folder / name / f"{index}.png").write_bytes(png(image))
        return folder

    return write


def test_folders_are_classes(tmp_path, write, pixels):
    write(tmp_path, mouse=3, cat=5)
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / "cat" / ".hidden.png").write_text("not an image")
    (tmp_path / ".cache").mkdir()
    raw = ImageFolder(path=str(tmp_path)).read()
    assert raw.class_names == ("cat", "mouse")
    assert raw.unsplit.targets.tolist() == [0] * 5 + [1] * 3
    expected = torch.from_numpy(pixels(3, seed=5).transpose(0, 3, 1, 2))
    assert torch.equal(raw.unsplit.take(torch.tensor([5, 6, 7])).inputs, expected)
    assert raw.test is None


def test_subfolders_are_splits(tmp_path, write):
    write(tmp_path / "train", cat=4, mouse=4)
    write(tmp_path / "val", cat=1, mouse=2)
    write(tmp_path / "test", mouse=3)
    splits = ImageFolder(path=str(tmp_path)).load(0)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (8, 3, 3)
    assert splits.test.targets.tolist() == [1, 1, 1]


def test_images_are_read_at_any_depth(tmp_path, write):
    write(tmp_path / "cat", old=2, young=1)
    write(tmp_path, mouse=1)
    assert ImageFolder(path=str(tmp_path)).read().unsplit.targets.tolist() == [0, 0, 0, 1]


def test_another_size_names_the_file(tmp_path, write, png, pixels):
    write(tmp_path, cat=2, mouse=2)
    (tmp_path / "mouse" / "1.png").write_bytes(png(pixels(1, 9, 4)[0]))
    with pytest.raises(ValueError, match=r"mouse.1.png is 9 x 4 pixels"):
        ImageFolder(path=str(tmp_path), test_size=1, val_size=1).load(0)
    assert ImageFolder(path=str(tmp_path), size=5, test_size=1, val_size=1).load(0).input_shape == (3, 5, 5)


def test_damage_names_the_file(tmp_path, write, truncate):
    write(tmp_path, cat=2, mouse=2)
    truncate(tmp_path / "mouse" / "0.png")
    with pytest.raises(ValueError, match=r"mouse.0.png is a damaged image"):
        ImageFolder(path=str(tmp_path), test_size=1, val_size=1).load(0)


def test_classes_that_training_lacks_are_refused(tmp_path, write):
    write(tmp_path / "train", cat=2, mouse=2)
    write(tmp_path / "test", cat=2, house=2)
    with pytest.raises(ValueError, match=r"classes that .*train lacks: \['house'\]"):
        ImageFolder(path=str(tmp_path)).read()


def test_a_class_without_images_is_named(tmp_path, write):
    write(tmp_path, cat=4, mouse=4, empty=0)
    with pytest.raises(ValueError, match="1 of the 3 classes have no example; the first is 'empty'"):
        ImageFolder(path=str(tmp_path)).load(0)


def test_folders_without_images(tmp_path, png, pixels):
    (tmp_path / "0.png").write_bytes(png(pixels(1)[0]))
    with pytest.raises(ValueError, match="no images in the subfolders"):
        ImageFolder(path=str(tmp_path)).read()
    with pytest.raises(FileNotFoundError, match=r"no folder .*missing"):
        ImageFolder(path=str(tmp_path / "missing")).read()
