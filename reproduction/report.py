"""Ours beside the published figures, and what keeps the two from being compared."""

from collections.abc import Sequence
from itertools import chain
from statistics import fmean, stdev
from typing import Any

from flatbayes.core.spec import short_name, to_spec
from flatbayes.data import DataSource
from flatbayes.data.splits import Split
from flatbayes.experiments import RunResult
from flatbayes.training.model_builder import ModelFactory
from reproduction.configs import TableCell
from reproduction.published import PublishedResult, load_published_results
from reproduction.subset import SourceSubset
from reproduction.table_config import TableConfig

METRICS = ("accuracy", "nll", "ece")
JPEG_MAGIC_BYTES = b"\xff\xd8"


def make_comparison_rows(cells: Sequence[TableCell], runs: Sequence[RunResult], table: str) -> list[dict[str, Any]]:
    """A row for every cell and metric, or several where several figures were published.

    Args:
        cells: As they were run.
        runs: What `Task.execute` returns, of any cells.
        table: Name of the table.
    """
    figures = load_published_results(table)
    return list(chain.from_iterable(_make_cell_rows(cell, runs, figures[cell.name]) for cell in cells))


def _make_cell_rows(
    cell: TableCell, runs: Sequence[RunResult], figures: Sequence[PublishedResult]
) -> list[dict[str, Any]]:
    mine = [r for r in runs if (r.posterior, r.flatness) == (cell.posterior_name, short_name(cell.flatness))]
    rows = []
    for metric in METRICS:
        values = [value for run in mine if (value := run.metrics[metric]) is not None]
        ours = {
            "ours": fmean(values) if values else None,
            "ours_std": stdev(values) if len(values) > 1 else None,
            "ours_num_seeds": len(values),
        }
        names = {"cell": cell.name, "network": cell.network, "method": cell.method, "variant": cell.variant}
        of_metric: Sequence[PublishedResult | None] = [figure for figure in figures if figure.metric == metric] or [
            None
        ]
        rows += [
            names | {"metric": metric} | ours | _make_publication_columns(figure, ours["ours"])
            for figure in of_metric
        ]
    return rows


def _make_publication_columns(result: PublishedResult | None, ours: float | None) -> dict[str, Any]:
    keys = ("mean", "std", "num_seeds", "provenance", "reference", "note")
    found = {"published" if key == "mean" else key: None if result is None else getattr(result, key) for key in keys}
    known = result is not None and ours is not None
    return found | {"difference": ours - result.mean if known else None}  # type: ignore[operator,union-attr]


def describe_differences(config: TableConfig) -> list[str]:
    """Sentences that say what is not comparable, for every reader of the table."""
    first = config.cells[0]
    source = first.source.source if isinstance(first.source, SourceSubset) else first.source
    said = [
        "Published figures are others' claims. Those of the paper's own logs are of one seed each, with which a few "
        "tenths of a per cent are noise.",
        "The published runs train on all 50,000 images and look at the test part all along; here 5,000 of these are "
        "held out to choose by, and nothing was chosen on the test part, except that the cells have the published "
        "settings.",
    ]
    if is_jpeg_source(source):
        said.append("The images read here are lossy JPEG copies: figures on them are not those of the original.")
    if config.split != "test":
        said.append(f"Ours are measured on the {config.split} part, the published figures on the test part.")
    pairs = zip(config.published_cells, config.cells, strict=True)
    networks = dict.fromkeys((format_model(was.model), format_model(cell.model)) for was, cell in pairs)
    others = [f"{now} in place of {was}" for was, now in networks if now != was]
    if others:
        said.append(f"Other networks than the published ones: {', '.join(others)}.")
    said += _describe_training_differences(config)
    if config.max_examples is not None:
        said.append(
            f"At most {config.max_examples:,} images in each part of the data instead of 45,000 to train on and "
            f"10,000 to "
            "test on: this shows that the table runs, and says nothing about any claim."
        )
    return said


def _describe_training_differences(config: TableConfig) -> list[str]:
    was = sorted({cell.config.epochs for cell in config.published_cells}, reverse=True)
    now = sorted({cell.config.epochs for cell in config.cells}, reverse=True)
    said = [] if was == now else [f"{_join_numbers(now)} epochs in place of {_join_numbers(was)}."]
    draws = config.cells[0].num_draws, config.published_cells[0].num_draws
    return said if draws[0] == draws[1] else [*said, f"{draws[0]} networks a prediction in place of {draws[1]}."]


def _join_numbers(numbers: Sequence[int]) -> str:
    return " and ".join(map(str, numbers))


def format_model(model: ModelFactory) -> str:
    """A network with all the arguments that its file gives."""
    spec = to_spec(model)
    inside = ", ".join(f"{name}={value}" for name, value in spec["init_args"].items())
    return f"{spec['class_path'].rpartition('.')[2]}({inside})"


def is_jpeg_source(source: DataSource) -> bool:
    """Whether the first image of a source is stored as JPEG."""
    part = source.read().unsplit
    if isinstance(part, Split):
        return False
    import numpy as np

    _, image = next(iter(part.read_encoded(np.array([0]))))
    return image[:2] == JPEG_MAGIC_BYTES
