"""From a comparison's folder to files that people look at."""

import os
from pathlib import Path

from flatbayes.reports.html import page
from flatbayes.reports.picture import picture
from flatbayes.reports.results import Glossary, Results, installed_glossary, read
from flatbayes.reports.selection import read_selection


def write_report(folder: Path | str, glossary: Glossary | None = None) -> Path:
    """Turn `folder/results.json` into a self-contained `folder/report.html` and return its path.

    A `selection.json` beside it, as `flatbayes.comparison.select` writes it, becomes a section of its own. The same
    results make the same bytes. A page that exists is replaced only by a whole one.

    Args:
        folder: What `flatbayes compare --out` wrote.
        glossary: What the metrics mean; without it, what `flatbayes.metrics` says.

    Raises:
        FileNotFoundError: The folder has no results.json.
        ValueError: results.json or selection.json is damaged.
        ImportError: matplotlib is not installed.
    """
    folder = Path(folder)
    results = {**read(folder), "selection": read_selection(folder)}
    return write_whole(folder / "report.html", page(results, glossary or installed_glossary()))


def readme_picture(results: Results, path: Path | str) -> Path:
    """Draw at one glance what flatness bought, as an SVG on a white card, and return its path.

    Raises:
        ImportError: matplotlib is not installed.
    """
    return write_whole(Path(path), picture(results))


def write_whole(path: Path, text: str) -> Path:
    """Write under a temporary name, then rename: nobody ever reads half a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", newline="\n")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
