"""Queries on results, the conclusion, and number formats."""

import pytest

from flatbayes.experiments import ComparisonResult
from flatbayes.reporting.formats import (
    format_cost,
    format_mean_sd,
    format_number,
    format_ratio,
    format_signed,
    shorten_label,
    wrap_label,
)
from flatbayes.reporting.queries import default_glossary, format_conclusion, format_title, list_flatnesses


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.97123, "0.9712"),
        (-0.00001, "−1.0e−05"),
        (0, "0.0000"),
        (52.345, "52.34"),
        (1234567.0, "1,234,567"),
        (None, "–"),
        (float("nan"), "–"),
        (float("-inf"), "−∞"),
    ],
)
def test_number(value, text):
    assert format_number(value) == text


def test_other_formats():
    assert format_signed(0.01) == "+0.0100"
    assert format_signed(-0.01) == "−0.0100"
    assert format_mean_sd(0.5, None) == "0.5000"
    assert format_cost(480) == "480"
    assert format_cost(3.14159) == "3.14"
    assert format_cost(None) == format_ratio(1, 0) == format_ratio(None, 2) == "–"
    assert format_ratio(3, 2) == "1.50×"


def test_labels_are_shortened_in_the_middle_and_broken_after_brackets():
    assert shorten_label("A" * 30 + "Z" * 30, 20) == "A" * 13 + "…" + "Z" * 6
    assert wrap_label("Ensemble(member=SWAG(rank=10), size=3)", 15) == [
        "Ensemble(",
        "member=SWAG(",
        "rank=10),",
        "size=3)",
    ]
    assert wrap_label("A" * 25, 10) == ["A" * 10, "A" * 10, "A" * 5]
    assert "".join(wrap_label("MCDropout(rate=0.1)", 15)) == "MCDropout(rate=0.1)"


def test_conclusion_counts_the_verdicts(results):
    counts = {word: sum(row["winner"] == word for row in results["summary"]) for word in ("flat", "plain", "tie")}
    assert format_conclusion(ComparisonResult.from_dict(results)) == (
        f"Over 5 seeds on Digits(train_size=500), SAM(rho=0.1) improved {counts['flat']} of 25 metrics "
        f"(5 metrics × 5 posteriors), worsened {counts['plain']}, and {counts['tie']} differences "
        "are within noise (95 % paired intervals); corrected for 25 comparisons (Holm), "
        f"{counts['flat'] + counts['plain']} of these verdicts still stand."
    )
    results["summary"][0].update(interval=None)
    assert format_conclusion(ComparisonResult.from_dict(results)).endswith("; 1 could not be judged.")


def test_one_or_two_flatnesses_are_named_in_the_title(results):
    assert format_title(ComparisonResult.from_dict(results)) == "SAM(rho=0.1) against plain training"
    for title, count in (("SAM(rho=0), SAM(rho=1) against plain training", 2), ("Flat against plain training", 10)):
        flat_runs = [run for run in results["runs"] if run["flatness"] != "Plain"]
        for index, run in enumerate(flat_runs):
            run["flatness"] = f"SAM(rho={index % count})"
        typed = ComparisonResult.from_dict(results)
        assert format_title(typed) == title
        assert len(list_flatnesses(typed)) == count
    assert "Digits(train_size=500), flat training improved" in format_conclusion(typed)
    assert list_flatnesses(typed, "MAP()") == [f"SAM(rho={seed})" for seed in range(5)]


def test_no_verdict_without_an_interval(results):
    row = results["summary"][0] | {"difference": -0.1, "interval": [-0.2, -0.05], "winner": "flat"}
    rows = [row, {**row, "interval": None}, {**row, "difference": float("nan")}]
    typed = ComparisonResult.from_dict({**results, "summary": rows})
    assert [entry.verdict for entry in typed.rows] == ["flat", "unknown", "unknown"]


def test_the_default_glossary_has_directions_and_definitions():
    glossary = default_glossary()
    assert glossary.direction("nll") == "↓ lower is better"
    assert glossary.direction("accuracy") == "↑ higher is better"
    assert set(glossary.higher_is_better) < set(glossary.definitions)
    assert glossary.direction("coverage_95") == ""
