"""Contents of the tables of the HTML report, as text by name for the templates."""

import json
from collections.abc import Iterator, Mapping

from flatbayes.core.files import JsonValue
from flatbayes.core.names import format_count
from flatbayes.experiments.results import ComparisonResult, SummaryRow, Verdict
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
from flatbayes.reporting.queries import Glossary

Context = dict[str, object]
"""Values by the name that a template uses."""

VERDICT_PHRASES = {"flat": "flat better", "plain": "plain better", "tie": "within noise", "unknown": "no interval"}
VERDICT_LABELS = {"flat": "flat", "plain": "plain", "tie": "tie", "unknown": MISSING}
COST_LABELS = {
    "train_seconds": "Training time in seconds",
    "gradients": "Gradients computed",
    "peak_memory_mb": "Peak memory in MB",
}


def make_verdict_table(results: ComparisonResult) -> Context:
    """The better variant by posterior and metric."""
    metrics = queries.list_metrics(results)
    rows = [
        {
            "posterior": name,
            "cells": [_verdict_cell(queries.find_row(results, name, m), VERDICT_LABELS) for m in metrics],
        }
        for name in queries.list_posteriors(results)
    ]
    return {"metrics": metrics, "rows": rows}


def make_results_table(results: ComparisonResult, glossary: Glossary) -> Context:
    """All numbers of the summary, grouped by posterior; flatnesses are named where posteriors differ in them."""
    flatnesses = queries.list_flatnesses(results)
    groups = [
        {
            "posterior": posterior,
            "flatness": ", ".join(queries.list_flatnesses(results, posterior)) if len(flatnesses) > 1 else "",
            "rows": [_result_row(row, glossary) for row in results.rows if row.posterior == posterior],
        }
        for posterior in queries.list_posteriors(results)
    ]
    caption = (
        f"Mean ± standard deviation over {format_count(len(queries.list_seeds(results)), 'seed')}; "
        "the difference is flat − plain of the same seed, with its 95 % paired interval"
    )
    return {"caption": caption, "flat_column": flatnesses[0] if len(flatnesses) == 1 else "Flat", "groups": groups}


def make_cost_table(results: ComparisonResult) -> Context | None:
    """Mean cost of training by posterior, plain and flat, and their ratio; None where no run has a cost."""
    kinds = _list_cost_kinds(results)
    rows = []
    for posterior in queries.list_posteriors(results):
        cells: list[str] = []
        for kind in kinds:
            plain, flat = (
                queries.mean_sd(getattr(run.cost, kind) for run in queries.select_runs(results, posterior, is_flat))[
                    0
                ]
                for is_flat in (False, True)
            )
            cells += [format_cost(plain), format_cost(flat), format_ratio(flat, plain)]
        rows.append({"posterior": posterior, "cells": cells})
    caption = "Cost: mean over seeds, and the ratio flat / plain"
    if any((run.cost.num_posteriors or 1) > 1 for run in results.runs):
        caption += (
            ". Posteriors that were trained together have the time and the gradients of the whole training each, and "
            "the memory of all of them"
        )
    return {"names": [COST_LABELS[kind] for kind in kinds], "rows": rows, "caption": caption} if kinds else None


def make_runs_table(results: ComparisonResult) -> Context:
    """All runs with their metrics and costs."""
    metrics = queries.unique_values(name for run in results.runs for name in run.metrics)
    kinds = _list_cost_kinds(results)
    rows = []
    for run in results.runs:
        numbers = [format_number(run.metrics.get(name)) for name in metrics]
        costs = [format_cost(getattr(run.cost, kind)) for kind in kinds]
        values = [str(run.seed), *numbers, *costs]
        rows.append({"posterior": run.posterior, "flatness": run.flatness, "numbers": values})
    return {"columns": [*metrics, *kinds], "rows": rows}


def flatten_options(values: Mapping[str, JsonValue], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys of nested options, and their values as text."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from flatten_options(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _verdict_cell(row: SummaryRow | None, words: Mapping[str, str]) -> Context:
    kind: Verdict = "unknown" if row is None else row.verdict
    return {"kind": kind, "text": words[kind]}


def _result_row(row: SummaryRow, glossary: Glossary) -> Context:
    numbers = {
        "Plain": format_side(row, "plain"),
        "Flat": format_side(row, "flat"),
        "Difference": format_signed(row.comparison.difference),
        "95 %": format_interval(row),
        "Holm p": format_p_value(row.p_holm),
        "Effect": format_effect_size(row.comparison.effect_size),
    }
    return {
        "metric": row.metric,
        "direction": glossary.direction(row.metric),
        "numbers": numbers,
        "verdict": _verdict_cell(row, VERDICT_PHRASES),
    }


def _list_cost_kinds(results: ComparisonResult) -> list[str]:
    return [kind for kind in COST_LABELS if any(getattr(run.cost, kind) is not None for run in results.runs)]
