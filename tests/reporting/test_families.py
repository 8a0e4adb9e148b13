"""Tables beside the usual metrics: each in a section of its own, with its own count."""

import re

from flatbayes.metrics import METRIC_FAMILIES
from flatbayes.reporting import queries, summary_tables
from flatbayes.reporting.curves import SHIFT_CURVES, curve_panels
from flatbayes.reporting.html import render_page
from flatbayes.reporting.queries import default_glossary


def test_usual_metrics_and_families_are_counted_apart(measured):
    assert queries.list_families(measured) == ["Shift", "Sharpness"]
    assert len(queries.select_family(measured)["summary"]) == 10
    assert queries.list_metrics(queries.select_family(measured, "Shift")) == list(METRIC_FAMILIES["Shift"])
    assert "10 metrics (5 metrics × 2 posteriors)" in queries.format_conclusion(queries.select_family(measured))


def test_the_page_has_a_section_for_each(measured):
    text = render_page(measured, default_glossary())
    for family in ("shift", "sharpness"):
        assert f'<section id="{family}">' in text or f'id="{family}"' in text
    assert METRIC_FAMILIES["Sharpness"]["gap_worst"][1] in text
    assert len(curve_panels(measured, SHIFT_CURVES)) == 2


def test_no_figure_borrows_the_marks_of_another(measured):
    text = render_page(measured, default_glossary())
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(ids) == len(set(ids)) > 20
    assert set(re.findall(r'(?:url\(|href=")#([\w-]+)', text)) <= set(ids)


def test_the_terminal_has_a_table_for_each(measured):
    assert [str(table.title) for table in summary_tables(measured, 120)][1:] == ["Shift", "Sharpness"]


def test_a_verdict_is_counted_once_more_after_the_correction(make_results):
    results = make_results(posteriors=["Point()"])
    judged = sum(row["winner"] != "tie" for row in results["summary"])
    assert f"{judged} of these verdicts still stand" in queries.format_conclusion(results)
    for row in results["summary"]:
        row["p_holm"] = 0.2
    assert "0 of these verdicts still stand" in queries.format_conclusion(results)
