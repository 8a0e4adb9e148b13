import importlib
import sys

import pytest


@pytest.mark.parametrize(
    ("name", "packages"),
    [("lightning", ["lightning.pytorch", "pytorch_lightning"]), ("transformers", ["transformers"])],
)
def test_a_missing_package_names_its_extra(monkeypatch, name, packages):
    monkeypatch.delitem(sys.modules, f"flatbayes.integrations.{name}", raising=False)
    for package in packages:
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"pip install 'flatbayes\[{name}\]'"):
        importlib.import_module(f"flatbayes.integrations.{name}")
