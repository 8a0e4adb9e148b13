"""Comparison of results with the published ones, and the differences that limit it."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import numpy as np

from flatbayes.core.spec import short_name, to_spec
from flatbayes.data import DataSource
from flatbayes.data.splits import Split
from flatbayes.experiments import RunResult
from flatbayes.training.model_builder import ModelFactory
from reproduction.configs import TableCell
from reproduction.published import PublishedResult, load_published_results
from reproduction.table_config import SourceSubset, TableConfig

METRICS = ("accuracy", "nll", "ece")
JPEG_MAGIC_BYTES = b"\xff\xd8"


@dataclass(frozen=True)
class ComparisonRow:
    """One metric of a cell beside one published result.

    Attributes:
        cell: Name of the cell.
        network: Short name of the network.
        method: Short name of the posterior.
        variant: `plain` or `flat`.
        metric: Name of the metric.
        ours: Our mean over seeds; None without a run.
        ours_std: Our standard deviation over seeds; None with fewer than two.
        ours_num_seeds: Our number of seeds.
        published: Published mean; None without a published result, as the fields below.
        std: Published standard deviation.
        num_seeds: Published number of seeds.
        provenance: Provenance of the published result.
        reference: Reference of the published result.
        note: Differences between the published setting and the cell.
        difference: Ours minus published.
    """

    cell: str
    network: str
    method: str
    variant: str
    metric: str
    ours: float | None
    ours_std: float | None
    ours_num_seeds: int
    published: float | None = None
    std: float | None = None
    num_seeds: int | None = None
    provenance: str | None = None
    reference: str | None = None
    note: str | None = None
    difference: float | None = None


def make_comparison_rows(cells: Sequence[TableCell], runs: Sequence[RunResult], table: str) -> list[ComparisonRow]:
    """A row per cell, metric and published result, and one per cell and metric without any.

    Args:
        cells: The cells as they were run.
        runs: Results of `ExperimentRun.execute`, of any cells.
        table: Name of the table.
    """
    published = load_published_results(table)
    rows = []
    for cell in cells:
        cell_runs = [
            run for run in runs if (run.posterior, run.flatness) == (cell.posterior_name, short_name(cell.flatness))
        ]
        for metric in METRICS:
            values = [value for run in cell_runs if (value := run.metrics[metric]) is not None]
            results: list[PublishedResult | None] = [r for r in published[cell.name] if r.metric == metric]
            rows += [_make_row(cell, metric, values, result) for result in results or [None]]
    return rows


def _make_row(cell: TableCell, metric: str, values: Sequence[float], result: PublishedResult | None) -> ComparisonRow:
    ours = fmean(values) if values else None
    columns: dict[str, Any] = {}
    if result is not None:
        columns = {
            "published": result.mean,
            "std": result.std,
            "num_seeds": result.num_seeds,
            "provenance": result.provenance,
            "reference": result.reference,
            "note": result.note,
            "difference": None if ours is None else ours - result.mean,
        }
    return ComparisonRow(
        cell=cell.name,
        network=cell.network,
        method=cell.method,
        variant=cell.variant,
        metric=metric,
        ours=ours,
        ours_std=stdev(values) if len(values) > 1 else None,
        ours_num_seeds=len(values),
        **columns,
    )


def describe_differences(config: TableConfig) -> list[str]:
    """Sentences about what limits the comparison of a table with the published results."""
    first_source = config.cells[0].source
    source = first_source.source if isinstance(first_source, SourceSubset) else first_source
    sentences = [
        "Published figures are claims of their references. Those from the paper's own logs are of one seed each, for "
        "which a difference of a few tenths of a per cent is noise.",
        "The published runs train on all 50,000 images and are evaluated on the test split during development; here "
        "5,000 of these images are held out for selection, and nothing was selected on the test split, except that "
        "the cells have the published settings.",
    ]
    if is_jpeg_source(source):
        sentences.append("The images are lossy JPEG copies: results on them are not results on the original images.")
    if config.split != "test":
        sentences.append(f"Ours are measured on the {config.split} split, the published figures on the test split.")
    pairs = list(zip(config.published_cells, config.cells, strict=True))
    networks = dict.fromkeys((format_model(published.model), format_model(cell.model)) for published, cell in pairs)
    replaced = [f"{ours} in place of {published}" for published, ours in networks if ours != published]
    if replaced:
        sentences.append(f"Other networks than the published ones: {', '.join(replaced)}.")
    published_epochs, epochs = (
        " and ".join(map(str, sorted({cell.config.epochs for cell in cells}, reverse=True)))
        for cells in zip(*pairs, strict=True)
    )
    if epochs != published_epochs:
        sentences.append(f"{epochs} epochs in place of {published_epochs}.")
    num_draws, published_num_draws = config.cells[0].num_draws, config.published_cells[0].num_draws
    if num_draws != published_num_draws:
        sentences.append(f"{num_draws} networks a prediction in place of {published_num_draws}.")
    if config.max_examples is not None:
        sentences.append(
            f"At most {config.max_examples:,} images in each split instead of 45,000 to train on and 10,000 to test "
            "on: this shows that the table runs, and is no evidence for any claim."
        )
    return sentences


def format_model(model: ModelFactory) -> str:
    """Class name of a network, with the arguments in its file."""
    spec = to_spec(model)
    arguments = ", ".join(f"{name}={value}" for name, value in spec["init_args"].items())
    return f"{spec['class_path'].rpartition('.')[2]}({arguments})"


def is_jpeg_source(source: DataSource) -> bool:
    """Whether the first image of a source is stored as JPEG."""
    images = source.read().unsplit
    if isinstance(images, Split):
        return False
    _, image = next(iter(images.read_encoded(np.array([0]))))
    return image[:2] == JPEG_MAGIC_BYTES
