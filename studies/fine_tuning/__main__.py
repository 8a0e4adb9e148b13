"""Table of README.md on fine-tuning, from the results of both studies.

python -m studies.fine_tuning README.md
"""

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flatbayes.core.files import read_json
from studies.defaults.page import fill_marks

RESULTS = Path(__file__).parents[2] / "docs" / "results"
MAIN_METRICS = ("accuracy", "nll", "ece")
SENTENCES = {"full": "all weights", "lora": "adapters (LoRA)"}
IMAGES = {"head": "the last layer", "block": "the last block", "all": "all weights"}


def render_readme(sentences: Mapping[str, Any], images: Mapping[str, Any]) -> str:
    """Tables of the settings on sentences, and the counts of those on images.

    Args:
        sentences: Summary of `studies.sentences`.
        images: Summary of `studies.images`.
    """
    settings = [setting for setting in sentences["settings"] if setting["rows"]]
    texts = [render_setting(setting) for setting in settings]
    if any(setting["rows"] for setting in images["settings"]):
        texts.append(render_counts(images["settings"]))
    return "\n\n".join(texts)


def render_setting(setting: Mapping[str, Any]) -> str:
    """Table of a setting: a row for each posterior."""
    rows = {(row["posterior"], row["metric"]): row for row in setting["rows"]}
    names = list(dict.fromkeys(name for name, _ in rows))
    nlls = [rows[name, "nll"] for name in names]
    wins, pairs = sum(row["num_flat_better"] for row in nlls), sum(row["num_seeds"] for row in nlls)
    seeds = max(row["num_seeds"] for row in nlls)
    lines = [
        f"MiniLM on {setting['size']:,} sentences of SST-2, {SENTENCES[setting['trained']]}, plain → flat, mean over "
        f"{seeds} seeds; ρ = {setting['selection']['rho']:g}, chosen on validation sentences:",
        "",
        "| Posterior | Accuracy, % | NLL | Flat − plain [95 %] | ECE |",
        "|---|---|---|---|---|",
    ]
    for name in names:
        accuracy, nll, ece = (rows[name, metric] for metric in MAIN_METRICS)
        low, high = nll["interval"]
        difference = f"{nll['difference']:+.2f} [{low:+.2f}, {high:+.2f}]".replace("-", "−")
        lines.append(
            f"| {name} | {100 * accuracy['plain']:.1f} → {100 * accuracy['flat']:.1f} | {nll['plain']:.2f} → "
            f"{format_winner(nll, '.2f')} | {difference} | {ece['plain']:.3f} → {format_winner(ece, '.3f')} |"
        )
    stand = sum(row["verdict_holm"] == "flat" for row in rows.values())
    smallest = min(row["p_holm"] for row in rows.values() if row["p_holm"] is not None)
    lines += [
        "",
        f"Flat has the lower NLL in {wins} of {pairs} pairs of seed and posterior. After Holm's correction over all "
        f"{len(rows)} comparisons of this setting, {stand or 'none'} of them stand{'' if stand > 1 else 's'} "
        f"(smallest p {smallest:.2g}).",
    ]
    return "\n".join(lines) + render_chosen_epochs(setting)


def render_chosen_epochs(setting: Mapping[str, Any]) -> str:
    """Flat training against plain training whose number of epochs is chosen too; nothing if it has not been."""
    record = setting.get("selection_epochs")
    if not record:
        return ""
    plain = min(nll for _, nll, _ in record["val_nll"])
    flat = min(nll for _, nll, _ in setting["selection"]["val_nll"] if nll is not None)
    text = (
        f"\n\n**Against early stopping.** Both variants have {setting['epochs']} epochs here. Plain training with a "
        f"number of epochs chosen on validation sentences ({record['epochs']}) has a validation NLL of {plain:.2f}, "
        f"flat training {flat:.2f} (mean over posteriors): both prevent overfitting."
    )
    rows = {(row["posterior"], row["metric"]): row for row in setting["rows_chosen_epochs"]}
    if not rows:
        return text
    lines = [
        "",
        "",
        "| Posterior | NLL | NLL after temperature scaling | AURC (ranking of errors) |",
        "|---|---|---|---|",
    ]
    for name in dict.fromkeys(name for name, _ in rows):
        cells = [format_pair(rows[name, metric]) for metric in ("nll", "nll_calibrated", "aurc")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "Bold: the 95 % interval of the paired difference excludes 0."]
    return text + " On test sentences, this plain training → flat:" + "\n".join(lines)


def format_pair(row: Mapping[str, Any]) -> str:
    """Both means, the better one in bold if the interval excludes 0."""
    plain, flat = f"{row['plain']:.3f}", f"{row['flat']:.3f}"
    if row["verdict"] == "plain":
        plain = f"**{plain}**"
    return f"{plain} → {format_winner(row, '.3f')}" if row["verdict"] == "flat" else f"{plain} → {flat}"


def format_winner(row: Mapping[str, Any], form: str) -> str:
    """The flat mean, in bold if its interval excludes 0 for the better."""
    text = format(row["flat"], form)
    return f"**{text}**" if row["verdict"] == "flat" else text


def render_counts(settings: Sequence[Mapping[str, Any]]) -> str:
    """Counts of verdicts on images by what is trained."""
    texts = []
    for trained, name in IMAGES.items():
        rows = [row for setting in settings if setting["trained"] == trained for row in setting["rows"]]
        counts = Counter(row["verdict"] for row in rows if row["metric"] in MAIN_METRICS)
        if counts:
            sizes = [
                f"{setting['size']:,}" for setting in settings if setting["trained"] == trained and setting["rows"]
            ]
            texts.append(
                f"{name} on {', '.join(sizes)} images: flat is better in {counts['flat']}, plain in "
                f"{counts['plain']} of {counts.total()}"
            )
    joined = "; ".join(texts)
    return f"EfficientNet-Lite0 on CIFAR-10, accuracy, NLL and ECE of all posteriors, {joined}."


def main(arguments: list[str] | None = None) -> None:
    """Fill the marks of the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path, help="README.md")
    page = parser.parse_args(arguments).page
    summaries = [read_json(RESULTS / f"{name}.json") for name in ("sentences", "images")]
    fill_marks(page, {"fine-tuning": render_readme(*summaries)})


if __name__ == "__main__":
    main()
