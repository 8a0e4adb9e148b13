"""Figures that others published, each with where it is from and how far that was checked; never mixed with ours."""

import csv
from dataclasses import dataclass
from pathlib import Path

REFERENCES = {
    "flat_bnn-logs": "evaluation logs in the paper's official code, byM1902/flat_bnn: one seed, 30 networks, ECE of "
    "20 bins, settings chosen on the test data",
    "flat_bnn-ensembles": "logs of ensembles in the same code; which twin they are of is inferred",
    "swa_gaussian": "README of the SWAG paper's official code, wjmaddox/swa_gaussian: three seeds",
    "swag-paper": "the SWAG paper (Maddox et al., NeurIPS 2019); unverified",
    "ot_mdr": "README of anh-ntv/OT_MDR, a later paper of the same authors, which has SAM as a baseline",
}
"""Where figures are from."""


@dataclass(frozen=True)
class PublishedResult:
    """One published figure.

    Attributes:
        cell: Name of the cell that it belongs to.
        metric: Its name in flatbayes; accuracies are shares, not per cent.
        mean: Its value, over seeds where there were several.
        std: Its published spread; None where there is none.
        num_seeds: Number of seeds; None where that is not said.
        provenance: `V` where it was read in the source, `M` where it was not; what else was inferred.
        reference: A key of `REFERENCES`.
        note: What sets it apart from the cell.
    """

    cell: str
    metric: str
    mean: float
    std: float | None
    num_seeds: int | None
    provenance: str
    reference: str
    note: str


def load_published_results(table: str) -> dict[str, list[PublishedResult]]:
    """The figures for each cell of a table, the paper's own first; empty lists where none could be read."""
    found: dict[str, list[PublishedResult]] = {}
    for row in read_rows():
        if row["table"] != table:
            continue
        cell = f"{row['network']}-{row['method']}-{row['variant']}"
        figures = found.setdefault(cell, [])
        if row["metric"]:
            figures.append(
                PublishedResult(
                    cell=cell,
                    metric=row["metric"],
                    mean=float(row["mean"]),
                    std=float(row["std"]) if row["std"] else None,
                    num_seeds=int(row["num_seeds"]) if row["num_seeds"] else None,
                    provenance=row["provenance"],
                    reference=row["reference"],
                    note=row["note"],
                )
            )
    return found


def read_rows() -> list[dict[str, str]]:
    """The lines of the file that holds them all."""
    with (Path(__file__).parent / "published.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
