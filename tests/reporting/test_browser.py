"""What a browser makes of a report that has everything: families, selection, several flatnesses, long names."""

import json
import re

import pytest

from browsing import BROWSER, opened
from flatbayes.reporting import write_report
from flatbayes.reporting.html import section_id

PROBE = """<script>
document.querySelectorAll("details").forEach(block => { block.open = true; });
const seen = element => element.getBoundingClientRect();
const drawn = [...document.querySelectorAll("figure svg")].filter(figure => seen(figure).height > 40);
const lost = [...document.querySelectorAll("use")].filter(use => !document.querySelector(use.getAttribute("href")));
const wide = [...document.querySelectorAll(".results tr")].filter(row => seen(row).right > innerWidth);
const overflow = document.documentElement.scrollWidth - innerWidth;
const counts = [`overflow ${overflow}`, `drawn ${drawn.length}`, `lost ${lost.length}`, `wide ${wide.length}`];
console.log(`${innerWidth}: ${counts.join(", ")}`);
</script></html>"""
WIDTHS = (320, 390, 1200)
SECTIONS = (
    "Results",
    "Differences",
    "Means and seeds",
    "Reliability",
    "Shift",
    "Sharpness",
    "Learning curves",
    "Cost",
    "Selection",
    "How to read this",
    "Runs and settings",
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium")


@pytest.fixture
def report(tmp_path, measured, selection):
    long = "Ensemble(member=SWAG(rank=10, scale=1.0, prior_precision=0.001), size=3)"
    for entry in (*measured["runs"], *measured["summary"]):
        if entry["posterior"] == "SWAG()":
            entry["posterior"] = long
    for run in measured["runs"]:
        run["flatness"] = run["flatness"].replace("0.1", f"0.{run['seed'] + 1}")
    (tmp_path / "results.json").write_text(json.dumps(measured), encoding="utf-8")
    (tmp_path / "selection.json").write_text(json.dumps(selection), encoding="utf-8")
    return write_report(tmp_path)


def test_every_section_is_there_and_the_console_is_silent(report, tmp_path):
    document, said = opened(report.as_uri(), tmp_path / "profile")
    assert said == []
    assert re.findall(r'<section id="([^"]*)"', document) == [section_id(name) for name in SECTIONS]


def test_nothing_scrolls_sideways_and_every_figure_is_drawn_with_its_own_marks(report, tmp_path):
    text = report.read_text(encoding="utf-8")
    policy = re.search(r"<meta http-equiv=[^>]*>", text)[0]
    report.write_text(text.replace(policy, "").replace("</html>", PROBE), encoding="utf-8")
    frames = "".join(f'<iframe src="{report.name}" width="{width}" height="900"></iframe>' for width in WIDTHS)
    (tmp_path / "frames.html").write_text(f"<!doctype html>{frames}", encoding="utf-8")
    _, said = opened((tmp_path / "frames.html").as_uri(), tmp_path / "profile")
    drawn = text.count("<svg")
    assert sorted(said) == sorted(f"{width}: overflow 0, drawn {drawn}, lost 0, wide 0" for width in WIDTHS)
