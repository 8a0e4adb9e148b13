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
    (tmp_path / "cat" / "Thumbs.db").touch()
    with pytest.warns(UserWarning, match=r"2 files in .* are left out.*: cat/.hidden.png, cat/notes.txt\. "):
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
    with pytest.warns(UserWarning, match="test has no images of the classes cat"):
        splits = ImageFolder(path=str(tmp_path)).load(0)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (8, 3, 3)
    assert splits.test.targets.tolist() == [1, 1, 1]


def test_images_are_read_at_any_depth(tmp_path, write):
    write(tmp_path / "cat", old=2, young=1)
    write(tmp_path, mouse=1)
    with pytest.warns(UserWarning, match="images in the folders old, young of .* are all read as the class 'cat'"):
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
    with pytest.raises(ValueError, match="1 of the 3 classes has no example; the first is 'empty'"):
        ImageFolder(path=str(tmp_path)).load(0)


def test_folders_without_images(tmp_path, png, pixels):
    (tmp_path / "0.png").write_bytes(png(pixels(1)[0]))
    with pytest.raises(ValueError, match="no images in the subfolders"):
        ImageFolder(path=str(tmp_path)).read()
    with pytest.raises(FileNotFoundError, match=r"no folder .*missing"):
        ImageFolder(path=str(tmp_path / "missing")).read()


@pytest.mark.parametrize("train", ["train", "Train", "training"])
@pytest.mark.parametrize("val", ["val", "valid", "validation", "dev", "Valid"])
@pytest.mark.parametrize("test", ["test", "testing", "TEST"])
def test_all_usual_names_of_splits(tmp_path, write, train, val, test):
    for name, count in {train: 4, val: 2, test: 3}.items():
        write(tmp_path / name, cat=count, mouse=count)
    splits = ImageFolder(path=str(tmp_path)).load(0)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (8, 4, 6)


def test_folders_of_splits_that_do_not_fit_are_named(tmp_path, write):
    write(tmp_path / "a" / "valid", cat=2, mouse=2)
    with pytest.raises(ValueError, match=r"has the folders \['valid'\] and no folder of training data"):
        ImageFolder(path=str(tmp_path / "a")).read()
    write(tmp_path / "a" / "train", cat=2, mouse=2)
    write(tmp_path / "a" / "extra", cat=2)
    with pytest.warns(UserWarning, match=r"Folders of .* that are no split are left out: extra"):
        ImageFolder(path=str(tmp_path / "a")).read()
    write(tmp_path / "a" / "val", cat=2)
    with pytest.raises(ValueError, match=r"several folders of one split: \['train', 'val', 'valid'\]"):
        ImageFolder(path=str(tmp_path / "a")).read()


def test_a_class_may_have_the_name_of_a_split(tmp_path, write):
    write(tmp_path, dev=4, ops=4)
    assert ImageFolder(path=str(tmp_path)).read().class_names == ("dev", "ops")


def test_a_folder_around_the_folders_of_classes_is_named(tmp_path, write):
    write(tmp_path / "images", cat=4, mouse=4)
    with pytest.raises(ValueError, match=r"has one folder, images, .* give its path: .*images"):
        ImageFolder(path=str(tmp_path)).read()


def test_classes_that_differ_in_letter_case(tmp_path, write):
    write(tmp_path / "a" / "train", cat=2, mouse=2)
    write(tmp_path / "a" / "test", Cat=2, mouse=2)
    with pytest.raises(ValueError, match=r"lacks: \['Cat'\] \('cat' and 'Cat' differ in letter case\)"):
        ImageFolder(path=str(tmp_path / "a")).read()
    write(tmp_path / "b", cat=10, Cat=10)
    with pytest.warns(UserWarning, match="'Cat', 'cat'. If they are one class"):
        ImageFolder(path=str(tmp_path / "b")).load(0)


def test_linked_folders_are_read_once(tmp_path, write):
    write(tmp_path / "elsewhere", more=2)
    write(tmp_path / "set", cat=2, mouse=2)
    (tmp_path / "set" / "cat" / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "set" / "mouse" / "circle").symlink_to(tmp_path / "set" / "mouse", target_is_directory=True)
    assert ImageFolder(path=str(tmp_path / "set")).read().unsplit.targets.tolist() == [0] * 4 + [1] * 2


@pytest.mark.parametrize("options", [{"size": 0}, {"crop": True}])
def test_options_are_checked_before_files_are_listed(tmp_path, options):
    with pytest.raises(ValueError, match="size"):
        ImageFolder(path=str(tmp_path / "missing"), **options).read()


def test_only_images_that_are_used_are_opened(tmp_path, write, monkeypatch):
    write(tmp_path, cat=50, mouse=50)
    opened = []
    read_bytes = type(tmp_path).read_bytes
    monkeypatch.setattr(type(tmp_path), "read_bytes", lambda file: opened.append(file) or read_bytes(file))
    ImageFolder(path=str(tmp_path), train_size=4, val_size=4, test_size=4).load(0)
    assert len(set(opened)) == 12
