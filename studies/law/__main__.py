"""The law from all results that are there: `FLATBAYES_DATA=... python -m studies.law`.

Writes docs/results/law.json, docs/img/when-flat-wins.svg and the tables of docs/when-flat-wins.md. The features of
data sets whose studies did not write them are measured once (minutes) and kept in law-features.json.
"""

import argparse
from pathlib import Path
from typing import Any

from flatbayes.core.files import read_json, write_json, write_text
from studies.law.figure import draw_figure
from studies.law.measure import measure_all
from studies.law.page import update_page
from studies.law.summary import summarize
from studies.law.twins import read_all

DOCS = Path(__file__).parents[2] / "docs"
FEATURES_PATH = DOCS / "results" / "law-features.json"


def main() -> None:
    """Measure what is missing, fit and test the rules, and write figure, numbers and page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--images",
        type=Path,
        default=Path("runs/images"),
        help="folder of studies/images, for its images and features",
    )
    options = parser.parse_args()
    features: dict[str, Any] = read_json(FEATURES_PATH) if FEATURES_PATH.is_file() else {}
    features = measure_all(
        features, DOCS / "results", options.images / "cache", lambda measured: write_json(FEATURES_PATH, measured)
    )
    results = summarize(read_all(DOCS / "results", features))
    write_json(DOCS / "results" / "law.json", results)
    write_text(DOCS / "img" / "when-flat-wins.svg", draw_figure(results))
    update_page(DOCS / "when-flat-wins.md", results)


if __name__ == "__main__":
    main()
