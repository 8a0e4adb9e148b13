"""The report as one self-contained HTML page: no scripts, no network, readable on a phone and on paper."""

import re
from collections.abc import Sequence
from importlib.resources import files

from flatbayes.reports import prose
from flatbayes.reports import results as ask
from flatbayes.reports.coverage import coverage_panels
from flatbayes.reports.curves import LANDSCAPE, SHIFT, curve_panels
from flatbayes.reports.figures import difference_panels, metric_panels
from flatbayes.reports.marks import Panel
from flatbayes.reports.markup import Html, details, tag
from flatbayes.reports.reliability import reliability_panels
from flatbayes.reports.results import Glossary, Results
from flatbayes.reports.selection import selection_section
from flatbayes.reports.tables import cost_table, glance_table, pairs_table, results_table, runs_table

CURVES = {"Shift": SHIFT, "Sharpness": LANDSCAPE}
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def page(results: Results, glossary: Glossary) -> str:
    """The whole document.

    Raises:
        ImportError: matplotlib is not installed.
    """
    title = ask.title(results)
    usual = ask.of_family(results)
    parts = {name: content for name, content in sections(results, glossary).items() if content}
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{title} – flatbayes report"),
        tag("style", Html(style_sheet())),
    )
    links = (tag("a", name, href=f"#{anchor(name)}") for name in parts)
    main = (tag("section", tag("h2", name), *content, id=anchor(name)) for name, content in parts.items())
    body = tag("body", top(usual, title), tag("nav", *links, aria_label="Sections"), tag("main", *main))
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def anchor(name: str) -> str:
    """The id of a section."""
    return re.sub(r"\W+", "-", name.lower())


def style_sheet() -> str:
    """The page's CSS, a file beside this one."""
    return files("flatbayes.reports").joinpath("report.css").read_text(encoding="utf-8")


def top(results: Results, title: str) -> Html:
    """Title, the conclusion in one sentence, and the score in figures."""
    measured = {"test": "measured on the test part", "val": "measured on the validation part"}
    part = measured.get(str((results.get("config") or {}).get("part")))
    names = ask.flatnesses(results)
    flat = f"flat: {', '.join(names)}" if len(names) > ask.FEW else None
    place = " · ".join(filter(None, (ask.subject(results, "data"), ask.subject(results, "model"), part)))
    counts = ask.tally(results["summary"])
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
        tag("p", ask.conclusion(results), class_="lead"),
        tag("ul", *tiles, class_="score", aria_label="Number of metrics by verdict"),
    )


def sections(results: Results, glossary: Glossary) -> dict[str, list[Html]]:
    """The page's sections from top to bottom; an empty one is left out."""
    everything_measured, results = results, ask.of_family(results)
    reliability, coverage, curves = reliability_panels(results), coverage_panels(results), curve_panels(results)
    more = ask.families(everything_measured)
    unjudged = ask.tally(results["summary"])["unknown"] > 0
    has_cost = any(run.get("cost") for run in results["runs"])
    return {
        "Results": [glance_table(results), results_table(results, glossary)],
        "Differences": [
            tag("p", prose.DIFFERENCES),
            legend(tie="within noise, or not judged" if unjudged else "within noise"),
            gallery(difference_panels(results, glossary)),
        ],
        "Means and seeds": [
            tag("p", prose.MEANS),
            legend(),
            gallery(metric_panels(results, glossary)),
        ],
        "Reliability": [tag("p", prose.RELIABILITY), legend(), gallery(reliability)] if reliability else [],
        "Coverage": [tag("p", prose.COVERAGE), legend(), gallery(coverage)] if coverage else [],
        **{name: family(ask.of_family(everything_measured, name), glossary) for name in more},
        "Learning curves": [tag("p", prose.CURVES), legend(lines=True), gallery(curves)] if curves else [],
        "Cost": [cost_table(results)] if has_cost else [],
        "Selection": selection_section(results["selection"]) if results.get("selection") else [],
        "How to read this": reading(everything_measured, glossary),
        "Runs and settings": everything(everything_measured),
    }


def family(results: Results, glossary: Glossary) -> list[Html]:
    """One of the tables beside the usual metrics, with its figures."""
    (name,) = ask.families(results)
    curves = curve_panels(results, CURVES[name]) if name in CURVES else []
    return [
        tag("p", prose.FAMILIES.get(name, "")),
        results_table(results, glossary),
        legend(tie="within noise"),
        gallery(difference_panels(results, glossary, f"difference-{anchor(name)}")),
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
        tag("div", tag("dt", metric), tag("dd", f"{define(glossary, metric)} {says(glossary, metric)}".strip()))
        for metric in ask.metrics(results)
    ]
    return [*(tag("p", text) for text in prose.reading(results)), tag("h3", "Metrics"), tag("dl", *terms)]


def define(glossary: Glossary, metric: str) -> str:
    """The definition of a metric as a sentence."""
    text = glossary.definitions.get(metric, "No definition is recorded.").strip()
    return text if text.endswith((".", "!", "?")) else f"{text}."


def says(glossary: Glossary, metric: str) -> str:
    """The direction of a metric as a sentence."""
    if metric not in glossary.higher_is_better:
        return ""
    return "Higher is better." if glossary.higher_is_better[metric] else "Lower is better."


def everything(results: Results) -> list[Html]:
    """Every run, the configuration and the machine, closed until asked for."""
    parts = [details(f"All {len(results['runs'])} runs", runs_table(results))]
    for key, name in (("config", "Configuration"), ("environment", "Environment")):
        if results.get(key):
            parts.append(details(name, pairs_table(name, results[key])))
    return parts
