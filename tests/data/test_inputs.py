import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch

from flatbayes.data import DataWarning, InputReader, read_inputs

X = np.random.default_rng(0).normal(size=(25, 3)).astype(np.float32)


@pytest.fixture
def table(tmp_path):
    """Features b, a and c, and a target that is none, as CSV and as parquet."""

    def write(kind, x=X):
        columns = {"b": x[:, 1], "y": ["cat"] * len(x), "a": x[:, 0], "c": x[:, 2]}
        path = tmp_path / f"new.{kind}"
        if kind == "parquet":
            pq.write_table(pa.table(columns), path)
        else:
            rows = (",".join(map(str, row)) for row in zip(*columns.values(), strict=True))
            path.write_text("\n".join([",".join(columns), *rows]) + "\n")
        return path

    return write


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_features_are_selected_by_name(table, kind):
    chunks = list(read_inputs(table(kind), (3,), ("c", "a", "b"), chunk_size=10))
    assert [len(inputs) for _, inputs in chunks] == [10, 10, 5]
    assert all(columns == {} for columns, _ in chunks)
    expected = torch.from_numpy(X[:, [2, 0, 1]]).double()
    torch.testing.assert_close(torch.cat([inputs for _, inputs in chunks]), expected)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_missing_features_are_listed(table, kind):
    with pytest.raises(ValueError, match=r"lacks the columns \['d', 'e'\]. It has \['b', 'y', 'a', 'c'\]"):
        list(read_inputs(table(kind), (3,), ("a", "d", "e")))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_value_that_is_not_finite_is_located_in_the_file(table, kind):
    x = X.copy()
    x[13, 1] = np.nan
    chunks = read_inputs(table(kind, x), (3,), ("a", "b", "c"), chunk_size=10)
    assert len(next(chunks)[1]) == 10
    with pytest.raises(ValueError, match=rf"'b' of .*new.{kind} has a missing value .*in (line 15|row 14)\)"):
        next(chunks)


def test_features_of_words_are_refused(table):
    with pytest.raises(ValueError, match=r"Column 'y' .* must hold numbers, .* first is 'cat' in line 2"):
        list(read_inputs(table("csv"), (2,), ("a", "y")))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_words_missing_numbers_and_kept_columns(tmp_path, kind):
    path, columns = tmp_path / f"new.{kind}", {"city": ["Rome", "Oslo", ""], "age": [7.5, None, 9.0]}
    if kind == "csv":
        path.write_text("age,id,city\n 7.5,007,Rome\nNA,012,Oslo\n9,9007199254740993,\n")
    else:
        pq.write_table(pa.table(columns | {"id": ["007", "012", "9007199254740993"]}), path)
    names = ("city=", "city=Oslo", "age", "age=")
    with pytest.warns(DataWarning, match=r"'city' of .* has the category 'Rome', which the training data lack"):
        [(kept, inputs)] = read_inputs(path, (4,), names, keep_columns=("id", "city", "age"))
    expected = [[0, 0, 7.5, 0], [0, 1, np.nan, 1], [1, 0, 9, 0]]
    torch.testing.assert_close(inputs, torch.tensor(expected, dtype=torch.float64), equal_nan=True)
    assert kept["id"].to_pylist() == ["007", "012", "9007199254740993"]  # the text, also of a column of features
    assert kept["age"].to_pylist() == ([" 7.5", "NA", "9"] if kind == "csv" else columns["age"])
    [(kept, inputs)] = read_inputs(path, (2,), ("age", "age="), keep_columns=("age",))
    assert inputs[:, 1].tolist() == [0, 1, 0]


def test_a_column_that_is_a_feature_and_kept_has_its_text(tmp_path):
    path = tmp_path / "new.csv"
    path.write_text("id;a;flag\n007;0,5;true\n010;1,5;False\n")
    [(kept, inputs)] = read_inputs(path, (3,), ("id", "a", "flag"), keep_columns=("id", "a", "flag"))
    assert inputs.tolist() == [[7, 0.5, 1], [10, 1.5, 0]]
    assert [kept[name].to_pylist() for name in kept] == [["007", "010"], ["0,5", "1,5"], ["true", "False"]]
    path.write_text("id;a\n1;0,5\nx;1,5\n")
    with pytest.raises(ValueError, match="'id' .* must hold numbers, .* the first is 'x' in line 3"):
        list(read_inputs(path, (2,), ("id", "a"), keep_columns=("id",)))


def test_a_column_with_late_fractions(tmp_path):
    path = tmp_path / "long.csv"
    path.write_text("a\n" + "1\n" * 1_000_000 + "0.5\n")
    total = sum(float(inputs.sum()) for _, inputs in read_inputs(path, (1,), ("a",), chunk_size=100_000))
    assert total == 1_000_000.5


@pytest.mark.parametrize("names", [("x",), ("only",), ("y", "x")])
def test_arrays(tmp_path, names):
    np.savez(tmp_path / "a.npz", **{name: X if name != "y" else np.zeros(3) for name in names})
    chunks = list(read_inputs(tmp_path / "a.npz", (3,), (), chunk_size=20))
    assert [len(inputs) for _, inputs in chunks] == [20, 5]
    assert torch.equal(torch.cat([inputs for _, inputs in chunks]), torch.from_numpy(X))


def test_arrays_of_images(tmp_path, pixels):
    np.savez(tmp_path / "a.npz", x=pixels(4, 5, 6))
    [(columns, inputs)] = read_inputs(tmp_path / "a.npz", (3, 5, 6), ())
    assert columns == {}
    assert torch.equal(inputs, torch.from_numpy(pixels(4, 5, 6).transpose(0, 3, 1, 2)))
    with pytest.raises(ValueError, match=r"takes inputs of the shape \(3, 8, 8\), and .* have \(3, 5, 6\)"):
        list(read_inputs(tmp_path / "a.npz", (3, 8, 8), ()))


def test_arrays_without_inputs(tmp_path):
    np.savez(tmp_path / "a.npz", a=X, b=X)
    with pytest.raises(ValueError, match=r"needs an array 'x' .* it has \['a', 'b'\]"):
        list(read_inputs(tmp_path / "a.npz", (3,), ()))


def test_folders_of_images_come_with_names(tmp_path, png, pixels):
    images = pixels(5)
    for name, image in zip(["b.png", "a.png", "in/d.png", "in/c.png", "z.png"], images, strict=True):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png(image))
    chunks = list(read_inputs(tmp_path, (3, 4, 4), (), chunk_size=2))
    assert [columns["name"] for columns, _ in chunks] == [["a.png", "b.png"], ["in/c.png", "in/d.png"], ["z.png"]]
    expected = torch.from_numpy(images[[1, 0, 3, 2, 4]].transpose(0, 3, 1, 2))
    assert torch.equal(torch.cat([inputs for _, inputs in chunks]), expected)
    with pytest.raises(ValueError, match=r"a.png is 4 x 4 pixels .* 8 x 8 were expected"):
        list(read_inputs(tmp_path, (3, 8, 8), ()))
    with pytest.raises(ValueError, match=r"a.png has color"):
        list(read_inputs(tmp_path, (1, 4, 4), ()))


def test_images_in_parquet(tmp_path, write_parquet, pixels):
    path = write_parquet(tmp_path / "a.parquet", pixels(5), [0] * 5, image="picture")
    chunks = list(read_inputs(path, (3, 4, 4), (), chunk_size=3, image="picture"))
    assert [len(inputs) for _, inputs in chunks] == [3, 2]
    expected = torch.from_numpy(pixels(5).transpose(0, 3, 1, 2))
    assert torch.equal(torch.cat([inputs for _, inputs in chunks]), expected)
    inputs_read = torch.cat([inputs for _, inputs in read_inputs(path, (3, 4, 4), ())])  # the only image column
    assert torch.equal(inputs_read, expected)
    with pytest.raises(ValueError, match=r"lacks the columns \['img'\]"):
        list(read_inputs(path, (3, 4, 4), (), image="img"))


def test_unreadable_paths_are_refused_before_the_first_chunk(tmp_path, table):
    with pytest.raises(ValueError, match=r"takes images of the shape \(3, 4, 4\), .* got .*new.csv"):
        read_inputs(table("csv"), (3, 4, 4), ())
    with pytest.raises(ValueError, match=r"takes 3 features, .* got"):
        read_inputs(tmp_path, (3,), ("a", "b", "c"))
    with pytest.raises(ValueError, match="no images in"):
        read_inputs(tmp_path, (3, 4, 4), ())
    with pytest.raises(ValueError, match=r"chunk_size .* got 0"):
        read_inputs(tmp_path, (3, 4, 4), (), chunk_size=0)
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        read_inputs(tmp_path / "missing.csv", (3,), ())


def as_list(values):
    return values.to_pylist() if hasattr(values, "to_pylist") else list(values)


class TestKeepColumns:
    @pytest.mark.parametrize("kind", ["csv", "parquet"])
    def test_of_tables(self, table, kind):
        chunks = list(read_inputs(table(kind), (2,), ("a", "c"), chunk_size=10, keep_columns=("y", "b")))
        assert [list(columns) for columns, _ in chunks] == [["y", "b"]] * 3
        assert [value for columns, _ in chunks for value in as_list(columns["y"])] == ["cat"] * 25
        kept = [float(value) for columns, _ in chunks for value in as_list(columns["b"])]
        np.testing.assert_allclose(kept, X[:, 1])
        with pytest.raises(ValueError, match=r"lacks the columns \['id'\]"):
            list(read_inputs(table(kind), (2,), ("a", "c"), keep_columns=("id",)))

    def test_text_of_csv_stays_as_it_is(self, tmp_path):
        (tmp_path / "a.csv").write_text("id,x\n007,1\n,2\n")
        [(columns, _)] = read_inputs(tmp_path / "a.csv", (1,), ("x",), keep_columns=("id",))
        assert as_list(columns["id"]) == ["007", ""]

    def test_beside_images(self, tmp_path, write_parquet, pixels):
        path = write_parquet(tmp_path / "a.parquet", pixels(5), [4, 3, 2, 1, 0], rows_per_group=2)
        chunks = list(read_inputs(path, (3, 4, 4), (), chunk_size=3, keep_columns=("label",)))
        assert [as_list(columns["label"]) for columns, _ in chunks] == [[4, 3, 2], [1, 0]]

    def test_of_arrays(self, tmp_path):
        np.savez(tmp_path / "a.npz", x=X, id=np.arange(25), wrong=np.arange(3))
        chunks = list(read_inputs(tmp_path / "a.npz", (3,), (), chunk_size=20, keep_columns=("id",)))
        assert [len(columns["id"]) for columns, _ in chunks] == [20, 5]
        with pytest.raises(ValueError, match="one value for each of 25 inputs"):
            list(read_inputs(tmp_path / "a.npz", (3,), (), keep_columns=("wrong",)))

    def test_folders_have_none(self, tmp_path):
        with pytest.raises(ValueError, match="no columns to keep"):
            read_inputs(tmp_path, (3, 4, 4), (), keep_columns=("id",))


def test_images_of_another_size_are_resized_as_in_training(tmp_path, png, pixels):
    (tmp_path / "a.png").write_bytes(png(pixels(1, 9, 7)[0]))
    [(_, inputs)] = read_inputs(tmp_path, (3, 4, 4), (), resize=True)
    assert inputs.shape == (1, 3, 4, 4)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_rows_of_parquet_files_are_counted(table, kind):
    inputs = InputReader(path=table(kind), input_shape=(1,), feature_names=("a",))
    assert inputs.count_inputs() == {"csv": None, "parquet": 25}[kind]


def test_arrays_and_folders_are_counted(tmp_path, png, pixels):
    np.savez(tmp_path / "a.npz", x=X)
    (tmp_path / "a.png").write_bytes(png(pixels(1)[0]))
    assert InputReader(path=tmp_path / "a.npz", input_shape=(3,)).count_inputs() == 25
    assert InputReader(path=tmp_path, input_shape=(3, 4, 4)).count_inputs() == 1


@pytest.mark.parametrize("kind", ["csv", "parquet", "npz"])
def test_memory_does_not_grow_with_the_file(tmp_path, kind, monkeypatch):
    monkeypatch.setattr("flatbayes.data.csv_files.BLOCK_SIZE_BYTES", 2**15)
    rows, path = 200_000, tmp_path / f"a.{kind}"
    x = np.random.default_rng(0).normal(size=(rows, 10)).astype(np.float32)
    names = tuple(f"f{k}" for k in range(10))
    columns = pa.table({name: x[:, k] for k, name in enumerate(names)})
    if kind == "npz":
        np.savez_compressed(path, x=x)
    elif kind == "csv":
        pyarrow.csv.write_csv(columns, path)
    else:
        pq.write_table(columns, path, row_group_size=20_000)
    total = x.nbytes
    del x, columns
    tracemalloc.start()
    before, peak = pa.total_allocated_bytes(), 0
    for _, inputs in read_inputs(path, (10,), names, chunk_size=1000):
        assert inputs.shape[1] == 10
        peak = max(peak, pa.total_allocated_bytes() - before)
    python = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak + python < total / 2, (peak, python, total)


def test_a_single_image(tmp_path, png, pixels):
    (tmp_path / "a.PNG").write_bytes(png(pixels(1)[0]))
    reader = InputReader(path=tmp_path / "a.PNG", input_shape=(3, 4, 4))
    [(columns, inputs)] = reader.iter_chunks()
    assert columns == {"name": ["a.PNG"]}
    assert torch.equal(inputs, torch.from_numpy(pixels(1).transpose(0, 3, 1, 2)))
    assert reader.count_inputs() == 1


def test_files_of_a_folder_that_are_no_images_are_named(tmp_path, png, pixels):
    (tmp_path / "a.png").write_bytes(png(pixels(1)[0]))
    (tmp_path / "photo.heic").touch()
    with pytest.warns(DataWarning, match="1 file in .* is left out .*: photo.heic. Suffixes of images"):
        assert len(list(read_inputs(tmp_path, (3, 4, 4), ()))) == 1


def test_a_word_among_numbers_is_located_beside_a_category(tmp_path):
    path = tmp_path / "new.csv"
    path.write_text("city,b\nRome,1\nOslo,oops\n")
    with pytest.raises(ValueError, match="'b' .* must hold numbers, and 1 of its 2 .* the first is 'oops' in line 3"):
        list(read_inputs(path, (3,), ("city=Rome", "city=Oslo", "b")))
