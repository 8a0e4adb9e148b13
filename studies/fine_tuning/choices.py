"""Tables and sentences on the choices: radius and number of epochs, by the NLL on validation examples."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from studies.fine_tuning.labels import Labels


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


def find_preferred(setting: Mapping[str, Any]) -> str:
    """The twin with the lower validation NLL, `flat` or `plain`.

    Args:
        setting: Summary of a setting whose radius is chosen.
    """
    plain, flat = find_val_nlls(setting)
    return "flat" if flat < plain else "plain"


def find_gradient_ratio(setting: Mapping[str, Any]) -> float:
    """Gradients of the flat twin divided by those of the plain one; SAM takes two in a step.

    Args:
        setting: Summary of a setting.
    """
    epochs = setting["selection_epochs"] or {}
    plain, flat = (epochs[twin]["epochs"] if twin in epochs else setting["epochs"] for twin in ("plain", "flat"))
    return 2 * float(flat) / float(plain)


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
    lines += [
        "",
        f"With all epochs, plain training has the lowest validation NLL in {num_plain} of {len(chosen)} settings.",
    ]
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


def describe_twins(setting: Mapping[str, Any]) -> str:
    """Radius and number of epochs of each twin, number of candidates, and which one validation data prefer.

    Args:
        setting: Summary of a setting.
    """
    selection, epochs = setting["selection"], setting["selection_epochs"]
    num_radii = len(selection["val_nll"]) - 1
    rates = selection.get("rates")
    rate = f"Learning rate {selection['lr']:.2g} (best of {len(rates)} for plain training). " if rates else ""
    radius = f"Flat: SAM with ρ = {selection['rho']:g} (best of {num_radii} radii)"
    if not epochs:
        text = f"{setting['epochs']} epochs for both. {rate}{radius}."
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
    return (
        f"{text} Flat training takes {find_gradient_ratio(setting):.1f} times the gradients. Validation data prefer "
        f"{find_preferred(setting)} training: NLL, mean over posteriors, {plain_nll:.3f} plain, {flat_nll:.3f} flat."
    )
