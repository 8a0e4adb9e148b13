"""Tables of the study for docs/reference.md, between its marks.

python -m studies.reference.page    # reads docs/results/reference-*.json
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from flatbayes.core.files import read_json
from studies.pages import format_metric, replace_between
from studies.reference.study import compare_distances, rank_correlation

DOCS = Path(__file__).parents[2] / "docs"
START, END = "<!-- tables of studies/reference -->", "<!-- end of the tables -->"
COLUMNS = {
    "agreement": "agreement",
    "tv": "TV",
    "w1": "W1",
    "agreement_flat": "agreement (s.-a.)",
    "tv_flat": "TV (s.-a.)",
    "w1_flat": "W1 (s.-a.)",
    "nll": "NLL",
    "nll_calibrated": "calibrated NLL",
    "dee": "DEE",
}


def render_task(results: Mapping[str, Any]) -> str:
    """Section of one data set: the references, and all methods by their distance to the sharpness-aware one."""
    rows = results["rows"]
    names = [name for name in COLUMNS if any(name in row["metrics"] for row in rows)]
    distance = "tv_flat" if "tv_flat" in names else "w1_flat"
    kind = (
        "seeds, which have the same data" if results["one_split"] else "standard splits, each with its own references"
    )
    lines = [
        f"### {results['title']}",
        "",
        f"Prior precision {results['prior_precision']:g}, temperature {results['temperature']:g}, radius "
        f"{results['rho']:g}; {results['num_seeds']} of {results['planned_seeds']} {kind}; {results['epochs']} "
        "epochs. Sorted by the distance to the sharpness-aware reference (s.-a.).",
        "",
        *describe_references(results["references"]),
        "",
        f"| method | flatness | {' | '.join(COLUMNS[name] for name in names)} |",
        f"|---|---|{'---:|' * len(names)}",
    ]
    for kind in ("plain", "flat"):
        values = average_reference(results["references"], kind)
        cells = [f"{values[name]:.3f}" if name in values else "" for name in names]
        label = "plain" if kind == "plain" else "sharpness-aware"
        lines.append(f"| **exact** ({label}; own column: two halves) | | {' | '.join(cells)} |")
    for row in sorted(rows, key=lambda row: row["metrics"].get(distance, {"mean": float("inf")})["mean"]):
        cells = [format_metric(row["metrics"].get(name)) for name in names]
        lines.append(f"| {row['posterior']} | {'SAM' if row['flat'] else 'Plain'} | {' | '.join(cells)} |")
    refused = [f"`{name}` goes with Plain only." for name in results["plain_only"]]
    return "\n".join([*lines, "", *refused, "", *describe_closeness(rows, distance)])


def average_reference(references: Sequence[Mapping[str, Any]], kind: str) -> dict[str, float]:
    """Metrics of a reference, its distance to the other one, and that of two halves of its chains; means."""
    own, other = ("_flat", "") if kind == "flat" else ("", "_flat")
    by_split = [
        {
            **reference[kind]["metrics"],
            **{name + own: value for name, value in reference[kind]["noise"].items()},
            **{name + other: value for name, value in reference["distance"].items()},
        }
        for reference in references
    ]
    return {name: fmean(values[name] for values in by_split) for name in by_split[0]}


def describe_references(references: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence on the mixing of the chains: the worst values over the splits."""
    sentences = []
    for kind, label in (("plain", "plain"), ("flat", "sharpness-aware")):
        diagnostics = [reference[kind]["diagnostics"] for reference in references]
        r_hat = max(entry["r_hat_max"] for entry in diagnostics)
        size = min(entry["ess_min"] for entry in diagnostics)
        config = references[0][kind]["config"]
        sentences.append(
            f"{label}: {config['num_chains']} chains of {config['num_steps']:,} steps, largest R-hat {r_hat:.3f}, "
            f"smallest effective sample size {size:.0f}"
        )
    return [f"The references are {'; '.join(sentences)}."]


def describe_closeness(rows: list[dict[str, Any]], distance: str) -> list[str]:
    """Sentences on what brings methods closer, and on whether closeness goes with a better NLL."""
    lines = [
        "Spearman's rank correlation of distance and score over the methods, with a 95 % interval by bootstrap over "
        "the methods; positive means that closer methods predict better:",
        "",
    ]
    plain, flat = ([row for row in rows if row["flat"] is is_flat] for is_flat in (False, True))
    for text, group, name in (
        ("runs with SAM, distance to the sharpness-aware reference", flat, distance),
        ("runs with Plain, distance to the plain reference", plain, distance.removesuffix("_flat")),
    ):
        for label, members in (("", group), ("the close half of ", select_closest(group, name))):
            results = {score: rank_correlation(members, name, score) for score in ("nll", "nll_calibrated")}
            values = [
                f"{result['correlation']:+.2f} with {COLUMNS[score]} "
                f"[{result['interval'][0]:+.2f}, {result['interval'][1]:+.2f}]"
                for score, result in results.items()
                if result is not None
            ]
            if values:
                subject = f"{label}{text}"
                lines.append(f"* {subject[0].upper()}{subject[1:]}, {len(members)} methods: {', '.join(values)}.")
    moved = compare_distances(rows)
    closer, farther = ([row["posterior"] for row in moved if row["closer"] == side] for side in ("flat", "plain"))
    lines.append(
        f"* SAM brings {', '.join(closer) or 'no method'} closer to the sharpness-aware reference than plain "
        f"training (95 % paired interval), and takes {', '.join(farther) or 'none'} farther away; the other "
        "differences are within noise."
    )
    return lines


def select_closest(rows: list[dict[str, Any]], distance: str) -> list[dict[str, Any]]:
    """The half of the methods with the smallest distance."""
    measured = [row for row in rows if distance in row["metrics"]]
    return sorted(measured, key=lambda row: row["metrics"][distance]["mean"])[: (len(measured) + 1) // 2]


def update_page() -> None:
    """Write the tables into docs/reference.md."""
    page = DOCS / "reference.md"
    results = [read_json(path) for path in sorted((DOCS / "results").glob("reference-*.json"))]
    tables = "\n\n".join(map(render_task, results))
    replace_between(page, START, END, tables)


if __name__ == "__main__":
    update_page()
