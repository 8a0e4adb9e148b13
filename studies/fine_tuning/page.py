"""Tables of a page on fine-tuning, written between two marks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studies.fine_tuning.summary import MAIN_METRICS

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
    """Headline, choices of the radius, and the tables of every setting.

    Args:
        summary: What `summarize_trainings` returned.
        labels: Words of the study.
    """
    settings = summary["settings"]
    sections = [render_headline(summary, labels), render_choices(settings, labels)]
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
        return f"**{done}** No radius is chosen yet, so there is no comparison."
    texts = [
        f"{_format_counts(kind['before'])}; after Holm's correction over each setting {_format_counts(kind['after'])}"
        for kind in (counts, summary["verdicts"]["all"])
    ]
    fair = summary["verdicts"]["chosen epochs"]
    if fair["before"]:
        texts[1] += (
            f". Against plain training with a chosen number of epochs (accuracy, NLL and ECE): "
            f"{_format_counts(fair['before'])}; after the correction {_format_counts(fair['after'])}"
        )
    return (
        f"**{done}** Accuracy, NLL and ECE of all posteriors and settings, flat against plain: {texts[0]}. "
        f"All {len(labels.metrics)} metrics: {texts[1]}."
    )


def render_choices(settings: Sequence[Mapping[str, Any]], labels: Labels) -> str:
    """The validation NLL of every radius, and the chosen one."""
    chosen = [setting for setting in settings if setting["selection"]]
    if not chosen:
        return ""
    radii = sorted({rho for setting in chosen for rho, _, _ in setting["selection"]["val_nll"]})
    lines = [
        "Validation NLL (mean over posteriors, seeds 0 and 1), lowest in bold:",
        "",
        "| setting | " + " | ".join(f"ρ {rho:g}" for rho in radii) + " | best for single posteriors |",
        "|---|" + "---|" * (len(radii) + 1),
    ]
    for setting in chosen:
        record = setting["selection"]
        nlls, lowest = {rho: nll for rho, nll, _ in record["val_nll"]}, _find_best_radius(record)
        cells = [_format_nll(nlls[rho], is_lowest=rho == lowest) if rho in nlls else "–" for rho in radii]
        best = ", ".join(f"{name} {rho:g}" for name, rho in record["best_by_method"].items())
        lines.append(f"| {labels.describe(setting)} | " + " | ".join(cells) + f" | {best} |")
    num_plain = sum(_find_best_radius(setting["selection"]) == 0 for setting in chosen)
    lines += ["", f"Plain training has the lowest validation NLL in {num_plain} of {len(chosen)} settings."]
    return "\n".join(lines)


def _format_nll(nll: float | None, *, is_lowest: bool = False) -> str:
    return "diverged" if nll is None else f"**{nll:.3f}**" if is_lowest else f"{nll:.3f}"


def _find_best_radius(record: Mapping[str, Any]) -> float:
    return min((nll, rho) for rho, nll, _ in record["val_nll"] if nll is not None)[1]  # type: ignore[no-any-return]


def render_setting(setting: Mapping[str, Any], labels: Labels) -> str:
    """Both tables of a setting: the three main metrics with intervals, and the others."""
    rows = {(row["posterior"], row["metric"]): row for row in setting["rows"]}
    if not rows:
        return ""
    names = list(dict.fromkeys(name for name, _ in rows))
    factor = setting["sharing_factor"]
    shared = "" if not factor else f" Sharing a training made fits {factor:.1f} times as fast."
    lines = [
        f"## {labels.describe(setting)}",
        "",
        f"{setting['epochs']} epochs, SAM with ρ = {setting['selection']['rho']:g}; "
        f"{setting['finished_trainings']} of {setting['planned_trainings']} trainings, {setting['cpu_minutes']:.0f} "
        f"CPU minutes.{shared}",
        "",
        "Plain → flat, and flat - plain with its 95 % interval; bold where the interval excludes 0, and with "
        "* where p < 0.05 after Holm's correction.",
    ]
    others = [name for name in labels.metrics if name not in MAIN_METRICS]
    for metrics in (MAIN_METRICS, others):
        lines += ["", "| posterior | seeds | " + " | ".join(labels.metrics[metric] for metric in metrics) + " |"]
        lines.append("|---|---|" + "---|" * len(metrics))
        for name in names:
            cells = [_format_cell(rows.get((name, metric))) for metric in metrics]
            lines.append(f"| {name} | {rows[name, 'nll']['num_seeds']} | " + " | ".join(cells) + " |")
    lines += render_chosen_epochs(setting, labels)
    if setting["worth_ensemble"]:
        sizes = [
            f"{name} {by['plain']:.1f} → {by['flat']:.1f}"
            for name, by in setting["worth_ensemble"].items()
            if "flat" in by and "plain" in by
        ]
        lines += ["", f"Plain ensemble (1 to 3 members) of the same scaled NLL, plain → flat: {', '.join(sizes)}."]
    return "\n".join(lines)


def render_chosen_epochs(setting: Mapping[str, Any], labels: Labels) -> list[str]:
    """Flat training against plain training whose number of epochs is chosen; nothing where it has not been."""
    rows = {(row["posterior"], row["metric"]): row for row in setting["rows_chosen_epochs"]}
    if not rows:
        return []
    record = setting["selection_epochs"]
    scores = ", ".join(f"{epochs}: {_format_nll(nll)}" for epochs, nll, _ in record["val_nll"])
    lines = [
        "",
        f"Plain with {record['epochs']} epochs → flat as above. The number is chosen as the radius is; validation "
        f"NLL by epochs: {scores}.",
        "",
        "| posterior | seeds | " + " | ".join(labels.metrics[metric] for metric in MAIN_METRICS) + " |",
        "|---|---|" + "---|" * len(MAIN_METRICS),
    ]
    for name in dict.fromkeys(name for name, _ in rows):
        cells = [_format_cell(rows.get((name, metric))) for metric in MAIN_METRICS]
        lines.append(f"| {name} | {rows[name, 'nll']['num_seeds']} | " + " | ".join(cells) + " |")
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
