"""The tables of the HTML report."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from flatbayes.reporting import queries
from flatbayes.reporting.formats import (
    MISSING,
    format_cost,
    format_effect_size,
    format_interval,
    format_number,
    format_p_value,
    format_ratio,
    format_side,
    format_signed,
)
from flatbayes.reporting.markup import Html, breakable, header, join, row, table, tag
from flatbayes.reporting.queries import Glossary, Results

VERDICT_PHRASES = {"flat": "flat better", "plain": "plain better", "tie": "within noise", "unknown": "no interval"}
VERDICT_LABELS = {"flat": "flat", "plain": "plain", "tie": "tie", "unknown": MISSING}
COST_LABELS = {
    "train_seconds": "Training time in seconds",
    "gradients": "Gradients computed",
    "peak_memory_mb": "Peak memory in MB",
}


def verdict_table(results: Results) -> Html:
    """Who wins, posterior by metric, one word in each cell."""
    names = queries.list_metrics(results)
    rows = [
        row(
            breakable(posterior),
            *(verdict_cell(queries.find_row(results, posterior, metric), VERDICT_LABELS) for metric in names),
        )
        for posterior in queries.list_posteriors(results)
    ]
    return table(
        "Which twin is better: flat, plain, or tie (the 95 % interval of the difference contains zero)",
        header("Posterior", *(breakable(name, "_") for name in names), numeric_from=len(names) + 1),
        tag("tbody", *rows),
        class_="glance",
    )


def verdict_cell(entry: Mapping[str, Any] | None, labels: Mapping[str, str]) -> Html:
    """The verdict as a word, coloured besides."""
    word = "unknown" if entry is None else queries.judge_row(entry)
    return tag("td", tag("span", labels[word], class_=f"verdict {word}"))


def results_table(results: Results, glossary: Glossary) -> Html:
    """Every number of the summary, grouped by posterior."""
    groups = [posterior_group(results, posterior, glossary) for posterior in queries.list_posteriors(results)]
    return table(
        f"Mean ± standard deviation over {queries.format_count(len(queries.list_seeds(results)), 'seed')}; "
        "the difference is flat − plain of the same seed, with its 95 % paired interval",
        tag(
            "thead",
            tag(
                "tr",
                tag("th", "Metric", scope="col"),
                *(
                    tag("th", name, scope="col", class_="num")
                    for name in (
                        "Plain",
                        flat_column_name(results),
                        "Difference",
                        "95 % interval",
                        "Holm p",
                        "Effect",
                    )
                ),
                tag("th", "Verdict", scope="col"),
            ),
        ),
        *groups,
        class_="results",
    )


def flat_column_name(results: Results) -> str:
    """The flatness if there is but one; with several, each posterior's row names its own."""
    names = queries.list_flatnesses(results)
    return names[0] if len(names) == 1 else "Flat"


def posterior_group(results: Results, posterior: str, glossary: Glossary) -> Html:
    """The rows of one posterior under its name."""
    rows = [entry for entry in results["summary"] if entry["posterior"] == posterior]
    own = None
    if len(queries.list_flatnesses(results)) > 1:
        own = tag("small", f" flat: {', '.join(queries.list_flatnesses(results, posterior))}")
    name = tag(
        "tr",
        tag("th", tag("span", breakable(posterior), own, class_="pin"), scope="rowgroup", colspan=8),
        class_="group",
    )
    return tag("tbody", name, *(result_row(entry, glossary) for entry in rows))


def result_row(entry: Mapping[str, Any], glossary: Glossary) -> Html:
    """One metric of one posterior."""
    metric = entry["metric"]
    arrow = glossary.direction(metric)
    head = join(
        breakable(metric, "_"), tag("span", f" {arrow[0]}", title=arrow[2:], class_="arrow") if arrow else None
    )
    cells = {
        "Plain": format_side(entry, "plain"),
        "Flat": format_side(entry, "flat"),
        "Difference": format_signed(entry.get("difference")),
        "95 %": format_interval(entry),
        "Holm p": format_p_value(entry.get("p_holm")),
        "Effect": format_effect_size(entry.get("effect_size")),
    }
    named = (tag("td", text, class_="num", data_label=label) for label, text in cells.items())
    return row(head, *named, verdict_cell(entry, VERDICT_PHRASES))


def cost_table(results: Results) -> Html:
    """What each twin cost, and how many times more flat did."""
    kinds = [key for key in COST_LABELS if any(key in (run.get("cost") or {}) for run in results["runs"])]
    top = tag(
        "tr",
        tag("th", "Posterior", scope="col", rowspan=2),
        *(tag("th", COST_LABELS[key], scope="colgroup", colspan=3, class_="span") for key in kinds),
    )
    below = tag(
        "tr",
        *(tag("th", name, scope="col", class_="num") for _ in kinds for name in ("plain", "flat", "ratio")),
    )
    rows = [
        row(breakable(posterior), *(cell for key in kinds for cell in cost_cells(results, posterior, key)))
        for posterior in queries.list_posteriors(results)
    ]
    return table("Cost: mean over seeds, and the ratio flat / plain", tag("thead", top, below), tag("tbody", *rows))


def cost_cells(results: Results, posterior: str, key: str) -> tuple[str, str, str]:
    """Plain, flat and their ratio."""
    plain, flat = (
        queries.mean_sd((run.get("cost") or {}).get(key) for run in queries.select_runs(results, posterior, side))[0]
        for side in (False, True)
    )
    return format_cost(plain), format_cost(flat), format_ratio(flat, plain)


def runs_table(results: Results) -> Html:
    """Every run as it was measured."""
    names = queries.unique_values(name for run in results["runs"] for name in run["metrics"])
    costs = [key for key in COST_LABELS if any(key in (run.get("cost") or {}) for run in results["runs"])]
    rows = [
        row(
            breakable(run["posterior"]),
            tag("td", run["flatness"]),
            str(run["seed"]),
            *(format_number(run["metrics"].get(name)) for name in names),
            *(format_cost((run.get("cost") or {}).get(key)) for key in costs),
        )
        for run in results["runs"]
    ]
    return table(
        f"All {len(rows)} runs",
        header("Posterior", "Flatness", "Seed", *names, *costs, numeric_from=2),
        tag("tbody", *rows),
    )


def options_table(caption: str, values: Mapping[str, Any]) -> Html:
    """A nested dict as rows of dotted keys and values."""
    rows = [row(key, value, numeric=False) for key, value in flatten_options(values)]
    return table(caption, header("Option", "Value", numeric_from=2), tag("tbody", *rows), class_="pairs")


def flatten_options(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys and their values as text."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flatten_options(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
