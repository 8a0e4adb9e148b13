import sys

import pytest

from flatbayes.core.optional import require_package
from flatbayes.data import ImageParquet, PredictionWriter, Table


def test_a_missing_package_says_how_to_get_it():
    with (
        pytest.raises(ImportError, match=r"no_such_package.*pip install 'flatbayes\[data\]'"),
        require_package("data"),
    ):
        import no_such_package  # noqa: F401


def test_each_reader_names_its_extra(monkeypatch, tmp_path):
    (tmp_path / "t.csv").write_text("a,y\n1,0\n")
    for package in (
        "pyarrow",
        "pyarrow.csv",
        "pyarrow.parquet",
        "huggingface_hub",
    ):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"flatbayes\[data\]"):
        Table(path=str(tmp_path / "t.csv"), target="y").read()
    with pytest.raises(ImportError, match=r"flatbayes\[hub\]"):
        ImageParquet(path="owner/name").read()
    with pytest.raises(ImportError, match=r"flatbayes\[data\]"):
        PredictionWriter(tmp_path / "p.parquet")
