import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from flatbayes.data import read_inputs

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
def test_features_are_chosen_by_name(table, kind):
    chunks = list(read_inputs(table(kind), (3,), ("c", "a", "b"), chunk_size=10))
    assert [len(inputs) for _, inputs in chunks] == [10, 10, 5]
    assert all(names is None for names, _ in chunks)
    torch.testing.assert_close(torch.cat([inputs for _, inputs in chunks]), torch.from_numpy(X[:, [2, 0, 1]]))


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
    with pytest.raises(ValueError, match=rf"new.{kind} hold 1 values .* row 13 .* feature 'b'"):
        next(chunks)


def test_features_that_are_words(table):
    with pytest.raises(ValueError, match=r"Column 'y' .* holds string"):
        list(read_inputs(table("csv"), (2,), ("a", "y")))


def test_a_column_that_turns_fractional_late(tmp_path):
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
    [(names, inputs)] = read_inputs(tmp_path / "a.npz", (3, 5, 6), ())
    assert names is None
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
    assert [names for names, _ in chunks] == [["a.png", "b.png"], ["in/c.png", "in/d.png"], ["z.png"]]
    expected = torch.from_numpy(images[[1, 0, 3, 2, 4]].transpose(0, 3, 1, 2))
    assert torch.equal(torch.cat([inputs for _, inputs in chunks]), expected)
    with pytest.raises(ValueError, match=r"a.png is 4 x 4 pixels .* 8 x 8 were expected"):
        list(read_inputs(tmp_path, (3, 8, 8), ()))
    with pytest.raises(ValueError, match=r"a.png has colour"):
        list(read_inputs(tmp_path, (1, 4, 4), ()))


def test_images_in_parquet(tmp_path, write_parquet, pixels):
    path = write_parquet(tmp_path / "a.parquet", pixels(5), [0] * 5, image="picture")
    chunks = list(read_inputs(path, (3, 4, 4), (), chunk_size=3, image="picture"))
    assert [(names, len(inputs)) for names, inputs in chunks] == [(None, 3), (None, 2)]
    expected = torch.from_numpy(pixels(5).transpose(0, 3, 1, 2))
    assert torch.equal(torch.cat([inputs for _, inputs in chunks]), expected)
    with pytest.raises(ValueError, match=r"lacks the columns \['img'\]"):
        list(read_inputs(path, (3, 4, 4), ()))


def test_what_cannot_be_read_is_refused_at_once(tmp_path, table):
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
