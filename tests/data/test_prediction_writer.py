import csv
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flatbayes.data import PredictionWriter

CHUNKS = [
    {"file": ["a.png", "b,ü.png"], "class": ["cat", "dog"], "p": np.array([0.1, 1 / 3], dtype=np.float32)},
    {"file": ["a much longer name.png"], "class": ["cat"], "p": np.array([0.7], dtype=np.float32)},
]


def read(path):
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pydict()
    if path.suffix == ".npz":
        with np.load(path) as file:
            return {name: file[name].tolist() for name in file.files}
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [np.float32(row[name]) if name == "p" else row[name] for row in rows] for name in rows[0]}


def write(path, chunks=CHUNKS):
    with PredictionWriter(path) as writer:
        for chunk in chunks:
            writer.write(chunk)


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".npz"])
class TestEveryFormat:
    def test_chunks_are_appended(self, tmp_path, suffix):
        path = tmp_path / f"p{suffix}"
        write(path)
        columns = read(path)
        assert list(columns) == ["file", "class", "p"]
        assert columns["file"] == ["a.png", "b,ü.png", "a much longer name.png"]
        assert columns["class"] == ["cat", "dog", "cat"]
        assert np.array_equal(np.array(columns["p"], dtype=np.float32), np.array([0.1, 1 / 3, 0.7], np.float32))
        assert list(tmp_path.iterdir()) == [path]

    def test_an_exception_keeps_the_previous_file(self, tmp_path, suffix):
        path = tmp_path / f"p{suffix}"
        path.write_text("before")

        def interrupted():
            with PredictionWriter(path) as writer:
                writer.write(CHUNKS[0])
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert path.read_text() == "before"
        assert list(tmp_path.iterdir()) == [path]

    def test_the_file_appears_at_the_end(self, tmp_path, suffix):
        path = tmp_path / f"p{suffix}"
        with PredictionWriter(path) as writer:
            writer.write(CHUNKS[0])
            assert not path.exists()
        assert path.exists()

    def test_no_predictions_are_refused(self, tmp_path, suffix):
        with pytest.raises(ValueError, match="No predictions were written"):
            write(tmp_path / f"p{suffix}", [])
        assert not list(tmp_path.iterdir())

    def test_columns_must_have_the_same_length_and_names(self, tmp_path, suffix):
        with pytest.raises(ValueError, match=r"one value for each row, got the shapes"):
            write(tmp_path / f"p{suffix}", [{"a": ["x"], "p": np.zeros(2)}])
        with pytest.raises(ValueError, match=r"columns of .* are \['a'\], got \['b'\]"):
            write(tmp_path / f"p{suffix}", [{"a": np.zeros(2)}, {"b": np.zeros(2)}])
        assert not list(tmp_path.iterdir())


def test_csv_has_the_digits_of_the_dtype(tmp_path):
    write(tmp_path / "p.csv", [{"p": np.array([0.1], np.float32), "q": np.array([0.1]), "n": np.array([3])}])
    assert (tmp_path / "p.csv").read_text() == "p,q,n\n0.1,0.1,3\n"


@pytest.mark.parametrize("name", ["p.json", "p", "p.csv.gz"])
def test_other_kinds_are_refused_at_once(tmp_path, name):
    with pytest.raises(ValueError, match=r"\.parquet, \.csv, \.npz files, got"):
        PredictionWriter(tmp_path / name)


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".npz"])
def test_columns_of_pyarrow_are_passed_on(tmp_path, suffix):
    kept = [pa.array(["a", None]), pa.array(["long"])]
    write(tmp_path / f"p{suffix}", [{"id": ids, "p": np.ones(len(ids), np.float32)} for ids in kept])
    assert read(tmp_path / f"p{suffix}")["id"] == ["a", None if suffix == ".parquet" else "", "long"]


def test_memory_does_not_grow_with_npz_columns(tmp_path):
    tracemalloc.start()
    with PredictionWriter(tmp_path / "p.npz") as writer:
        for _ in range(50):
            writer.write({"p": np.random.default_rng(0).random(100_000), "n": np.arange(100_000)})
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()
    with np.load(tmp_path / "p.npz") as columns:
        assert columns["p"].shape == columns["n"].shape == (5_000_000,)
        assert columns["n"][-1] == 99_999
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("escapes", [False, True])
def test_formulas_are_escaped_in_texts_only(tmp_path, escapes):
    texts = ["=cmd()", "+1", "-1", "@a", "\tx", "\rx", "x=1", "", "\uff1d1", '"=1']
    columns = {
        "=id": pa.array(texts),
        "name": texts,
        "p": np.linspace(-1, 1, len(texts)),
        "k": pa.array(range(-5, 5)),
    }
    with PredictionWriter(tmp_path / "a.csv", escape_formulas=escapes) as writer:
        writer.write(columns)
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    kept = ("x=1", "", '"=1')
    expected = [f"'{text}" if escapes and text not in kept else text for text in texts]
    assert header == ["'=id" if escapes else "=id", "name", "p", "k"]
    assert [row[0] for row in rows] == expected
    assert [row[1] for row in rows] == expected
    assert rows[0][2:] == ["-1.0", "-5"]
