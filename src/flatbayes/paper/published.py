"""Figures that others published, each with where it is from and how far that was checked; never mixed with ours."""

import csv
from dataclasses import dataclass
from pathlib import Path

SOURCES = {
    "flat_bnn-logs": "evaluation logs in the paper's official code, byM1902/flat_bnn: one seed, 30 networks, ECE of "
    "20 bins, settings chosen on the test data",
    "flat_bnn-ensembles": "logs of ensembles in the same code; which twin they are of is inferred",
    "swa_gaussian": "README of the SWAG paper's official code, wjmaddox/swa_gaussian: three seeds",
    "swag-paper": "the SWAG paper (Maddox et al., NeurIPS 2019); unverified",
    "ot_mdr": "README of anh-ntv/OT_MDR, a later paper of the same authors, which has SAM as a baseline",
}
"""Where figures are from."""


@dataclass(frozen=True)
class Figure:
    """One published figure.

    Attributes:
        cell: Name of the cell that it belongs to.
        metric: Its name in flatbayes; accuracies are shares, not per cent.
        mean: Its value, over seeds where there were several.
        sd: Its published spread; None where there is none.
        seeds: Number of seeds; None where that is not said.
        provenance: `V` where it was read in the source, `M` where it was not; what else was inferred.
        source: A key of `SOURCES`.
        note: What sets it apart from the cell.
    """

    cell: str
    metric: str
    mean: float
    sd: float | None
    seeds: int | None
    provenance: str
    source: str
    note: str


def figures_of(table: str) -> dict[str, list[Figure]]:
    """The figures for each cell of a table, the paper's own first; empty lists where none could be read."""
    found: dict[str, list[Figure]] = {}
    for row in rows():
        if row["table"] != table:
            continue
        cell = f"{row['network']}-{row['method']}-{row['twin']}"
        figures = found.setdefault(cell, [])
        if row["metric"]:
            figures.append(
                Figure(
                    cell=cell,
                    metric=row["metric"],
                    mean=float(row["mean"]),
                    sd=float(row["sd"]) if row["sd"] else None,
                    seeds=int(row["seeds"]) if row["seeds"] else None,
                    provenance=row["provenance"],
                    source=row["source"],
                    note=row["note"],
                )
            )
    return found


def rows() -> list[dict[str, str]]:
    """The lines of the file that holds them all."""
    with (Path(__file__).parent / "published.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
