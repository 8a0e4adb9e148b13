"""Generated parts of the documentation are up to date."""

import importlib.util
from pathlib import Path

HOOKS = Path(__file__).parents[2] / "docs" / "hooks"


def load_hook(name):
    spec = importlib.util.spec_from_file_location(name, HOOKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_package_map_shows_the_layers_of_pyproject():
    package_map = load_hook("package_map")
    assert package_map.PICTURE.read_text(encoding="utf-8") == package_map.render_map(), (
        "run `python docs/hooks/package_map.py`"
    )


def test_every_mark_of_a_page_is_filled():
    pages = load_hook("pages")
    docs = HOOKS.parent
    used = {mark for page in docs.rglob("*.md") for mark in pages.MARKS if mark in page.read_text(encoding="utf-8")}
    assert used == set(pages.MARKS)
    for page in docs.rglob("*.md"):
        filled = pages.on_page_markdown(page.read_text(encoding="utf-8"))
        assert not any(mark in filled for mark in pages.MARKS)


def test_the_migration_page_lists_renamed_names():
    filled = load_hook("pages").on_page_markdown((HOOKS.parent / "migration.md").read_text(encoding="utf-8"))
    assert "| `flatbayes.training.Recipe` | `flatbayes.training.TrainingConfig` |" in filled
    assert "| `SAM` | `part` | `ascent_batch_fraction` |" in filled
    assert "| `flatbayes compare` | `--outside` | `--ood` |" in filled


def test_refused_pairs_are_listed_with_their_message():
    pages = load_hook("pages")
    messages = {(posterior, flatness): message for posterior, flatness, message in pages.list_refused_pairs()}
    assert {("SGLD", "MSAM"), ("SGVB", "LookSAM"), ("SWAG", "PosteriorSAM")} <= messages.keys()
    assert not {("SGVB", "PosteriorSAM"), ("SWAG", "SAM"), ("SGLD", "SAM")} & messages.keys()
    assert messages["SGLD", "MSAM"].startswith("SGLD does not go with MSAM: ")
    filled = pages.on_page_markdown((HOOKS.parent / "two-axes.md").read_text(encoding="utf-8"))
    assert f"| `SGLD` | `MSAM` | {messages['SGLD', 'MSAM']} |" in filled
