"""Ours beside the published figures, and what keeps the two from being compared."""

from collections.abc import Mapping, Sequence
from itertools import chain
from statistics import fmean, stdev
from typing import Any

from flatbayes.core.spec import label, to_spec
from flatbayes.data import Source
from flatbayes.data.dataset import Part
from flatbayes.paper.cells import Cell
from flatbayes.paper.few import FewTests
from flatbayes.paper.plan import Plan
from flatbayes.paper.published import Figure, figures_of
from flatbayes.training.model import ModelFactory

METRICS = ("accuracy", "nll", "ece")
JPEG = b"\xff\xd8"


def beside(cells: Sequence[Cell], runs: Sequence[Mapping[str, Any]], table: str) -> list[dict[str, Any]]:
    """A row for every cell and metric, or several where several figures were published.

    Args:
        cells: As they were run.
        runs: What `Task.execute` returns, of any cells.
        table: Name of the table.
    """
    figures = figures_of(table)
    return list(chain.from_iterable(_rows(cell, runs, figures[cell.name]) for cell in cells))


def _rows(cell: Cell, runs: Sequence[Mapping[str, Any]], figures: Sequence[Figure]) -> list[dict[str, Any]]:
    mine = [r for r in runs if r["posterior"] == cell.called and r["flatness"] == label(cell.flatness)]
    rows = []
    for metric in METRICS:
        values = [run["metrics"][metric] for run in mine]
        ours = {
            "ours": fmean(values) if values else None,
            "ours_sd": stdev(values) if len(values) > 1 else None,
            "ours_seeds": len(values),
        }
        names = {"cell": cell.name, "network": cell.network, "method": cell.method, "twin": cell.twin}
        of_metric: Sequence[Figure | None] = [figure for figure in figures if figure.metric == metric] or [None]
        rows += [names | {"metric": metric} | ours | _published(figure, ours["ours"]) for figure in of_metric]
    return rows


def _published(figure: Figure | None, ours: float | None) -> dict[str, Any]:
    keys = ("mean", "sd", "seeds", "provenance", "source", "note")
    found = {"published" if key == "mean" else key: getattr(figure, key, None) for key in keys}
    known = figure is not None and ours is not None
    return found | {"difference": ours - figure.mean if known else None}  # type: ignore[operator,union-attr]


def remarks(plan: Plan) -> list[str]:
    """Sentences that say what is not comparable, for every reader of the table."""
    first = plan.cells[0]
    source = first.source.source if isinstance(first.source, FewTests) else first.source
    said = [
        "Published figures are others' claims. Those of the paper's own logs are of one seed each, with which a few "
        "tenths of a per cent are noise.",
        "The published runs train on all 50,000 images and look at the test part all along; here 5,000 of these are "
        "held out to choose by, and nothing was chosen on the test part, except that the cells have the published "
        "settings.",
    ]
    if lossy(source):
        said.append("The images read here are lossy JPEG copies: figures on them are not those of the original.")
    if plan.part != "test":
        said.append(f"Ours are measured on the {plan.part} part, the published figures on the test part.")
    pairs = zip(plan.published, plan.cells, strict=True)
    networks = dict.fromkeys((spelled(was.model), spelled(cell.model)) for was, cell in pairs)
    others = [f"{now} in place of {was}" for was, now in networks if now != was]
    if others:
        said.append(f"Other networks than the published ones: {', '.join(others)}.")
    said += _shorter(plan)
    if plan.examples is not None:
        said.append(
            f"At most {plan.examples:,} images in each part of the data instead of 45,000 to train on and 10,000 to "
            "test on: this shows that the table runs, and says nothing about any claim."
        )
    return said


def _shorter(plan: Plan) -> list[str]:
    was = sorted({cell.recipe.epochs for cell in plan.published}, reverse=True)
    now = sorted({cell.recipe.epochs for cell in plan.cells}, reverse=True)
    said = [] if was == now else [f"{_listed(now)} epochs in place of {_listed(was)}."]
    draws = plan.cells[0].draws, plan.published[0].draws
    return said if draws[0] == draws[1] else [*said, f"{draws[0]} networks a prediction in place of {draws[1]}."]


def _listed(numbers: Sequence[int]) -> str:
    return " and ".join(map(str, numbers))


def spelled(model: ModelFactory) -> str:
    """A network with all the arguments that its file gives."""
    spec = to_spec(model)
    inside = ", ".join(f"{name}={value}" for name, value in spec["init_args"].items())
    return f"{spec['class_path'].rpartition('.')[2]}({inside})"


def lossy(source: Source) -> bool:
    """Whether the first image of a source is stored as JPEG."""
    part = source.read().all
    if isinstance(part, Part):
        return False
    import numpy as np

    _, image = next(iter(part.encoded(np.array([0]))))
    return image[:2] == JPEG
