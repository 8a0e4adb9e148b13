"""Draws the figure of the README and of the start page, from the results of the demo.

`python docs/hooks/figures.py` writes `docs/img/flat-against-plain.svg` and its variant for phones; a test compares.
"""

from pathlib import Path

from flatbayes.core.files import read_json
from flatbayes.experiments import ComparisonResult
from flatbayes.reporting.summary_figure import draw_summary

DOCS = Path(__file__).parents[1]
RESULTS = DOCS / "results" / "demo.json"
FIGURES = {"flat-against-plain.svg": False, "flat-against-plain-phone.svg": True}
"""Files, and whether they are drawn for the width of a phone."""


def render_figures() -> dict[Path, str]:
    """Text of every file, by path."""
    results = ComparisonResult.from_dict(read_json(RESULTS))
    return {DOCS / "img" / name: draw_summary(results, narrow=narrow) for name, narrow in FIGURES.items()}


if __name__ == "__main__":
    for path, text in render_figures().items():
        path.write_text(text, encoding="utf-8")
