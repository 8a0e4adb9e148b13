"""Tables of README.md and docs/fine-tuning.md on fine-tuning, from the results of both studies.

python -m studies.fine_tuning README.md docs/fine-tuning.md
"""

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from flatbayes.core.files import read_json
from studies.fine_tuning.choices import describe_twins
from studies.fine_tuning.labels import is_default, is_without_warmup
from studies.pages import fill_marks
from studies.sentences.summary import TRAINED

RESULTS = Path(__file__).parents[2] / "docs" / "results"
MAIN_METRICS, OTHER_METRICS = ("accuracy", "nll", "ece"), ("nll_calibrated", "aurc")
DEFAULT_SUFFIX = ", default options"
IMAGES = {
    "default": "all weights" + DEFAULT_SUFFIX,
    "head": "the last layer",
    "block": "the last block",
    "all": "all weights",
}


def render_tables(sentences: Mapping[str, Any], images: Mapping[str, Any]) -> dict[str, str]:
    """By mark: the table of the first finished setting; a row for each setting, and counts of those on images."""
    finished = list(filter(is_finished, sentences["settings"]))
    compared = list(filter(is_finished, images["settings"]))
    overview = render_overview(finished, list(filter(is_default, compared)))
    return {
        "fine-tuning": render_setting(finished[0]),
        "fine-tuning-settings": f"{overview}\n\n{render_counts(compared)}",
    }


def is_finished(setting: Mapping[str, Any]) -> bool:
    """Whether all trainings of a setting are finished, so that it has all seeds."""
    return bool(setting["rows"]) and setting.get("finished_trainings") == setting.get("planned_trainings")


def render_overview(sentences: Sequence[Mapping[str, Any]], images: Sequence[Mapping[str, Any]]) -> str:
    """A row for each setting: options, means over posteriors, and counts of verdicts."""
    lines = [
        "MiniLM on SST-2 and EfficientNet-Lite0 on 8 classes of CIFAR-10, mean over posteriors. Where it is not the "
        "default, the number of epochs and the radius are chosen on validation data. The last column counts in how "
        "many comparisons of a posterior, in accuracy, NLL or ECE, flat, neither, or plain is better (95 % interval "
        "of the paired difference).",
        "",
        "| Examples | Trained | Options, plain → flat | Accuracy, % | NLL | NLL, scaled | Flat, neither, plain |",
        "|---|---|---|---|---|---|---|",
    ]
    columns = (("accuracy", 100, 1), ("nll", 1, 3), ("nll_calibrated", 1, 3))
    named = [("sentences", TRAINED, setting) for setting in sentences]
    named += [("images", IMAGES, setting) for setting in images]
    for unit, trained, setting in sorted(named, key=lambda entry: not is_default(entry[2])):
        plain, flat = (setting["selection"][twin] for twin in ("plain", "flat"))
        chosen = f"{plain['epochs']} epochs → {flat['epochs']} epochs, ρ = {flat['rho']:g}"
        cells = [
            f"{setting['size']:,} {unit}",
            trained[setting["trained"]].removesuffix(DEFAULT_SUFFIX),
            "default, no warm-up" if is_without_warmup(setting) else "default" if is_default(setting) else chosen,
            *(format_means(setting, *column) for column in columns),
            count_verdicts([setting], MAIN_METRICS),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def format_means(setting: Mapping[str, Any], metric: str, factor: float, digits: int) -> str:
    """Mean over posteriors, plain and flat."""
    rows = [row for row in setting["rows"] if row["metric"] == metric]
    plain, flat = (factor * fmean(row[twin] for row in rows) for twin in ("plain", "flat"))
    return f"{plain:.{digits}f} → {flat:.{digits}f}"


def render_setting(setting: Mapping[str, Any]) -> str:
    """Table of a setting: a row for each posterior."""
    rows = {(row["posterior"], row["metric"]): row for row in setting["rows"]}
    names = list(dict.fromkeys(name for name, _ in rows))
    seeds = max(row["num_seeds"] for row in setting["rows"])
    lines = [
        f"MiniLM on {setting['size']:,} sentences of SST-2, {TRAINED[setting['trained']]}, plain → flat, mean over "
        f"{seeds} seeds. {describe_twins(setting)}",
        "",
        "| Posterior | Accuracy, % | NLL | Flat − plain [95 %] | ECE | NLL after temperature scaling | AURC |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in names:
        accuracy, nll, ece, scaled, ranking = (rows[name, metric] for metric in (*MAIN_METRICS, *OTHER_METRICS))
        cells = [
            format_pair(accuracy, ".1f", 100),
            format_pair(nll, ".3f"),
            format_difference(nll),
            format_pair(ece, ".3f"),
            format_pair(scaled, ".3f"),
            format_pair(ranking, ".3f"),
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    p_values = [row["p_holm"] for row in rows.values() if row["p_holm"] is not None]
    counts = Counter(row["verdict_holm"] for row in rows.values())
    lines += ["", "Bold: the better mean, where the 95 % interval of the paired difference excludes 0."]
    if p_values:
        lines[-1] += (
            f" After Holm's correction over all {len(rows)} comparisons of this setting, flat is better in "
            f"{counts['flat']} and plain in {counts['plain']} (smallest p {min(p_values):.2g})."
        )
    return "\n".join(lines)


def format_difference(row: Mapping[str, Any]) -> str:
    """Difference of the means and its interval."""
    text = f"{row['difference']:+.3f}"
    if row["interval"] is not None:
        low, high = row["interval"]
        text += f" [{low:+.3f}, {high:+.3f}]"
    return text.replace("-", "−")


def format_pair(row: Mapping[str, Any], form: str, factor: float = 1.0) -> str:
    """Both means, the better one in bold if the interval excludes 0."""
    texts = {twin: format(factor * row[twin], form) for twin in ("plain", "flat")}
    if row["verdict"] in texts:
        texts[row["verdict"]] = f"**{texts[row['verdict']]}**"
    return f"{texts['plain']} → {texts['flat']}"


def render_counts(settings: Sequence[Mapping[str, Any]]) -> str:
    """Table of the counts of verdicts on images by what is trained."""
    lines = [
        "All settings of images, 5 seeds: in how many comparisons flat, neither, or plain is better.",
        "",
        "| Trained | Images | Accuracy, NLL, ECE | NLL, corrupted images | AUROC, other classes |",
        "|---|---|---|---|---|",
    ]
    for trained, name in IMAGES.items():
        compared = [
            setting
            for setting in settings
            if setting["trained"] == trained and any(row["verdict"] != "unknown" for row in setting["rows"])
        ]
        if compared:
            sizes = ", ".join(f"{setting['size']:,}" for setting in compared)
            counts = [count_verdicts(compared, metrics) for metrics in (MAIN_METRICS, ("shift_nll",), ("auroc_ood",))]
            lines.append(f"| {name} | {sizes} | {' | '.join(counts)} |")
    return "\n".join(lines)


def count_verdicts(settings: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> str:
    """In how many comparisons flat, neither, or plain is better."""
    counts = Counter(row["verdict"] for setting in settings for row in setting["rows"] if row["metric"] in metrics)
    return f"{counts['flat']}, {counts['tie']}, {counts['plain']}"


def main(arguments: list[str] | None = None) -> None:
    """Fill the marks of the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", type=Path, nargs="+", help="README.md docs/fine-tuning.md")
    summaries = [read_json(RESULTS / f"{name}.json") for name in ("sentences", "images")]
    for page in parser.parse_args(arguments).pages:
        fill_marks(page, render_tables(*summaries))


if __name__ == "__main__":
    main()
