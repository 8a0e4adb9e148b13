"""The tables of the HTML report."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from flatbayes.reports import results as ask
from flatbayes.reports.formats import (
    NOTHING,
    amount,
    bracket,
    effect_size,
    number,
    probability,
    ratio,
    signed,
    spread,
)
from flatbayes.reports.markup import Html, breakable, header, join, row, table, tag
from flatbayes.reports.results import Glossary, Results

WORDS = {"flat": "flat better", "plain": "plain better", "tie": "within noise", "unknown": "no interval"}
SHORT_WORDS = {"flat": "flat", "plain": "plain", "tie": "tie", "unknown": NOTHING}
COSTS = {
    "train_seconds": "Training time in seconds",
    "gradients": "Gradients computed",
    "peak_memory_mb": "Peak memory in MB",
}


def glance_table(results: Results) -> Html:
    """Who wins, posterior by metric, one word in each cell."""
    names = ask.metrics(results)
    rows = [
        row(
            breakable(posterior),
            *(word_cell(ask.row_of(results, posterior, metric), SHORT_WORDS) for metric in names),
        )
        for posterior in ask.posteriors(results)
    ]
    return table(
        "Which twin is better: flat, plain, or tie (the 95 % interval of the difference contains zero)",
        header("Posterior", *(breakable(name, "_") for name in names), numeric_from=len(names) + 1),
        tag("tbody", *rows),
        class_="glance",
    )


def word_cell(entry: Mapping[str, Any] | None, words: Mapping[str, str]) -> Html:
    """The verdict as a word, coloured besides."""
    word = "unknown" if entry is None else ask.verdict(entry)
    return tag("td", tag("span", words[word], class_=f"verdict {word}"))


def results_table(results: Results, glossary: Glossary) -> Html:
    """Every number of the summary, grouped by posterior."""
    groups = [posterior_group(results, posterior, glossary) for posterior in ask.posteriors(results)]
    return table(
        f"Mean ± standard deviation over {ask.counted(len(ask.seeds(results)), 'seed')}; "
        "the difference is flat − plain of the same seed, with its 95 % paired interval",
        tag(
            "thead",
            tag(
                "tr",
                tag("th", "Metric", scope="col"),
                *(
                    tag("th", name, scope="col", class_="num")
                    for name in ("Plain", flat_column(results), "Difference", "95 % interval", "Holm p", "Effect")
                ),
                tag("th", "Verdict", scope="col"),
            ),
        ),
        *groups,
        class_="results",
    )


def flat_column(results: Results) -> str:
    """The flatness if there is but one; with several, each posterior's row names its own."""
    names = ask.flatnesses(results)
    return names[0] if len(names) == 1 else "Flat"


def posterior_group(results: Results, posterior: str, glossary: Glossary) -> Html:
    """The rows of one posterior under its name."""
    rows = [entry for entry in results["summary"] if entry["posterior"] == posterior]
    own = None
    if len(ask.flatnesses(results)) > 1:
        own = tag("small", f" flat: {', '.join(ask.flatnesses(results, posterior))}")
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
        "Plain": spread(entry, "plain"),
        "Flat": spread(entry, "flat"),
        "Difference": signed(entry.get("difference")),
        "95 %": bracket(entry),
        "Holm p": probability(entry.get("p_holm")),
        "Effect": effect_size(entry.get("effect")),
    }
    named = (tag("td", text, class_="num", data_label=label) for label, text in cells.items())
    return row(head, *named, word_cell(entry, WORDS))


def cost_table(results: Results) -> Html:
    """What each twin cost, and how many times more flat did."""
    kinds = [key for key in COSTS if any(key in (run.get("cost") or {}) for run in results["runs"])]
    top = tag(
        "tr",
        tag("th", "Posterior", scope="col", rowspan=2),
        *(tag("th", COSTS[key], scope="colgroup", colspan=3, class_="span") for key in kinds),
    )
    below = tag(
        "tr",
        *(tag("th", name, scope="col", class_="num") for _ in kinds for name in ("plain", "flat", "ratio")),
    )
    rows = [
        row(breakable(posterior), *(cell for key in kinds for cell in cost_cells(results, posterior, key)))
        for posterior in ask.posteriors(results)
    ]
    return table("Cost: mean over seeds, and the ratio flat / plain", tag("thead", top, below), tag("tbody", *rows))


def cost_cells(results: Results, posterior: str, key: str) -> tuple[str, str, str]:
    """Plain, flat and their ratio."""
    plain, flat = (
        ask.mean_sd((run.get("cost") or {}).get(key) for run in ask.runs_of(results, posterior, side))[0]
        for side in (False, True)
    )
    return amount(plain), amount(flat), ratio(flat, plain)


def runs_table(results: Results) -> Html:
    """Every run as it was measured."""
    names = ask.unique(name for run in results["runs"] for name in run["metrics"])
    costs = [key for key in COSTS if any(key in (run.get("cost") or {}) for run in results["runs"])]
    rows = [
        row(
            breakable(run["posterior"]),
            tag("td", run["flatness"]),
            str(run["seed"]),
            *(number(run["metrics"].get(name)) for name in names),
            *(amount((run.get("cost") or {}).get(key)) for key in costs),
        )
        for run in results["runs"]
    ]
    return table(
        f"All {len(rows)} runs",
        header("Posterior", "Flatness", "Seed", *names, *costs, numeric_from=2),
        tag("tbody", *rows),
    )


def pairs_table(caption: str, values: Mapping[str, Any]) -> Html:
    """A nested dict as rows of dotted keys and values."""
    rows = [row(key, value, numeric=False) for key, value in flattened(values)]
    return table(caption, header("Option", "Value", numeric_from=2), tag("tbody", *rows), class_="pairs")


def flattened(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys and their values as text."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
