import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from flatbayes.data import ImageParquet

LABELS = [0, 1, 2] * 10


def channels_first(images):
    return torch.from_numpy(images.transpose(0, 3, 1, 2))


def test_a_file_round_trips(tmp_path, write_parquet, pixels):
    images = pixels(30)
    file = write_parquet(tmp_path / "all.parquet", images, LABELS)
    raw = ImageParquet(path=str(file)).read()
    everything = raw.unsplit.take(torch.arange(30))
    assert torch.equal(everything.inputs, channels_first(images))
    assert everything.targets.tolist() == LABELS
    assert raw.class_names == ("0", "1", "2")
    assert raw.test is None


def test_examples_keep_their_labels_through_the_split(tmp_path, write_parquet, pixels):
    images = pixels(30)
    file = write_parquet(tmp_path / "all.parquet", images, LABELS)
    splits = ImageParquet(path=str(file), test_size=6, val_size=6).load(0)
    labels_by_image = {
        image.numpy().tobytes(): label for image, label in zip(channels_first(images), LABELS, strict=True)
    }
    seen_images = set()
    for split in (splits.train, splits.val, splits.test):
        for image, label in zip(split.inputs, split.targets.tolist(), strict=True):
            assert labels_by_image[image.numpy().tobytes()] == label
            seen_images.add(image.numpy().tobytes())
    assert len(seen_images) == 30


def test_file_names_give_splits(tmp_path, write_parquet, pixels):
    folder = tmp_path / "plain_text"
    write_parquet(folder / "train-0.parquet", pixels(6), [0, 1] * 3, names=["cat", "dog"])
    write_parquet(folder / "train-1.parquet", pixels(4, seed=1), [0, 1] * 2, names=["cat", "dog"])
    write_parquet(folder / "validation-0.parquet", pixels(2, seed=2), [0, 1], names=["cat", "dog"])
    write_parquet(folder / "test-0.parquet", pixels(2, seed=3), [1, 0], names=["cat", "dog"])
    splits = ImageParquet(path=str(tmp_path)).load(0)
    assert splits.class_names == ("cat", "dog")
    assert (len(splits.train), len(splits.val), len(splits.test)) == (10, 2, 2)
    assert torch.equal(splits.test.inputs, channels_first(pixels(2, seed=3)))
    assert splits.test.targets.tolist() == [1, 0]


@pytest.mark.parametrize("is_struct", [True, False])
def test_images_and_words_may_be_views(tmp_path, write_parquet, pixels, is_struct):
    """As other libraries write them."""
    plain = pq.read_table(write_parquet(tmp_path / "plain.parquet", pixels(4), ["dog", "cat", "dog", "cat"]))
    contents = [image["bytes"] if isinstance(image, dict) else image for image in plain.column("img").to_pylist()]
    images = pa.array(contents, pa.binary_view())
    images = pa.StructArray.from_arrays([images], names=["bytes"]) if is_struct else images
    labels = pa.array(["dog", "cat", "dog", "cat"], pa.string_view())
    pq.write_table(pa.table({"img": images, "label": labels}), tmp_path / "views.parquet")
    raw, expected = (ImageParquet(path=str(tmp_path / f"{name}.parquet")).read() for name in ("views", "plain"))
    assert raw.class_names == expected.class_names
    rows = torch.arange(4)
    assert torch.equal(raw.unsplit.take(rows).inputs, expected.unsplit.take(rows).inputs)
    assert torch.equal(raw.unsplit.targets, expected.unsplit.targets)


def test_words_are_encoded_as_classes(tmp_path, write_parquet, pixels):
    file = write_parquet(tmp_path / "a.parquet", pixels(4), ["dog", "cat", "dog", "cat"])
    raw = ImageParquet(path=str(file)).read()
    assert raw.class_names == ("cat", "dog")
    assert raw.unsplit.targets.tolist() == [1, 0, 1, 0]


def test_a_name_on_the_hub_is_downloaded(tmp_path, monkeypatch, write_parquet, pixels):
    write_parquet(tmp_path / "data" / "train-0.parquet", pixels(6), [0, 1] * 3, image="image")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: str(tmp_path))
    assert len(ImageParquet(path="owner/name").read().unsplit) == 6


def test_a_subfolder_selects_one_of_several_datasets(tmp_path, monkeypatch, write_parquet, pixels):
    write_parquet(tmp_path / "cropped" / "train.parquet", pixels(6), [0, 1] * 3)
    write_parquet(tmp_path / "full" / "train.parquet", pixels(4), [0, 1] * 2)
    assert len(ImageParquet(path=str(tmp_path), subfolder="full").read().unsplit) == 4
    with pytest.raises(FileNotFoundError, match=r"no file or folder .*missing"):
        ImageParquet(path=str(tmp_path), subfolder="missing").read()
    requests = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **options: requests.append(options) or str(tmp_path)
    )
    assert len(ImageParquet(path="owner/name", subfolder="cropped").read().unsplit) == 6
    assert requests == [{"repo_type": "dataset", "allow_patterns": "cropped/*.parquet"}]


def test_the_image_column_is_inferred(tmp_path, png, write_parquet, pixels):
    picture = write_parquet(tmp_path / "a.parquet", pixels(4), [0, 1] * 2, image="picture")
    assert len(ImageParquet(path=str(picture)).read().unsplit) == 4
    columns = {name: [png(image) for image in pixels(4, seed=seed)] for seed, name in enumerate(("a", "img", "z"))}
    for names, expected in ((("a", "img"), "img"), (("a", "z"), None)):
        table = pa.table({name: columns[name] for name in names} | {"label": [0, 1] * 2})
        pq.write_table(table, tmp_path / "b.parquet")
        source = ImageParquet(path=str(tmp_path / "b.parquet"))
        if expected:
            images = source.read().unsplit.take(torch.arange(4)).inputs
            assert torch.equal(images, channels_first(pixels(4, seed=1)))
            continue
        with pytest.raises(ValueError, match=r"ambiguous: \['a', 'z'\] may hold .*image="):
            source.read()


def test_all_splits_have_the_same_channels(tmp_path, write_parquet, pixels):
    write_parquet(tmp_path / "train.parquet", pixels(4)[..., 0], [0, 1] * 2)
    write_parquet(tmp_path / "test.parquet", pixels(2), [0, 1])
    splits = ImageParquet(path=str(tmp_path), val_size=2).load(0)
    assert splits.input_shape == (3, 4, 4)
    assert torch.equal(splits.train.inputs[:, 0], splits.train.inputs[:, 2])


def test_gray_images_have_one_channel(tmp_path, write_parquet, pixels):
    file = write_parquet(tmp_path / "train.parquet", pixels(4)[..., 0], [0, 1] * 2)
    raw = ImageParquet(path=str(file)).read()
    assert torch.equal(raw.unsplit.take(torch.arange(4)).inputs, torch.from_numpy(pixels(4)[..., :1]).movedim(-1, 1))


def test_images_of_several_sizes_need_the_option_size(tmp_path, write_parquet, pixels):
    images = [*pixels(2, 4, 4), *pixels(2, 6, 5)]
    file = write_parquet(tmp_path / "a.parquet", images, [0, 1, 0, 1])
    with pytest.raises(ValueError, match=r"Row [23] of .* is 6 x 5 pixels .* 4 x 4 were expected.* option size"):
        ImageParquet(path=str(file), test_size=1, val_size=1).load(0)
    assert ImageParquet(path=str(file), size=3, test_size=1, val_size=1).load(0).input_shape == (3, 3, 3)


def test_a_missing_label_is_located(tmp_path, write_parquet, pixels):
    file = write_parquet(tmp_path / "a.parquet", pixels(3), [0, None, 1])
    with pytest.raises(ValueError, match=r"'label' has 1 missing label, the first .*in row 2"):
        ImageParquet(path=str(file)).read()


def test_missing_columns_are_listed(tmp_path, write_parquet, pixels):
    file = write_parquet(tmp_path / "a.parquet", pixels(2), [0, 1])
    with pytest.raises(ValueError, match=r"lacks the columns \['fine_label'\]. It has \['img', 'label'\]"):
        ImageParquet(path=str(file), label="fine_label").read()


def test_fractional_labels_are_refused(tmp_path, write_parquet, pixels):
    file = write_parquet(tmp_path / "a.parquet", pixels(2), [0.0, 1.5])
    with pytest.raises(ValueError, match="'label' holds fractions, and classes must be whole numbers"):
        ImageParquet(path=str(file)).read()


def test_labels_of_minus_one_are_refused(tmp_path, write_parquet, pixels):
    write_parquet(tmp_path / "train.parquet", pixels(4), [0, 1] * 2)
    write_parquet(tmp_path / "test.parquet", pixels(2), [-1, -1])
    with pytest.raises(ValueError, match="2 labels of the test examples are out of range"):
        ImageParquet(path=str(tmp_path)).load(0)


def test_labels_of_different_types_are_refused(tmp_path, write_parquet, pixels):
    write_parquet(tmp_path / "train.parquet", pixels(4), [0, 1] * 2)
    write_parquet(tmp_path / "test.parquet", pixels(2), ["0", "1"])
    with pytest.raises(ValueError, match=r"'label' has several types .*\['int64', 'string'\]"):
        ImageParquet(path=str(tmp_path)).load(0)


def test_a_damaged_image_is_located(tmp_path, write_parquet, pixels, png):
    images = [*pixels(5), png(pixels(1)[0])[:60]]
    file = write_parquet(tmp_path / "a.parquet", images, [0, 1] * 3)
    with pytest.raises(ValueError, match=r"Row 5 of .*a.parquet \('img'\) is a damaged image"):
        ImageParquet(path=str(file), test_size=1, val_size=1).load(0)


def test_a_damaged_file_is_named(tmp_path, write_parquet, pixels, truncate):
    file = truncate(write_parquet(tmp_path / "a.parquet", pixels(2), [0, 1]))
    with pytest.raises(ValueError, match=r"a.parquet cannot be read"):
        ImageParquet(path=str(file)).read()


def test_a_missing_path_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file or folder .*missing"):
        ImageParquet(path=str(tmp_path / "missing")).read()
