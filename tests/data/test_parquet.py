import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flatbayes.data import parquet
from flatbayes.data.parquet import (
    find_image_columns,
    find_split_files,
    iter_encoded_images,
    iter_record_batches,
    read_schema,
)


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def names(files):
    return {split: [file.name for file in split_files] for split, split_files in files.items()}


def test_a_file_is_all_training_data(tmp_path):
    file = touch(tmp_path, "test.parquet") / "test.parquet"
    assert find_split_files(file) == {"train": [file], "val": [], "test": []}


def test_file_names_give_splits_at_any_depth(tmp_path):
    touch(tmp_path / "plain_text", "train-00001.parquet", "train-00000.parquet", "validation-0.parquet")
    touch(tmp_path / "plain_text", "test.parquet", "extra-0.parquet")
    with pytest.warns(UserWarning, match="begin with no split are left out: extra-0.parquet"):
        split_files = find_split_files(tmp_path)
    assert names(split_files) == {
        "train": ["train-00000.parquet", "train-00001.parquet"],
        "val": ["validation-0.parquet"],
        "test": ["test.parquet"],
    }


def test_other_names_are_all_training_data(tmp_path):
    touch(tmp_path, "b.parquet", "values.parquet")
    assert names(find_split_files(tmp_path))["train"] == ["b.parquet", "values.parquet"]


def test_ambiguous_folders_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no parquet files"):
        find_split_files(tmp_path)
    touch(tmp_path / "one", "test.parquet")
    with pytest.raises(ValueError, match="no training data"):
        find_split_files(tmp_path)
    touch(tmp_path / "two", "train.parquet")
    with pytest.raises(ValueError, match="several datasets"):
        find_split_files(tmp_path)


def test_images_are_counted_through_all_files(tmp_path, write_parquet, png, pixels):
    images = pixels(10)
    files = [
        write_parquet(tmp_path / "a.parquet", images[:4], [0] * 4),
        write_parquet(tmp_path / "b.parquet", images[4:], [0] * 6),
    ]
    encoded = list(iter_encoded_images(files, "img", np.array([1, 3, 4, 9])))
    assert [content for _, content in encoded] == [png(images[row]) for row in (1, 3, 4, 9)]
    assert encoded[2][0].startswith("Row 0 of ")
    assert "b.parquet" in encoded[2][0]
    assert [content for _, content in iter_encoded_images(files, "img")] == [png(image) for image in images]


def test_binary_columns_hold_images_too(tmp_path, write_parquet, png, pixels):
    file = write_parquet(tmp_path / "a.parquet", pixels(3), [0] * 3, struct=False)
    assert find_image_columns(file) == ["img"]
    assert [content for _, content in iter_encoded_images([file], "img")] == [png(image) for image in pixels(3)]


def test_wrong_columns_are_named(tmp_path, write_parquet, pixels):
    file = write_parquet(tmp_path / "a.parquet", pixels(2), [0, 1])
    with pytest.raises(ValueError, match=r"lacks the columns \['image'\]. It has \['img', 'label'\]"):
        list(iter_encoded_images([file], "image"))
    with pytest.raises(ValueError, match=r"'label' .* no encoded images: .* got int64.* \['img'\]"):
        list(iter_encoded_images([file], "label"))


def test_a_row_without_an_image_is_named(tmp_path, write_parquet, pixels):
    file = write_parquet(tmp_path / "a.parquet", [*pixels(2), None], [0, 1, 1])
    with pytest.raises(ValueError, match=r"Row 2 of .* has no image"):
        list(iter_encoded_images([file], "img"))


def test_damage_names_the_file(tmp_path, truncate):
    file = tmp_path / "damaged.parquet"
    pq.write_table(pa.table({"a": np.random.default_rng(0).random(1000)}), file)
    whole = file.read_bytes()
    truncate(file)
    for read in (read_schema, lambda path: list(iter_record_batches(path, ["a"]))):
        with pytest.raises(ValueError, match=r"damaged.parquet cannot be read") as error:
            read(file)
        assert type(error.value) is ValueError
    file.write_bytes(whole[:4] + bytes(40) + whole[44:])
    with pytest.raises(ValueError, match=r"damaged.parquet cannot be read") as error:
        list(iter_record_batches(file, ["a"]))
    assert type(error.value) is ValueError
    with pytest.raises(FileNotFoundError, match=r"no file .*missing.parquet"):
        read_schema(tmp_path / "missing.parquet")


@pytest.mark.parametrize("rows", [[], [0, 4], [7, 8, 8, 16], list(range(18))])
def test_groups_of_rows_without_images_that_are_used_are_not_read(
    tmp_path, write_parquet, pixels, png, monkeypatch, rows
):
    images = pixels(9)
    files = [write_parquet(tmp_path / f"{name}.parquet", images, range(9), rows_per_group=2) for name in "ab"]
    num_read = []
    batches = parquet.iter_record_batches

    def count(*arguments, **options):
        for batch in batches(*arguments, **options):
            num_read.append(len(batch))
            yield batch

    monkeypatch.setattr(parquet, "iter_record_batches", count)
    read = list(iter_encoded_images(files, "img", np.array(rows, dtype=np.int64)))
    assert [content for _, content in read] == [png(images[row % 9]) for row in rows]
    assert [int(re.search(r"Row (\d+)", name)[1]) for name, _ in read] == [row % 9 for row in rows]
    assert sum(num_read) == {0: 0, 2: 4, 4: 5, 18: 18}[len(rows)]
