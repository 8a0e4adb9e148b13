"""Tables beside the usual metrics: each in a section of its own, with its own count."""

import re

from flatbayes.metrics import FAMILIES
from flatbayes.reports import results as ask
from flatbayes.reports import summary_tables
from flatbayes.reports.curves import SHIFT, curve_panels
from flatbayes.reports.html import page
from flatbayes.reports.results import installed_glossary


def test_usual_metrics_and_families_are_counted_apart(measured):
    assert ask.families(measured) == ["Shift", "Sharpness"]
    assert len(ask.of_family(measured)["summary"]) == 10
    assert ask.metrics(ask.of_family(measured, "Shift")) == list(FAMILIES["Shift"])
    assert "10 metrics (5 metrics × 2 posteriors)" in ask.conclusion(ask.of_family(measured))


def test_the_page_has_a_section_for_each(measured):
    text = page(measured, installed_glossary())
    for family in ("shift", "sharpness"):
        assert f'<section id="{family}">' in text or f'id="{family}"' in text
    assert FAMILIES["Sharpness"]["gap_worst"][1] in text
    assert len(curve_panels(measured, SHIFT)) == 2


def test_no_figure_borrows_the_marks_of_another(measured):
    text = page(measured, installed_glossary())
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(ids) == len(set(ids)) > 20
    assert set(re.findall(r'(?:url\(|href=")#([\w-]+)', text)) <= set(ids)


def test_the_terminal_has_a_table_for_each(measured):
    assert [str(table.title) for table in summary_tables(measured, 120)][1:] == ["Shift", "Sharpness"]


def test_a_verdict_is_counted_once_more_after_the_correction(make_results):
    results = make_results(posteriors=["Point()"])
    judged = sum(row["wins"] != "tie" for row in results["summary"])
    assert f"{judged} of these verdicts still stand" in ask.conclusion(results)
    for row in results["summary"]:
        row["p_holm"] = 0.2
    assert "0 of these verdicts still stand" in ask.conclusion(results)
