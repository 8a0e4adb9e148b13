"""Tables of a page on fine-tuning, written between two marks."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from studies.fine_tuning.choices import describe_twins, find_preferred, render_choices
from studies.fine_tuning.labels import Labels
from studies.fine_tuning.summary import MAIN_METRICS
from studies.pages import replace_between

OVERVIEW_METRICS = ("accuracy", "nll", "ece", "nll_calibrated", "aurc")
END = "<!-- end of tables -->"


def write_page(path: Path, summary: Mapping[str, Any], labels: Labels) -> None:
    """Replace the tables of a page."""
    replace_between(path, labels.start, END, render_tables(summary, labels))


def render_tables(summary: Mapping[str, Any], labels: Labels) -> str:
    """Overview, counts, choices, and the tables of every setting."""
    settings = summary["settings"]
    sections = [render_overview(settings, labels), render_headline(summary, labels), render_choices(settings, labels)]
    sections += [*(render_setting(setting, labels) for setting in settings), render_worth(summary, labels)]
    environment = summary["environment"]
    names = [name for name in ("torch", *labels.packages) if name in environment]
    versions = ", ".join(f"{name} {environment[name]}" for name in names)
    sections.append(
        f"{environment['processor']}, one thread; {versions}; {summary['cpu_minutes']:.0f} CPU minutes so far."
    )
    return "\n\n".join(section for section in sections if section)


def render_headline(summary: Mapping[str, Any], labels: Labels) -> str:
    """How much is done, and the number of verdicts."""
    counts = summary["verdicts"]["accuracy, nll, ece"]
    done = f"{summary['finished_trainings']} of {summary['planned_trainings']} trainings are finished."
    if not counts["before"]:
        return f"**{done}** There is no comparison on test {labels.unit} yet."
    texts = [
        f"{_format_counts(kind['before'])}; after Holm's correction over each table {_format_counts(kind['after'])}"
        for kind in (counts, summary["verdicts"]["all"])
    ]
    equal = summary["verdicts"]["equal length"]
    if equal["before"]:
        texts[1] += (
            f". With all epochs for both twins (accuracy, NLL and ECE): {_format_counts(equal['before'])}; after the "
            f"correction {_format_counts(equal['after'])}"
        )
    return (
        f"**{done}** Accuracy, NLL and ECE of all posteriors and settings, flat against plain: {texts[0]}. "
        f"All {len(labels.metrics)} metrics: {texts[1]}."
    )


def render_overview(settings: Sequence[Mapping[str, Any]], labels: Labels) -> str:
    """A row for each setting: means over posteriors, and the number of posteriors for which each twin is better."""
    metrics = [name for name in OVERVIEW_METRICS if name in labels.metrics]
    lines = [
        "Plain → flat, mean over posteriors; below it for how many posteriors the 95 % interval of the difference "
        "says that flat is better, neither, or plain. All but the accuracy are better when lower. *NLL, scaled* is "
        "that after temperature scaling; *AURC*, the area under the risk-coverage curve, tells how well errors "
        "are ranked.",
        "",
        "| setting | seeds | validation data prefer | "
        + " | ".join(labels.metrics[metric] for metric in metrics)
        + " |",
        "|---|---|---|" + "---|" * len(metrics),
    ]
    compared = [setting for setting in settings if setting["rows"]]
    for setting in compared:
        cells = [
            _count_by_posterior([row for row in setting["rows"] if row["metric"] == metric]) for metric in metrics
        ]
        seeds = max(row["num_seeds"] for row in setting["rows"])
        lines.append(f"| {labels.describe(setting)} | {seeds} | {find_preferred(setting)} | {' | '.join(cells)} |")
    return "\n".join(lines) if compared else ""


def _count_by_posterior(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return "–"
    plain, flat = (fmean(row[twin] for row in rows) for twin in ("plain", "flat"))
    text = f"{plain:.3f} → {flat:.3f}"
    counts = Counter(row["verdict"] for row in rows)
    if not counts.keys() - {"unknown"}:  # one seed
        return text
    names = {"flat": "flat", "tie": "neither", "plain": "plain"}
    return f"{text}<br>" + ", ".join(f"{name} {counts[key]}" for key, name in names.items())


def render_setting(setting: Mapping[str, Any], labels: Labels) -> str:
    """Tables of a setting: the three main metrics with intervals, the others, and all epochs for both twins."""
    if not setting["rows"]:
        return ""
    factor = setting["sharing_factor"]
    shared = "" if not factor else f" Sharing a training made fits {factor:.1f} times as fast."
    lines = [
        f"## {labels.describe(setting)}",
        "",
        f"{describe_twins(setting)} {setting['finished_trainings']} of {setting['planned_trainings']} trainings, "
        f"{setting['cpu_minutes']:.0f} CPU minutes{describe_devices(setting)}.{shared}",
        "",
        "Plain → flat, and flat - plain with its 95 % interval; bold where the interval excludes 0, and with "
        "* where p < 0.05 after Holm's correction.",
        *render_rows(setting["rows"], MAIN_METRICS, labels),
        *render_rows(setting["rows"], [name for name in labels.metrics if name not in MAIN_METRICS], labels),
    ]
    if setting["worth_ensemble"]:
        sizes = [
            f"{name} {by['plain']:.1f} → {by['flat']:.1f}"
            for name, by in setting["worth_ensemble"].items()
            if "flat" in by and "plain" in by
        ]
        lines += [
            "",
            "Size of the plain ensemble (1 to 3 members) with the same NLL after temperature scaling, plain → flat: "
            f"{', '.join(sizes)}.",
        ]
    if setting["rows_equal_length"]:
        lines += ["", f"With {setting['epochs']} epochs for both twins:"]
        metrics = [name for name in labels.metrics if name in OVERVIEW_METRICS]
        lines += render_rows(setting["rows_equal_length"], metrics, labels)
    return "\n".join(lines)


def describe_devices(setting: Mapping[str, Any]) -> str:
    """Where a setting was trained, in words; nothing for the CPU."""
    others = [name for name in setting.get("devices", ()) if not name.startswith("cpu")]
    return f", on {' and '.join(others)}" if others else ""


def render_rows(rows: Sequence[Mapping[str, Any]], metrics: Sequence[str], labels: Labels) -> list[str]:
    """Lines of a table with a row for each posterior, after an empty line."""
    cells = {(row["posterior"], row["metric"]): row for row in rows}
    lines = ["", "| posterior | seeds | " + " | ".join(labels.metrics[metric] for metric in metrics) + " |"]
    lines.append("|---|---|" + "---|" * len(metrics))
    for name in dict.fromkeys(name for name, _ in cells):
        texts = [_format_cell(cells.get((name, metric))) for metric in metrics]
        lines.append(f"| {name} | {cells[name, 'nll']['num_seeds']} | " + " | ".join(texts) + " |")
    return lines


def render_worth(summary: Mapping[str, Any], labels: Labels) -> str:
    """The number of plain training sentences of the same NLL as flat training."""
    rows = summary["worth_examples"]
    if len({row["size"] for row in rows}) < 2:
        return ""
    sizes = sorted({row["size"] for row in rows})
    lines = [
        f"## In labelled {labels.unit}",
        "",
        f"Number of {labels.unit} with which plain training has the NLL that flat training has with n: more than n "
        "where flat training is better, fewer where it is worse. The curve of plain training is interpolated between "
        "the sizes that are finished, and not continued beyond them.",
        "",
        "| trained | posterior | " + " | ".join(f"n = {size:,}" for size in sizes) + " |",
        "|---|---|" + "---|" * len(sizes),
    ]
    by_twin: dict[tuple[str, str], dict[int, str]] = {}
    for row in rows:
        by_twin.setdefault((labels.describe_trained(row), row["posterior"]), {})[row["size"]] = _format_size(
            row, rows
        )
    for (trained, name), texts in by_twin.items():
        cells = [texts.get(size, "–") for size in sizes]
        lines.append(f"| {trained} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _format_size(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    if row["equal_plain_size"] is not None:
        return f"{row['equal_plain_size']:,.0f}"
    if row["flat"] >= row["plain"]:
        return f"fewer than {row['size']:,}"
    keys = ("trained", "warmup", "posterior")
    plain = {other["size"]: other["plain"] for other in rows if all(other.get(key) == row.get(key) for key in keys)}
    if plain[min(plain)] < row["flat"]:
        return f"fewer than {min(plain):,}"
    return f"more than {max(plain):,}"


def _format_counts(counts: Mapping[str, int]) -> str:
    total = sum(counts.values())
    names = {"flat": "flat is better in", "plain": "plain in", "tie": "undecided", "unknown": "too few seeds for"}
    texts = [f"{text} {counts[key]}" for key, text in names.items() if counts.get(key)]
    return f"{', '.join(texts)} of {total}"


def _format_cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "–"
    text = f"{row['plain']:.3f} → {row['flat']:.3f}"
    if row["interval"] is None:
        return f"{text} ({row['difference']:+.3f})"
    low, high = row["interval"]
    difference = f"{row['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"
    if row["verdict"] in ("flat", "plain"):
        difference = f"**{difference}**" + ("*" if row["verdict_holm"] in ("flat", "plain") else "")
    return f"{text}<br>{difference}"
