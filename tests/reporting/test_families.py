"""Families of metrics beside the usual ones: each in its own section, with its own count."""

import re

import pytest

from flatbayes.experiments import ComparisonResult
from flatbayes.metrics import METRIC_FAMILIES
from flatbayes.reporting import queries, summary_tables
from flatbayes.reporting.curves import SHIFT_CURVES, curve_panels
from flatbayes.reporting.html import render_page
from flatbayes.reporting.queries import default_glossary


@pytest.fixture
def typed(measured):
    return ComparisonResult.from_dict(measured)


def test_usual_metrics_and_families_are_counted_apart(typed):
    assert queries.list_families(typed) == ["Shift", "Sharpness"]
    assert len(queries.select_family(typed).rows) == 10
    assert queries.list_metrics(queries.select_family(typed, "Shift")) == list(METRIC_FAMILIES["Shift"])
    assert "10 metrics (5 metrics × 2 posteriors)" in queries.format_conclusion(queries.select_family(typed))


def test_the_page_has_a_section_for_each(typed):
    text = render_page(typed, default_glossary())
    for family in ("shift", "sharpness"):
        assert f'<section id="{family}">' in text or f'id="{family}"' in text
    assert METRIC_FAMILIES["Sharpness"]["gap_worst"].text in text
    assert len(curve_panels(typed, SHIFT_CURVES)) == 2


def test_ids_of_figures_are_unique_and_defined(typed):
    text = render_page(typed, default_glossary())
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(ids) == len(set(ids)) > 20
    assert set(re.findall(r'(?:url\(|href=")#([\w-]+)', text)) <= set(ids)


def test_the_terminal_has_a_table_for_each(typed):
    assert [str(table.title) for table in summary_tables(typed, 120)][1:] == ["Shift", "Sharpness"]


def test_verdicts_are_counted_again_after_the_correction(make_results):
    results = make_results(posteriors=["MAP()"])
    judged = sum(row["winner"] != "tie" for row in results["summary"])
    assert f"{judged} of these verdicts still stand" in queries.format_conclusion(ComparisonResult.from_dict(results))
    for row in results["summary"]:
        row["p_holm"] = 0.2
    assert "0 of these verdicts still stand" in queries.format_conclusion(ComparisonResult.from_dict(results))
