"""Published results, each with its reference and how far it was verified."""

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
"""Description of each reference."""


@dataclass(frozen=True)
class PublishedResult:
    """One published number.

    Attributes:
        cell: Name of its cell.
        metric: Name of the metric in flatbayes; accuracies are fractions, not per cent.
        mean: The value, or its mean over seeds.
        std: Published standard deviation; None without one.
        num_seeds: Number of seeds; None if it was not published.
        provenance: `V` if it was read in the reference, `M` if it is unverified, and what was inferred.
        reference: A key of `REFERENCES`.
        note: Differences between the published setting and the cell.
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
    """Published results of each cell of a table, the paper's own first; empty lists for cells without any."""
    results: dict[str, list[PublishedResult]] = {}
    for row in read_rows():
        if row["table"] != table:
            continue
        cell = f"{row['network']}-{row['method']}-{row['variant']}"
        cell_results = results.setdefault(cell, [])
        if row["metric"]:
            cell_results.append(
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
    return results


def read_rows() -> list[dict[str, str]]:
    """Rows of `published.csv`."""
    with (Path(__file__).parent / "published.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
