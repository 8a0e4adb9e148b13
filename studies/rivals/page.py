"""Tables and conclusions of the study for docs/rivals.md, between its marks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from studies.pages import format_metric, replace_between

START, END = "<!-- tables of studies/rivals -->", "<!-- end of the tables -->"
COLUMNS = {
    "accuracy": ("accuracy", "{:.3f}"),
    "nll": ("NLL", "{:.3f}"),
    "nll_calibrated": ("calibrated NLL", "{:.3f}"),
    "ece": ("ECE", "{:.3f}"),
    "brier": ("Brier", "{:.3f}"),
    "dee": ("DEE", "{:.1f}"),
}
GROUPS = {
    "reference": "reference",
    "standard": "standard",
    "rival": "rival",
    "ours": "ours",
    "ours, default training": "ours, default",
}


def update_page(page: Path, results: Mapping[str, Any]) -> None:
    """Write tables and conclusions into the page."""
    replace_between(page, START, END, "\n\n".join(map(render_task, results["tasks"])))


def render_task(task: Mapping[str, Any]) -> str:
    """Section of one data set."""
    factors = ", ".join(f"{factor:g}" for factor in sorted(task["lr_factors"]))
    heads = " | ".join(title for title, _ in COLUMNS.values())
    lines = [
        f"### {task['title']}",
        "",
        f"{task['budget']:,} gradients of a batch for every method; learning rates from {factors} times the "
        f"published or default one; {task['finished_runs']} of {task['planned_runs']} runs on test data are finished"
        f" ({task['planned_seeds']} seeds). Sorted by NLL; mean ± standard deviation over seeds.",
        "",
        f"| method | group | {heads} | learning rate | gradients | seconds |",
        f"|---|---|{'---:|' * (len(COLUMNS) + 3)}",
    ]
    for row in sorted(task["rows"], key=lambda row: row["metrics"].get("nll", {"mean": float("inf")})["mean"]):
        cells = [format_metric(row["metrics"].get(name), form) for name, (_, form) in COLUMNS.items()]
        cost = f"x {row['lr_factor']:g} | {row['gradients']:,.0f} | {row['seconds']:.0f}"
        lines.append(f"| {row['method']} | {GROUPS[row['group']]} | {' | '.join(cells)} | {cost} |")
    return "\n".join([*lines, "", *compare_groups(task["rows"]), *describe_pairs(task["pairs"])])


def compare_groups(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Which rivals have another NLL than flat SWAG with the default training, raw and calibrated."""
    lines = []
    for metric, label in (("nll", "NLL"), ("nll_calibrated", "calibrated NLL")):
        sides: dict[str, list[str]] = {"lower": [], "higher": [], "open": []}
        for row in rows:
            difference = row["against_baseline"].get(metric)
            if row["group"] == "rival" and difference is not None:
                sides[find_side(difference["interval"])].append(row["method"])
        lines.append(
            f"* {label} against flat `SWAG` with the default training (paired 95 % intervals over seeds, without "
            f"correction for their number): lower for {join(sides['lower'])}; higher for {join(sides['higher'])}; no "
            f"difference is shown for {join(sides['open'])}."
        )
    return lines


def find_side(interval: Sequence[float] | None) -> str:
    """Whether an interval is below 0, above 0, or neither."""
    if interval is None or interval[0] <= 0 <= interval[1]:
        return "open"
    return "lower" if interval[1] < 0 else "higher"


def join(names: Sequence[str]) -> str:
    """Names in a sentence, `none` without any."""
    return ", ".join(names) or "none"


def describe_pairs(pairs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Differences of pairs that belong together, with their intervals."""
    lines = []
    for text, differences in pairs.items():
        values = []
        for metric, label in (("nll", "NLL"), ("nll_calibrated", "calibrated NLL")):
            if metric in differences:
                interval = differences[metric]["interval"]
                ends = "" if interval is None else f" [{interval[0]:+.3f}, {interval[1]:+.3f}]"
                values.append(f"{label} {differences[metric]['difference']:+.3f}{ends}")
        if values:
            lines.append(f"* {text}: {', '.join(values)}.")
    return lines
