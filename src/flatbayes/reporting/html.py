"""The report as one self-contained HTML page: no scripts, no network, readable on a phone and on paper."""

import re
from collections.abc import Sequence
from importlib.resources import files

from flatbayes.reporting import queries, text
from flatbayes.reporting.coverage import coverage_panels
from flatbayes.reporting.curves import LANDSCAPE_CURVES, SHIFT_CURVES, curve_panels
from flatbayes.reporting.figures import difference_panels, metric_panels
from flatbayes.reporting.html_tables import cost_table, options_table, results_table, runs_table, verdict_table
from flatbayes.reporting.markers import Panel
from flatbayes.reporting.markup import Html, details, tag
from flatbayes.reporting.queries import Glossary, Results
from flatbayes.reporting.reliability import reliability_panels
from flatbayes.reporting.selection import selection_section

FAMILY_CURVES = {"Shift": SHIFT_CURVES, "Sharpness": LANDSCAPE_CURVES}
CONTENT_SECURITY_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def render_page(results: Results, glossary: Glossary) -> str:
    """The whole document.

    Raises:
        ImportError: matplotlib is not installed.
    """
    title = queries.format_title(results)
    usual = queries.select_family(results)
    parts = {name: content for name, content in list_sections(results, glossary).items() if content}
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=CONTENT_SECURITY_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{title} – flatbayes report"),
        tag("style", Html(read_style_sheet())),
    )
    links = (tag("a", name, href=f"#{section_id(name)}") for name in parts)
    main = (tag("section", tag("h2", name), *content, id=section_id(name)) for name, content in parts.items())
    body = tag("body", top(usual, title), tag("nav", *links, aria_label="Sections"), tag("main", *main))
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def section_id(name: str) -> str:
    """The id of a section."""
    return re.sub(r"\W+", "-", name.lower())


def read_style_sheet() -> str:
    """The page's CSS, a file beside this one."""
    return files("flatbayes.reporting").joinpath("report.css").read_text(encoding="utf-8")


def top(results: Results, title: str) -> Html:
    """Title, the conclusion in one sentence, and the score in figures."""
    measured = {"test": "measured on the test part", "val": "measured on the validation part"}
    part = measured.get(str((results.get("config") or {}).get("split")))
    names = queries.list_flatnesses(results)
    flat = f"flat: {', '.join(names)}" if len(names) > queries.MAX_FLATNESSES_IN_TITLE else None
    place = " · ".join(
        filter(None, (queries.format_subject(results, "data"), queries.format_subject(results, "model"), part))
    )
    counts = queries.count_verdicts(results["summary"])
    score = [
        ("flat", "flat better", counts["flat"]),
        ("tie", "within noise", counts["tie"]),
        ("plain", "plain better", counts["plain"]),
        ("unknown", "not judged", counts["unknown"]),
    ]
    tiles = [
        tag("li", tag("b", count), tag("span", word), class_=f"tile {kind}")
        for kind, word, count in score
        if count or kind != "unknown"
    ]
    return tag(
        "header",
        tag("p", f"flatbayes {results.get('flatbayes', '')} comparison report", class_="eyebrow"),
        tag("h1", title),
        tag("p", place, tag("br") if flat else None, flat, class_="subject"),
        tag("p", queries.format_conclusion(results), class_="lead"),
        tag("ul", *tiles, class_="score", aria_label="Number of metrics by verdict"),
    )


def list_sections(results: Results, glossary: Glossary) -> dict[str, list[Html]]:
    """The page's sections from top to bottom; an empty one is left out."""
    everything_measured, results = results, queries.select_family(results)
    reliability, coverage, curves = reliability_panels(results), coverage_panels(results), curve_panels(results)
    more = queries.list_families(everything_measured)
    unjudged = queries.count_verdicts(results["summary"])["unknown"] > 0
    has_cost = any(run.get("cost") for run in results["runs"])
    return {
        "Results": [verdict_table(results), results_table(results, glossary)],
        "Differences": [
            tag("p", text.DIFFERENCES_TEXT),
            legend(tie="within noise, or not judged" if unjudged else "within noise"),
            gallery(difference_panels(results, glossary)),
        ],
        "Means and seeds": [
            tag("p", text.MEANS_TEXT),
            legend(),
            gallery(metric_panels(results, glossary)),
        ],
        "Reliability": [tag("p", text.RELIABILITY_TEXT), legend(), gallery(reliability)] if reliability else [],
        "Coverage": [tag("p", text.COVERAGE_TEXT), legend(), gallery(coverage)] if coverage else [],
        **{name: family(queries.select_family(everything_measured, name), glossary) for name in more},
        "Learning curves": [tag("p", text.CURVES_TEXT), legend(lines=True), gallery(curves)] if curves else [],
        "Cost": [cost_table(results)] if has_cost else [],
        "Selection": selection_section(results["selection"]) if results.get("selection") else [],
        "How to read this": reading(everything_measured, glossary),
        "Runs and settings": everything(everything_measured),
    }


def family(results: Results, glossary: Glossary) -> list[Html]:
    """One of the tables beside the usual metrics, with its figures."""
    (name,) = queries.list_families(results)
    curves = curve_panels(results, FAMILY_CURVES[name]) if name in FAMILY_CURVES else []
    return [
        tag("p", text.FAMILY_TEXTS.get(name, "")),
        results_table(results, glossary),
        legend(tie="within noise"),
        gallery(difference_panels(results, glossary, f"difference-{section_id(name)}")),
        *([legend(lines=True), gallery(curves)] if curves else []),
    ]


def legend(tie: str | None = None, *, lines: bool = False) -> Html:
    """The key to marks and colours."""
    style = " line" if lines else ""
    keys = {"plain": "plain", "flat": "flat"}
    if tie:
        keys = {"flat": "flat better", "plain": "plain better", "tie": tie}
    return tag(
        "p",
        *(
            tag("span", tag("i", class_=f"key {kind}{style}", aria_hidden="true"), word)
            for kind, word in keys.items()
        ),
        class_="legend",
    )


def gallery(panels: Sequence[Panel]) -> Html:
    """Panels beside each other as far as the page is wide."""
    return tag("div", *(figure(panel) for panel in panels), class_="gallery")


def figure(panel: Panel) -> Html:
    """A panel under its caption."""
    note = tag("small", panel.note) if panel.note else None
    return tag("figure", tag("figcaption", tag("b", panel.title), " ", note), Html(panel.svg))


def reading(results: Results, glossary: Glossary) -> list[Html]:
    """What the intervals mean and how the metrics are defined."""
    terms = [
        tag(
            "div",
            tag("dt", metric),
            tag("dd", f"{define_metric(glossary, metric)} {describe_metric_direction(glossary, metric)}".strip()),
        )
        for metric in queries.list_metrics(results)
    ]
    return [*(tag("p", text) for text in text.explain_statistics(results)), tag("h3", "Metrics"), tag("dl", *terms)]


def define_metric(glossary: Glossary, metric: str) -> str:
    """The definition of a metric as a sentence."""
    text = glossary.definitions.get(metric, "No definition is recorded.").strip()
    return text if text.endswith((".", "!", "?")) else f"{text}."


def describe_metric_direction(glossary: Glossary, metric: str) -> str:
    """The direction of a metric as a sentence."""
    if metric not in glossary.higher_is_better:
        return ""
    return "Higher is better." if glossary.higher_is_better[metric] else "Lower is better."


def everything(results: Results) -> list[Html]:
    """Every run, the configuration and the machine, closed until asked for."""
    parts = [details(f"All {len(results['runs'])} runs", runs_table(results))]
    for key, name in (("config", "Configuration"), ("environment", "Environment")):
        if results.get(key):
            parts.append(details(name, options_table(name, results[key])))
    return parts
