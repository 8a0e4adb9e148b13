"""Tables and sentences of docs/interpolation.md, between its marks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from studies.pages import replace_between

START, END = "<!-- numbers of studies/interpolation -->", "<!-- end of the numbers -->"
USUAL_METRICS = "accuracy, NLL, ECE, Brier score and AUROC of right against wrong"
COLUMNS = {"accuracy": (100.0, 2), "nll": (1.0, 3), "ece": (1.0, 3), "nll_scaled": (1.0, 3)}
"""Metrics of the table with the factor and the digits they are shown with."""


def update_page(page: Path, results: Mapping[str, Any]) -> None:
    """Write the content of `interpolation.json` into the page."""
    sections = "\n\n".join(render_setting(name, setting) for name, setting in results["settings"].items())
    replace_between(page, START, END, sections)


def render_setting(name: str, setting: Mapping[str, Any]) -> str:
    """Section of one setting: headline, table, selection, and how much of the grid has finished."""
    head = [
        f"## {name}",
        "",
        f"{setting['title']}: {setting['num_weights']:,} weights, "
        f"{setting['num_weights'] / setting['train_size']:.0f} for each training image. {setting['finished']} of "
        f"{setting['planned']} trainings have finished.",
    ]
    if not setting["rows"]:
        return "\n".join([*head, "", "No pair of a plain and a flat training has finished."])
    lines = [
        *head,
        "",
        describe_verdicts(setting),
        "",
        *render_table(setting["rows"]),
        "",
        describe_selection(setting),
    ]
    if any(record["train_loss"] is not None for record in setting["law"]):
        lines += ["", describe_fit(setting)]
    return "\n".join([*lines, "", describe_sharing(setting["sharing"])])


def describe_verdicts(setting: Mapping[str, Any]) -> str:
    """Counts of verdicts before and after Holm's correction."""
    texts = []
    for family, count in setting["counts"].items():
        label = USUAL_METRICS if family == "usual" else family.lower()
        ties = count["comparisons"] - count["flat"] - count["plain"]
        texts.append(
            f"* {label}: of {count['comparisons']} comparisons flat wins {count['flat']}, loses {count['plain']}, "
            f"and {ties} are within noise; after Holm's correction {count['flat_holm']} and "
            f"{count['plain_holm']} remain."
        )
    return "\n".join(texts)


def render_table(rows: list[Mapping[str, Any]]) -> list[str]:
    """Plain → flat for every method, with the interval of the difference in NLL."""
    by_method: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        by_method.setdefault(row["posterior"], {})[row["metric"]] = row
    lines = [
        "| Method | Seeds | Accuracy, % | NLL | NLL, flat − plain [95 %] | ECE | NLL after temperature scaling |",
        "|---|---:|---|---|---|---|---|",
    ]
    for method, metrics in by_method.items():
        cells = {
            name: format_pair(metrics[name], factor, digits) if name in metrics else ""
            for name, (factor, digits) in COLUMNS.items()
        }
        nll = metrics["nll"]
        interval = "" if nll["interval"] is None else f" [{nll['interval'][0]:+.3f}, {nll['interval'][1]:+.3f}]"
        difference = f"{nll['difference']:+.3f}{interval}".replace("-", "−")
        lines.append(
            f"| {method} | {nll['num_seeds']} | {cells['accuracy']} | {cells['nll']} | {difference} | "
            f"{cells['ece']} | {cells['nll_scaled']} |"
        )
    return lines


def format_pair(row: Mapping[str, Any], factor: float, digits: int) -> str:
    """Means, with ✗ where the interval says that flat is worse, ~ where it contains zero, ? without an interval."""
    mark = {"flat": "", "plain": " ✗", "tie": " ~"}[row["winner"]] if row["interval"] else " ?"
    return f"{factor * row['plain']:.{digits}f} → {factor * row['flat']:.{digits}f}{mark}"


def describe_selection(setting: Mapping[str, Any]) -> str:
    """The chosen radii, and the methods for which validation images prefer plain training."""
    by_radius: dict[float, list[str]] = {}
    for name, radius in setting["selected"].items():
        by_radius.setdefault(radius, []).append(name)
    texts = [f"{radius:g} for {', '.join(names)}" for radius, names in sorted(by_radius.items())]
    unpaid = setting["plain_is_best_on_validation"]
    preferred = f" Plain training is the best on validation images for {', '.join(unpaid)}." if unpaid else ""
    radii = ", ".join(f"{radius:g}" for radius in setting["radii"])
    seeds = "seed 0" if setting["selection_seeds"] == 1 else f"{setting['selection_seeds']} seeds"
    return f"ρ was chosen from {radii} by the NLL on validation images ({seeds}): {'; '.join(texts)}.{preferred}"


def describe_fit(setting: Mapping[str, Any]) -> str:
    """Training loss and gap of plain MAP."""
    record = next((r for r in setting["law"] if r["method"] == "MAP"), setting["law"][0])
    sharpness = "" if record["sharpness"] is None else f", sharpness at 0.05 {record['sharpness']:.4f}"
    return (
        f"Plain {record['method']} ends with an NLL of {record['train_loss']:.3f} on training images "
        f"({record['gap']:.3f} lower than on validation images){sharpness}; the mean loss of the last epoch, with "
        f"augmentation and dropout, is {record['last_epoch_loss']:.3f}."
    )


def describe_sharing(sharing: Mapping[str, float]) -> str:
    """What shared trainings save."""
    alone, shared = sharing["train_seconds_alone"], sharing["train_seconds_shared"]
    factor = sharing["gradients_alone"] / sharing["gradients_shared"]
    return (
        f"These trainings take {sharing['gradients_shared']:,.0f} gradients and {shared / 60:.1f} minutes with "
        f"shared trainings, and {sharing['gradients_alone']:,.0f} and {alone / 60:.1f} one by one: a factor of "
        f"{factor:.2f}."
    )
