"""Every public class and function has an example in its docstring, and all examples of the source run."""

import doctest
import importlib
import inspect
import re
import sys
from pathlib import Path

import pytest

import flatbayes

ROOT = Path(__file__).parents[2]
API = ROOT / "docs" / "api"
PAGES = sorted(path.stem for path in API.glob("*.md") if path.stem != "index")
DIRECTIVE = re.compile(r"^::: (flatbayes\.\S+\.\w+)$", re.MULTILINE)
OF_OTHERS = (  # warnings that Lightning gives to everyone who uses it as documented
    r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning",
    "ignore:The 'train_dataloader' does not have many workers:UserWarning",
)


def resolve_directive(path):
    """(module, name) of an object, or of the exports of a module; modules that need extras are not imported."""
    parent, name = path.rsplit(".", 1)
    if is_module(path):
        return [(path, function) for function in importlib.import_module(path).__all__]
    return [(parent, name)] if is_module(parent) else []  # else a package, or an export of one


def is_module(path):
    return (ROOT / "src" / path.replace(".", "/")).with_suffix(".py").exists()


def list_public_names():
    """Package by (module, name) of every class and function that a package exports or a page of the API names."""
    names = {}
    for package in ("flatbayes", *(f"flatbayes.{page}" for page in PAGES)):
        module = importlib.import_module(package)
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            if inspect.isclass(value) or inspect.isfunction(value):
                names[value.__module__, name] = package  # its own, not `flatbayes`, which comes first
    for page in PAGES:
        for directive in DIRECTIVE.findall((API / f"{page}.md").read_text(encoding="utf-8")):
            for key in resolve_directive(directive):
                names.setdefault(key, f"flatbayes.{page}")
    return names


PUBLIC = list_public_names()
MODULES = sorted(
    ".".join(path.relative_to(ROOT / "src").with_suffix("").parts)
    for path in (ROOT / "src").rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)


@pytest.fixture(scope="module")
def set_up():
    """The names that the overview page of the API defines for the examples."""
    names = {}
    page = (API / "index.md").read_text(encoding="utf-8")
    exec(re.search(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)[1], names)
    return names | {name: getattr(flatbayes, name) for name in flatbayes.__all__}


def run_examples(value, name, names):
    test = doctest.DocTestParser().get_doctest(inspect.getdoc(value) or "", names, name, None, 0)
    lines = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE, verbose=False)
    assert runner.run(test, out=lines.append).failed == 0, "".join(lines)
    if pyplot := sys.modules.get("matplotlib.pyplot"):
        pyplot.close("all")
    return test.examples


@pytest.mark.filterwarnings(*OF_OTHERS)
@pytest.mark.parametrize(("module", "name"), PUBLIC, ids=[".".join(key) for key in PUBLIC])
def test_the_example_of_a_public_object_runs(module, name, set_up, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    value = getattr(importlib.import_module(module), name)
    package = importlib.import_module(PUBLIC[module, name])
    exports = {export: getattr(package, export) for export in getattr(package, "__all__", ())}
    assert run_examples(value, name, set_up | exports | {name: value, "__name__": "__main__"}), (
        f"{module}.{name} has no example: write a section `Examples:` with `>>> ` in its docstring"
    )


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_of_other_functions_run(module):
    """With the names of their module."""
    namespace = vars(importlib.import_module(module))
    for test in doctest.DocTestFinder().find(importlib.import_module(module), module):
        if (module, test.name.rpartition(".")[2]) not in PUBLIC:
            run_examples(type("", (), {"__doc__": test.docstring}), test.name, dict(namespace))
