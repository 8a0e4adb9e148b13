"""The law from all results that are there: `FLATBAYES_DATA=... python -m studies.law`.

Writes docs/results/law.json, docs/img/when-flat-wins.svg and the tables of docs/when-flat-wins.md. The features of
data sets whose studies did not write them are measured once (about two minutes) and kept in law-features.json.
"""

from pathlib import Path
from typing import Any

from flatbayes.core.files import read_json, write_json, write_text
from studies.law.figure import draw_figure
from studies.law.page import update_page
from studies.law.summary import summarize
from studies.law.twins import read_all

DOCS = Path(__file__).parents[2] / "docs"
FEATURES_PATH = DOCS / "results" / "law-features.json"


def main() -> None:
    """Measure what is missing, fit and test the rules, and write figure, numbers and page."""
    features: dict[str, Any] = read_json(FEATURES_PATH) if FEATURES_PATH.is_file() else {}
    from studies.law.measure import NUM_TASKS, measure_all

    if len(features) < NUM_TASKS:
        features = measure_all(features, lambda measured: write_json(FEATURES_PATH, measured))
    results = summarize(read_all(DOCS / "results", features))
    write_json(DOCS / "results" / "law.json", results)
    write_text(DOCS / "img" / "when-flat-wins.svg", draw_figure(results))
    update_page(DOCS / "when-flat-wins.md", results)


if __name__ == "__main__":
    main()
