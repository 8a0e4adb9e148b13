"""HTML report of a comparison: one self-contained page without scripts, readable on a phone and on paper."""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from flatbayes.core.console import replace_controls
from flatbayes.core.files import write_text
from flatbayes.experiments.results import ComparisonResult
from flatbayes.experiments.run_folder import REPORT_FILE
from flatbayes.experiments.selection import SelectionRecord
from flatbayes.reporting import queries, text
from flatbayes.reporting.calibration_figures import coverage_panels, reliability_panels
from flatbayes.reporting.curves import LANDSCAPE_CURVES, SHIFT_CURVES, curve_panels
from flatbayes.reporting.figures import difference_panels, metric_panels
from flatbayes.reporting.formats import format_number
from flatbayes.reporting.queries import Glossary, default_glossary, list_metrics, read_results
from flatbayes.reporting.selection import summarize_selection
from flatbayes.reporting.tables import (
    flatten_options,
    make_cost_table,
    make_results_table,
    make_runs_table,
    make_verdict_table,
)

FAMILY_CURVES = {"Shift": SHIFT_CURVES, "Sharpness": LANDSCAPE_CURVES}
SPLIT_TEXTS = {"test": "measured on the test split", "val": "measured on the validation split"}


def write_report(folder: Path | str, glossary: Glossary | None = None) -> Path:
    """Write a self-contained `report.html` from `results.json`, and return its path.

    A `selection.json` in the folder becomes a section of its own. Equal results give equal bytes. An existing page is
    replaced only by a complete one.

    Args:
        folder: Folder of a comparison, as `flatbayes compare --out` writes it.
        glossary: Directions and definitions of the metrics, by default those of `flatbayes.metrics`.

    Raises:
        FileNotFoundError: The folder has no results.json.
        ValueError: results.json or selection.json is damaged.
        ImportError: matplotlib is not installed.

    Examples:
        >>> path = results.save(Path())
        >>> write_report(Path()).name
        'report.html'
    """
    folder = Path(folder)
    results = read_results(folder)
    page = render_page(results, glossary or default_glossary(list_metrics(results)), SelectionRecord.load(folder))
    return write_text(folder / REPORT_FILE, page)


def write_page(results: ComparisonResult, path: Path) -> Path:
    """Write the page of results in memory, and return its path.

    A folder gets `report.html`.

    Raises:
        OSError: It cannot be written.
        ImportError: matplotlib is not installed.
    """
    path = path / REPORT_FILE if path.is_dir() else path
    return write_text(path, render_page(results, default_glossary(list_metrics(results))))


def render_page(results: ComparisonResult, glossary: Glossary, selection: SelectionRecord | None = None) -> str:
    """The whole document; sections without content are left out.

    Raises:
        ImportError: matplotlib is not installed.
    """
    usual = queries.select_family(results)
    families = [_make_family(results, name, glossary) for name in queries.list_families(results)]
    reliability, coverage, curves = reliability_panels(usual), coverage_panels(usual), curve_panels(usual)
    costs = make_cost_table(usual)
    optional_sections = (
        [("Reliability", reliability), ("Coverage", coverage)]
        + [(str(family["name"]), family) for family in families]
        + [("Learning curves", curves), ("Cost", costs), ("Selection", selection)]
    )
    counts, flatnesses = queries.count_verdicts(usual.rows), queries.list_flatnesses(usual)
    tiles = [
        ("flat", "flat better", counts["flat"]),
        ("tie", "within noise", counts["tie"]),
        ("plain", "plain better", counts["plain"]),
        ("unknown", "not judged", counts["unknown"]),
    ]
    subject = (
        queries.format_data(usual),
        queries.format_model(usual),
        SPLIT_TEXTS.get(str(results.config.get("split"))),
    )
    options = {"Configuration": results.config, "Environment": results.environment}
    return (
        make_environment()
        .get_template("report.html.j2")
        .render(
            title=queries.format_title(usual),
            version=results.version,
            subject=[entry for entry in subject if entry],
            flatnesses=", ".join(flatnesses) if len(flatnesses) > queries.MAX_FLATNESSES_IN_TITLE else "",
            conclusion=queries.format_conclusion(usual),
            tiles=[tile for tile in tiles if tile[2] or tile[0] != "unknown"],
            section_names=[
                *("Results", "Differences", "Means and seeds"),
                *(name for name, content in optional_sections if content),
                *("How to read this", "Runs and settings"),
            ],
            text=text,
            verdicts=make_verdict_table(usual),
            results_table=make_results_table(usual, glossary),
            tie_label="within noise, or not judged" if counts["unknown"] else "within noise",
            difference_panels=difference_panels(usual, glossary),
            metric_panels=metric_panels(usual, glossary),
            reliability_panels=reliability,
            coverage_panels=coverage,
            families=families,
            curve_panels=curves,
            costs=costs,
            selection=None if selection is None else summarize_selection(selection),
            explanations=text.explain_statistics(results),
            definitions=[(name, describe_metric(glossary, name)) for name in queries.list_metrics(results)],
            runs=make_runs_table(results),
            options={name: list(flatten_options(values)) for name, values in options.items() if values},
        )
    )


@cache
def make_environment() -> Environment:
    """The templates; text is escaped unless it is marked as markup."""
    environment = Environment(
        loader=PackageLoader("flatbayes.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: replace_controls(value) if type(value) is str else value,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"breakable": break_label, "section_id": section_id, "number": format_number}
    return environment


def section_id(name: str) -> str:
    """The id of a section."""
    return re.sub(r"\W+", "-", name.lower())


def break_label(label: str, after: str = "(,") -> Markup:
    """A label that browsers may break after any of these characters."""
    pieces = re.split(f"(?<=[{re.escape(after)}])", label) if after else [label]
    return Markup("<wbr>").join(pieces)


def describe_metric(glossary: Glossary, metric: str) -> str:
    """Definition and direction of a metric, as sentences."""
    definition = glossary.definitions.get(metric, "No definition is recorded.").strip()
    if not definition.endswith((".", "!", "?")):
        definition += "."
    if metric not in glossary.higher_is_better:
        return definition
    return f"{definition} {'Higher' if glossary.higher_is_better[metric] else 'Lower'} is better."


def _make_family(results: ComparisonResult, name: str, glossary: Glossary) -> Mapping[str, object]:
    """Contents of the section of one family of metrics."""
    family = queries.select_family(results, name)
    return {
        "name": name,
        "results_table": make_results_table(family, glossary),
        "difference_panels": difference_panels(family, glossary, f"difference-{section_id(name)}"),
        "curve_panels": curve_panels(family, FAMILY_CURVES[name]) if name in FAMILY_CURVES else [],
    }
