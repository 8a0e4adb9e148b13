import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flatbayes.data import ImageFolder, ImageParquet, Npz, Table, make_source


def test_the_suffix_decides(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((2, 2)), y=np.arange(2))
    path = str(tmp_path / "a.npz")
    assert make_source(path) == Npz(path=path)


def test_parquet_files_with_images(tmp_path, write_parquet, pixels):
    file = write_parquet(tmp_path / "plain" / "train.parquet", pixels(2), [0, 1], image="picture")
    assert make_source(str(file)) == ImageParquet(path=str(file), image="picture")
    assert make_source(str(tmp_path)) == ImageParquet(path=str(tmp_path), image="picture")


def test_folders_of_images(tmp_path, png, pixels):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "0.PNG").write_bytes(png(pixels(1)[0]))
    assert make_source(str(tmp_path)) == ImageFolder(path=str(tmp_path))


def test_a_name_on_the_hub():
    assert make_source("owner/name") == ImageParquet(path="owner/name")


def test_tables_need_a_target(tmp_path):
    (tmp_path / "a.csv").write_text("a,y\n1,0\n")
    pq.write_table(pa.table({"a": [1.0], "y": [0]}), tmp_path / "a.parquet")
    for name in ("a.csv", "a.parquet"):
        with pytest.raises(ValueError, match=rf"{name} is a table, .* target="):
            make_source(str(tmp_path / name))
        path = str(tmp_path / name)
        assert make_source(path, target="y") == Table(path=path, target="y")


def test_other_paths_are_refused(tmp_path):
    (tmp_path / "a.txt").touch()
    with pytest.raises(ValueError, match=r"No reader .*a.txt \(suffix '.txt'\)"):
        make_source(str(tmp_path / "a.txt"))
    with pytest.raises(ValueError, match="neither parquet files nor images"):
        make_source(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        make_source(str(tmp_path / "missing.npz"))
