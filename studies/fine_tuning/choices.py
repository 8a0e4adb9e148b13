"""Tables and sentences on the choices: radius and number of epochs, by the NLL on validation examples."""

from collections.abc import Mapping, Sequence
from typing import Any

from studies.fine_tuning.labels import Labels, is_default, is_without_warmup

TWINS = ("plain", "flat")


def find_preferred(setting: Mapping[str, Any]) -> str:
    """The twin with the lower validation NLL, `flat` or `plain`."""
    return "flat" if setting["selection"]["is_flat_better"] else "plain"


def find_gradient_ratio(setting: Mapping[str, Any]) -> float:
    """Gradients of the flat twin divided by those of the plain one: measured, or from the numbers of epochs."""
    if gradients := setting.get("mean_cost", {}).get("gradients"):
        return float(gradients["flat"]) / float(gradients["plain"])
    plain, flat = (setting["selection"][twin]["epochs"] for twin in TWINS)
    return 2 * float(flat) / float(plain)


def render_choices(settings: Sequence[Mapping[str, Any]], labels: Labels) -> str:
    """The validation NLL of every candidate, that of each twin in bold."""
    chosen = [setting for setting in settings if setting["selection"] and not is_default(setting)]
    if not chosen:
        return ""
    radii = sorted({c["rho"] for setting in chosen for c in setting["selection"]["candidates"]})
    lines = [
        "Validation NLL by radius and number of epochs (mean over posteriors, seeds 0 and 1). Bold: the twins, which "
        "are the best plain candidate and the best with a radius above 0.",
        "",
        "| setting | epochs | " + " | ".join(f"ρ {rho:g}" for rho in radii) + " |",
        "|---|---|" + "---|" * len(radii),
    ]
    for setting in chosen:
        record = setting["selection"]
        nlls = {(c["rho"], c["epochs"]): c["nll"] for c in record["candidates"]}
        twins = [(record[twin]["rho"], record[twin]["epochs"]) for twin in TWINS]
        for epochs in sorted({epochs for _, epochs in nlls}):
            cells = [_format_nll(nlls, (rho, epochs), is_chosen=(rho, epochs) in twins) for rho in radii]
            lines.append(f"| {labels.describe(setting)} | {epochs} | {' | '.join(cells)} |")
    num_plain = sum(not setting["selection"]["is_flat_better"] for setting in chosen)
    return "\n".join(
        [*lines, "", f"Plain training has the lowest validation NLL in {num_plain} of {len(chosen)} settings."]
    )


def _format_nll(
    nlls: Mapping[tuple[float, int], float | None], candidate: tuple[float, int], *, is_chosen: bool
) -> str:
    if candidate not in nlls:
        return "–"
    nll = nlls[candidate]
    return "diverged" if nll is None else f"**{nll:.3f}**" if is_chosen else f"{nll:.3f}"


def describe_twins(setting: Mapping[str, Any]) -> str:
    """Radius and number of epochs of each twin, number of candidates, and which one validation data prefer."""
    record = setting["selection"]
    rates = record.get("rates")
    rate = f"Learning rate {record['lr']:.2g} (best of {len(rates)} for plain training). " if rates else ""
    counts = [sum((c["rho"] > 0) == is_flat for c in record["candidates"]) for is_flat in (False, True)]
    epochs = {c["epochs"] for c in record["candidates"]}
    plain, flat = (record[twin] for twin in TWINS)
    if is_default(setting):
        ends = setting.get("mean_cost", {}).get("num_epochs")
        when = f" (plain after {ends['plain']:.1f}, flat after {ends['flat']:.1f}, mean)" if ends else ""
        warmup = "The learning rate had no warm-up yet. " if is_without_warmup(setting) else ""
        text = (
            f"No option is set. {warmup}Both train for at most {plain['epochs']} epochs and stop early{when}; flat "
            f"is SAM with ρ = {flat['rho']:g}."
        )
    elif len(epochs) == 1:
        text = (
            f"{epochs.pop()} epochs for both. {rate}Flat: SAM with ρ = {flat['rho']:g} (best of {counts[1]} radii)."
        )
    else:
        text = (
            f"Plain: {plain['epochs']} epochs (best of {counts[0]} numbers). Flat: SAM with ρ = {flat['rho']:g} and "
            f"{flat['epochs']} epochs (best of {counts[1]} pairs)."
        )
    return (
        f"{text} Flat training takes {find_gradient_ratio(setting):.1f} times the gradients. Validation data prefer "
        f"{find_preferred(setting)} training: NLL, mean over posteriors, {plain['nll']:.3f} plain, {flat['nll']:.3f} "
        "flat."
    )
