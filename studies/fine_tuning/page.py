"""Tables of a page on fine-tuning, written between two marks."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from studies.fine_tuning.summary import MAIN_METRICS

OVERVIEW_METRICS = ("accuracy", "nll", "ece", "nll_calibrated", "aurc")
END = "<!-- end of tables -->"


@dataclass(frozen=True)
class Labels:
    """Words of a study.

    Attributes:
        study: Name of its folder.
        unit: What examples are, in the plural.
        trained: Text by what is trained.
        metrics: Heading of a column by name of the metric.
        packages: Packages whose versions are shown.
    """

    study: str
    unit: str
    trained: Mapping[str, str]
    metrics: Mapping[str, str]
    packages: Sequence[str] = ()

    @property
    def start(self) -> str:
        """Mark before the tables."""
        return f"<!-- tables, written by python -m studies.{self.study} -->"

    def describe(self, setting: Mapping[str, Any]) -> str:
        """Size and what is trained.

        Args:
            setting: Summary of a setting.
        """
        return f"{setting['size']:,} {self.unit}, {self.trained[setting['trained']]}"


def write_page(path: Path, summary: Mapping[str, Any], labels: Labels) -> None:
    """Replace the tables of a page.

    Args:
        path: The page.
        summary: What `summarize_trainings` returned.
        labels: Words of the study.

    Raises:
        ValueError: The page has no marks.
    """
    text, start = path.read_text(encoding="utf-8"), labels.start
    if start not in text or END not in text:
        raise ValueError(f"{path} has no marks for the tables: {start} and {END}.")
    before, after = text.split(start)[0], text.split(END)[1]
    path.write_text(f"{before}{start}\n\n{render_tables(summary, labels)}\n\n{END}{after}", encoding="utf-8")


def render_tables(summary: Mapping[str, Any], labels: Labels) -> str:
    """Overview, choices of the radius, and the tables of every setting.

    Args:
        summary: What `summarize_trainings` returned.
        labels: Words of the study.
    """
    settings = summary["settings"]
    sections = [render_headline(summary, labels), render_overview(settings, labels), render_choices(settings, labels)]
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
        "says that flat is better, neither, or plain:",
        "",
        "| setting | validation data prefer | " + " | ".join(labels.metrics[metric] for metric in metrics) + " |",
        "|---|---|" + "---|" * len(metrics),
    ]
    compared = [setting for setting in settings if setting["rows"]]
    for setting in compared:
        cells = [
            _count_by_posterior([row for row in setting["rows"] if row["metric"] == metric]) for metric in metrics
        ]
        plain_nll, flat_nll = find_val_nlls(setting)
        lines.append(
            f"| {labels.describe(setting)} | {'flat' if flat_nll < plain_nll else 'plain'} | {' | '.join(cells)} |"
        )
    return "\n".join(lines) if compared else ""


def _count_by_posterior(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return "–"
    plain, flat = (fmean(row[twin] for row in rows) for twin in ("plain", "flat"))
    counts = Counter(row["verdict"] if row["verdict"] in ("flat", "plain") else "neither" for row in rows)
    return f"{plain:.3f} → {flat:.3f}<br>" + ", ".join(f"{key} {counts[key]}" for key in ("flat", "neither", "plain"))


def find_val_nlls(setting: Mapping[str, Any]) -> tuple[float, float]:
    """Validation NLL of the plain and of the flat twin, with the choices of each; mean over posteriors.

    Args:
        setting: Summary of a setting whose radius is chosen.
    """
    selection, epochs = setting["selection"], setting["selection_epochs"] or {}
    values = {"plain": 0.0, "flat": selection["rho"]}
    nlls = []
    for twin, rho in values.items():
        record, value = (epochs[twin], epochs[twin]["epochs"]) if twin in epochs else (selection, rho)
        nll = next(nll for candidate, nll, _ in record["val_nll"] if candidate == value)
        nlls.append(math.inf if nll is None else nll)
    return nlls[0], nlls[1]


def render_choices(settings: Sequence[Mapping[str, Any]], labels: Labels) -> str:
    """The validation NLL of every radius, and the chosen one."""
    chosen = [setting for setting in settings if setting["selection"]]
    if not chosen:
        return ""
    radii = sorted({rho for setting in chosen for rho, _, _ in setting["selection"]["val_nll"]})
    lines = [
        "Validation NLL by radius (mean over posteriors, seeds 0 and 1, all epochs), lowest in bold; the flat twin "
        "has the best radius above 0:",
        "",
        "| setting | " + " | ".join(f"ρ {rho:g}" for rho in radii) + " | best for single posteriors |",
        "|---|" + "---|" * (len(radii) + 1),
    ]
    for setting in chosen:
        record = setting["selection"]
        nlls, lowest = {rho: nll for rho, nll, _ in record["val_nll"]}, _find_best(record)
        cells = [_format_nll(nlls[rho], is_lowest=rho == lowest) if rho in nlls else "–" for rho in radii]
        best = ", ".join(f"{name} {rho:g}" for name, rho in record["best_by_method"].items())
        lines.append(f"| {labels.describe(setting)} | " + " | ".join(cells) + f" | {best} |")
    num_plain = sum(_find_best(setting["selection"]) == 0 for setting in chosen)
    lines += ["", f"Plain training has the lowest validation NLL in {num_plain} of {len(chosen)} settings."]
    return "\n".join(lines + render_choices_of_epochs(chosen, labels))


def render_choices_of_epochs(settings: Sequence[Mapping[str, Any]], labels: Labels) -> list[str]:
    """The validation NLL of every number of epochs of each twin; nothing where none has been chosen."""
    records = [
        (
            f"{labels.describe(setting)}, {twin}"
            + (f" (ρ {setting['selection']['rho']:g})" if twin == "flat" else ""),
            record,
        )
        for setting in settings
        if setting["selection_epochs"]
        for twin, record in setting["selection_epochs"].items()
    ]
    if not records:
        return []
    lines = ["", "Validation NLL by number of epochs, as above:", "", "| twin | epochs: NLL |", "|---|---|"]
    for name, record in records:
        scores = [
            f"{epochs}: {_format_nll(nll, is_lowest=epochs == _find_best(record))}"
            for epochs, nll, _ in record["val_nll"]
        ]
        lines.append(f"| {name} | {', '.join(scores)} |")
    return lines


def _format_nll(nll: float | None, *, is_lowest: bool = False) -> str:
    return "diverged" if nll is None else f"**{nll:.3f}**" if is_lowest else f"{nll:.3f}"


def _find_best(record: Mapping[str, Any]) -> float:
    return min((nll, value) for value, nll, _ in record["val_nll"] if nll is not None)[1]  # type: ignore[no-any-return]


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
        f"{setting['cpu_minutes']:.0f} CPU minutes.{shared}",
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
        lines += ["", f"Plain ensemble (1 to 3 members) of the same scaled NLL, plain → flat: {', '.join(sizes)}."]
    if setting["rows_equal_length"]:
        lines += ["", f"With {setting['epochs']} epochs for both twins:"]
        metrics = [name for name in labels.metrics if name in OVERVIEW_METRICS]
        lines += render_rows(setting["rows_equal_length"], metrics, labels)
    return "\n".join(lines)


def describe_twins(setting: Mapping[str, Any]) -> str:
    """Radius and number of epochs of each twin, number of candidates, and which one validation data prefer.

    Args:
        setting: Summary of a setting.
    """
    selection, epochs = setting["selection"], setting["selection_epochs"]
    num_radii = len(selection["val_nll"]) - 1
    radius = f"Flat: SAM with ρ = {selection['rho']:g} (best of {num_radii} radii)"
    if not epochs:
        text = f"{setting['epochs']} epochs. {radius}."
    else:
        counts = {twin: len(epochs[twin]["val_nll"]) if twin in epochs else 1 for twin in ("plain", "flat")}
        numbers = {
            twin: f"{epochs[twin]['epochs']} epochs (best of {count} numbers)"
            if twin in epochs
            else f"{setting['epochs']} epochs (not chosen yet)"
            for twin, count in counts.items()
        }
        text = (
            f"Plain: {numbers['plain']}. {radius} and {numbers['flat']}; together {counts['plain']} candidates for "
            f"plain and {num_radii + counts['flat'] - 1} for flat."
        )
    plain_nll, flat_nll = find_val_nlls(setting)
    preferred = "flat" if flat_nll < plain_nll else "plain"
    return (
        f"{text} Validation data prefer {preferred} training: NLL, mean over posteriors, {plain_nll:.3f} plain and "
        f"{flat_nll:.3f} flat."
    )


def render_rows(rows: Sequence[Mapping[str, Any]], metrics: Sequence[str], labels: Labels) -> list[str]:
    """Lines of a table with a row for each posterior, after an empty line.

    Args:
        rows: Comparisons of posteriors and metrics.
        metrics: Names of the columns.
        labels: Words of the study.
    """
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
    lines = [
        f"## In labelled {labels.unit}",
        "",
        f"Number of {labels.unit} with which plain training has the NLL that flat training has with n.",
        "",
        "| trained | posterior | n | NLL, plain → flat | plain needs |",
        "|---|---|---|---|---|",
    ]
    largest = max(row["size"] for row in rows)
    for row in rows:
        size = row["equal_plain_size"]
        needs = f"{size:.0f}" if size else f"more than {largest}" if row["flat"] < row["plain"] else "fewer than n"
        nlls = f"{row['plain']:.3f} → {row['flat']:.3f}"
        lines.append(f"| {labels.trained[row['trained']]} | {row['posterior']} | {row['size']} | {nlls} | {needs} |")
    return "\n".join(lines)


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
