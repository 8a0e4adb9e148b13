import sys
import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from flatbayes.core import optional
from flatbayes.core.optional import get_version, import_fabric, require_package
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


def test_fabric_is_imported_under_each_of_its_names(monkeypatch):
    assert import_fabric().__name__ == "lightning_fabric"
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)
    assert import_fabric("strategies.ddp").__name__ == "lightning.fabric.strategies.ddp"
    monkeypatch.setitem(sys.modules, "lightning.fabric", None)
    with pytest.raises(ImportError, match="pip install lightning-fabric"):
        import_fabric()


def test_a_package_that_fabric_lacks_is_named(monkeypatch, tmp_path):
    (tmp_path / "broken_fabric.py").write_text("import no_such_package")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(optional, "FABRIC_PACKAGES", ("broken_fabric",))
    with pytest.raises(ImportError, match="no_such_package"):
        import_fabric()


def test_without_metadata_the_version_is_that_of_the_source_tree(monkeypatch):
    def find_nothing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(optional, "version", find_nothing)
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert get_version.__wrapped__() == project["version"]
