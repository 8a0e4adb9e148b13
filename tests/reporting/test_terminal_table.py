"""The summary table in the terminal and in Markdown."""

import io
import re

import pytest
from rich.console import Console

from flatbayes.experiments import ComparisonResult, SummaryRow
from flatbayes.reporting import markdown_table, summary_table
from flatbayes.reporting.formats import format_interval


def interval(row):
    return format_interval(SummaryRow.from_dict(row))


def shown(results, width=100):
    console = Console(file=io.StringIO(), width=width)
    console.print(summary_table(ComparisonResult.from_dict(results), width))
    return console.file.getvalue()


def test_terminal_table_fits_100_columns_with_every_number_whole(results):
    text = shown(results)
    assert max(map(len, text.splitlines())) <= 100
    assert "…" not in text
    lines = [line for line in text.splitlines() if "±" in line and "[" in line]
    assert len(lines) == len(results["summary"])
    for line, row in zip(lines, results["summary"], strict=True):
        assert f" {row['metric']} " in f" {line} "
        assert line.split()[-1] == row["winner"]
        assert f"{row['plain']:.4f} ± {row['plain_sd']:.4f}" in line
        assert f"{row['difference']:+.4f}".replace("-", "−") in line


def test_in_80_columns_only_the_deviations_are_left_out(results):
    text = shown(results, 80)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    lines = [line for line in text.splitlines() if "[" in line]
    for line, row in zip(lines, results["summary"], strict=True):
        assert f" {row['metric']} " in line
        assert f" {row['plain']:.4f}  {row['flat']:.4f} " in line
        assert interval(row) in line
        assert line.split()[-1] == row["winner"]


def test_the_default_width_is_that_of_the_terminal(results, monkeypatch):
    for columns, deviations in (("80", False), ("120", True)):
        monkeypatch.setenv("COLUMNS", columns)
        assert ("±" in str(summary_table(ComparisonResult.from_dict(results)).caption)) == deviations


def test_a_label_with_brackets_is_text_and_long_labels_are_whole(make_results):
    results = make_results(
        seeds=2, posteriors=["[red]x[/red]", "Ensemble(member=Ensemble(member=SWAG(), size=2), size=3)"]
    )
    text = shown(results)
    assert "[red]x[/red]" in text
    first_column = "".join(line[:16].strip() for line in text.splitlines())
    assert "Ensemble(member=Ensemble(member=SWAG(), size=2), size=3)".replace(" ", "") in first_column.replace(
        " ", ""
    )


def test_long_metric_names_reduce_the_width_of_the_labels(make_results):
    metrics = ["nll", "mutual_information", "ece"]
    text = shown(make_results(seeds=2, posteriors=["MCDropout(rate=0.1)"], metrics=metrics, epochs=1))
    assert " mutual_information " in text
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize("scale", [1e-5, 100.0])
def test_long_numbers_reduce_the_width_of_the_labels(make_results, width, scale):
    results = make_results(seeds=2, posteriors=["Ensemble(member=SWAG(rank=10), size=3)"], epochs=1)
    for row in results["summary"]:
        for key in ("plain", "flat", "plain_sd", "flat_sd", "difference"):
            row[key] *= scale
        row["interval"] = [scale * end for end in row["interval"]]
    text = shown(results, width)
    lines = [line for line in text.splitlines() if "[" in line]
    assert max(map(len, text.splitlines())) <= width
    for line, row in zip(lines, results["summary"], strict=True):
        assert interval(row) in line
        assert line.split()[-1] == row["winner"]
    labels = [re.split(" {2,}", line)[0].replace(" ", "") for line in text.splitlines()[3:-1]]
    assert "".join(labels) == "Ensemble(member=SWAG(rank=10),size=3)"


def test_a_wide_terminal_does_not_break_labels(make_results):
    label = "Ensemble(member=SWAG(rank=10), size=3)"
    assert label in shown(make_results(seeds=2, posteriors=[label], epochs=1), 130)


def test_many_flatnesses_are_listed_once_below_the_title(results):
    for run in results["runs"]:
        run["flatness"] = run["flatness"].replace("0.1", str(run["seed"]))
    first, second = shown(results).splitlines()[:2]
    assert first.strip() == "Flat against Plain on Digits(train_size=500)"
    assert second.strip() == "flat: " + ", ".join(f"SAM(rho={seed})" for seed in range(5))


def test_one_seed_shows_means_alone(make_results):
    text = shown(make_results(seeds=1, posteriors=["MAP()"]))
    assert "±" not in text.split("mean ±")[0]
    assert "[" not in text


def test_markdown_table_has_a_row_for_each_entry_and_bold_winners(results):
    lines = markdown_table(ComparisonResult.from_dict(results)).splitlines()
    assert len(lines) == 2 + len(results["summary"])
    assert len({line.count("|") for line in lines}) == 1
    for line, row in zip(lines[2:], results["summary"], strict=True):
        bold = f"**{row['flat']:.4f} ± {row['flat_sd']:.4f}**" in line
        assert bold == (row["winner"] == "flat")


@pytest.mark.parametrize(("label", "literal"), [("a|b", "a\\|b"), ("<script>", "&lt;script>"), ("a_b*", "a\\_b\\*")])
def test_markdown_labels_are_literal(make_results, label, literal):
    results = make_results(seeds=2, posteriors=[label], metrics=["nll"], epochs=1)
    assert f"| {literal} |" in markdown_table(ComparisonResult.from_dict(results))


def test_the_summary_is_text_in_a_notebook_too(results, monkeypatch):
    """There a console of rich shows its output instead of writing it into the given file."""
    comparison = ComparisonResult.from_dict(results)
    in_terminal = comparison.summary()
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert comparison.summary() == in_terminal
