"""Every Python snippet of the documents and every example runs as it stands."""

import re
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    path for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")) if path.exists()
]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
EPOCHS = re.compile(r"(epochs\"?[=:] ?)(\d+)")
MAX_EPOCHS = 5
OF_OTHERS = {  # warnings that other packages give to everyone who uses them as documented
    "data-and-models.md": [r"ignore:`torch\.jit:DeprecationWarning"],  # PyTorch Geometric
    "integrations.md": [
        r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning",  # Lightning
        "ignore:The 'train_dataloader' does not have many workers:UserWarning",  # Lightning
        "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",  # peft
    ],
}
TABLE = re.compile(r"(?:^\|.*\n)+", re.MULTILINE)
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


OPTIONAL_PACKAGES = {"## Graphs": "torch_geometric"}
"""Packages that a section needs and that may be absent, by its heading."""


def snippets(path):
    text = path.read_text(encoding="utf-8")
    for heading, package in OPTIONAL_PACKAGES.items():
        if find_spec(package) is None:
            text = re.sub(rf"^{heading}\n.*?(?=^## )", "", text, flags=re.DOTALL | re.MULTILINE)
    blocks = BLOCK.findall(text)
    if path.name == "own-loop.md":
        blocks = blocks[1:]  # the first shows the two lines that all others put to work
    return blocks


def shorten(text):
    """The code with fewer epochs, where it has many."""
    return EPOCHS.sub(lambda match: match[1] + str(min(int(match[2]), MAX_EPOCHS)), text)


def with_warnings_of_others(path):
    return pytest.param(path, marks=[pytest.mark.filterwarnings(line) for line in OF_OTHERS.get(path.name, [])])


@pytest.mark.parametrize(
    "path", [with_warnings_of_others(p) for p in DOCUMENTS if snippets(p)], ids=lambda path: path.name
)
@pytest.mark.parametrize("edit", [shorten, pytest.param(str, marks=pytest.mark.slow)], ids=["short", "whole"])
def test_snippets_run_in_order(path, edit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in snippets(path):
        exec(compile(edit(block), path.name, "exec"), names)
    plt.close("all")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_examples_run(path, tmp_path, monkeypatch, capsys):
    """In this process, with fewer epochs."""
    monkeypatch.chdir(tmp_path)
    copy = tmp_path / path.name
    copy.write_text(shorten(path.read_text(encoding="utf-8")), encoding="utf-8")
    runpy.run_path(str(copy), run_name="__main__")
    assert capsys.readouterr().out.strip()


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_examples_run_in_a_new_process(path, tmp_path):
    found = subprocess.run(
        [sys.executable, "-W", "error", str(path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip()


def test_examples_are_short():
    assert EXAMPLES
    for path in EXAMPLES:
        assert len(path.read_text().splitlines()) <= 120


def test_links_between_documents_lead_somewhere():
    for path in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_files_that_are_named_are_there():
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        for name in re.findall(
            r"`((?:tests|examples|benchmarks|studies|reproduction|configs|src)/[\w./-]+\.\w+)`", text
        ):
            assert (ROOT / name).exists(), f"{path.name} names {name}"


def test_rows_of_tables_have_the_columns_of_their_header():
    code = re.compile(r"^```.*?^```|`[^`\n]*`|\\\|", re.DOTALL | re.MULTILINE)
    for path in DOCUMENTS:
        for table in TABLE.findall(code.sub("code", path.read_text(encoding="utf-8"))):
            counts = {line.strip().count("|") for line in table.splitlines()}
            assert len(counts) == 1, (path.name, table[:200])
