"""From a comparison's folder to files that people look at."""

import os
from pathlib import Path

from flatbayes.reporting.html import render_page
from flatbayes.reporting.queries import Glossary, Results, default_glossary, read_results
from flatbayes.reporting.selection import read_selection
from flatbayes.reporting.summary_figure import draw_summary


def write_report(folder: Path | str, glossary: Glossary | None = None) -> Path:
    """Turn `folder/results.json` into a self-contained `folder/report.html` and return its path.

    A `selection.json` beside it, as `flatbayes.experiments.select` writes it, becomes a section of its own. The same
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
    results = {**read_results(folder), "selection": read_selection(folder)}
    return write_text_atomically(folder / "report.html", render_page(results, glossary or default_glossary()))


def write_summary_figure(results: Results, path: Path | str) -> Path:
    """Draw at one glance what flatness bought, as an SVG on a white card, and return its path.

    Raises:
        ImportError: matplotlib is not installed.
    """
    return write_text_atomically(Path(path), draw_summary(results))


def write_text_atomically(path: Path, text: str) -> Path:
    """Write under a temporary name, then rename: nobody ever reads half a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", newline="\n")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
