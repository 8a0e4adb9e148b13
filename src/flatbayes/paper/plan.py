"""A table at a scale: which cells, on which data, over how many seeds, and the runs that this makes."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from flatbayes.comparison import Task
from flatbayes.core.spec import build
from flatbayes.data import Dataset, Source
from flatbayes.paper.cells import Cell, cells_of, content, folder
from flatbayes.paper.few import few_of
from flatbayes.training import rehearse

Scale = Literal["quick", "full"]
STEPS = 8
"""Steps that an epoch has at least where examples are few."""


@dataclass(frozen=True)
class Plan:
    """What is run of a table.

    Attributes:
        table: Its name.
        scale: `full` for the published settings, `quick` for smaller networks and fewer epochs.
        root: Folder of the data; None looks where its source does.
        pattern: Of the names of cells.
        seeds: Number of seeds, from 0 on.
        part: The part of the data that is evaluated on.
        epochs: Instead of those of the scale.
        examples: Most examples in each part of the data; batches are then at most an eighth of them.
        draws: Instead of those of the scale.
        precision: Instead of that of the scale.
        channels_last: Store images with their channels innermost.
        compile: Compile networks.
    """

    table: str
    scale: Scale = "quick"
    root: str | None = None
    pattern: str = "*"
    seeds: int = 1
    part: str = "test"
    epochs: int | None = None
    examples: int | None = None
    draws: int | None = None
    precision: str | None = None
    channels_last: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        if self.scale not in get_args(Scale):
            raise ValueError(f"scale must be {' or '.join(get_args(Scale))}, got {self.scale!r}.")
        for name in ("seeds", "epochs", "draws"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        if self.examples is not None and self.examples < 2 * STEPS:
            raise ValueError(f"examples must be at least {2 * STEPS}, got {self.examples}.")

    @cached_property
    def published(self) -> list[Cell]:
        """The cells as their files have them."""
        return cells_of(self.table, self.pattern)

    @cached_property
    def cells(self) -> list[Cell]:
        """The cells as they are run."""
        return [self._changed(cell) for cell in self.published]

    def tasks(self) -> list[Task]:
        """Every run, the seeds outermost."""
        return [
            Task(
                source=cell.source,
                model=cell.model,
                posterior=cell.posterior,
                flatness=cell.flatness,
                recipe=cell.recipe,
                seed=seed,
                num_draws=cell.draws,
                part=self.part,
                called=cell.called,
            )
            for seed in range(self.seeds)
            for cell in self.cells
        ]

    def config(self) -> dict[str, Any]:
        """As plain data."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def _changed(self, cell: Cell) -> Cell:
        model, recipe, draws, source = cell.model, cell.recipe, cell.draws, cell.source
        if self.scale == "quick":
            quick = content(folder() / "quick.yaml")
            model = build(quick["models"][cell.network], bind=True)
            recipe, draws = replace(recipe, **quick["recipe"]), quick["draws"]
        if self.root is not None:
            source = replace(source, root=self.root)  # type: ignore[call-arg]  # those of the tables have one
        if self.examples is not None:
            source = few_of(source, self.examples)
            recipe = replace(recipe, batch_size=min(recipe.batch_size, max(1, self.examples // STEPS)))
        changes: dict[str, Any] = {name: getattr(self, name) for name in ("epochs", "precision")}
        changes = {name: value for name, value in changes.items() if value is not None}
        changes |= {name: True for name in ("channels_last", "compile") if getattr(self, name)}
        return replace(
            cell,
            model=model,
            source=source,
            recipe=replace(recipe, **changes),
            draws=draws if self.draws is None else self.draws,
        )


def unfit(plan: Plan, kept: Path) -> Mapping[str, str]:
    """Cells that cannot end well, and why, found in a second each; those that are done are not looked at.

    Args:
        plan: What is to be run.
        kept: Folder of finished runs.

    Raises:
        FileNotFoundError: The data are not there.
        ValueError: They are not what the table is about.
    """
    found: dict[str, str] = {}

    @cache
    def data(source: Source) -> Dataset:
        return source.load(0)

    tasks = [task for task in plan.tasks() if task.seed == 0]
    for cell, task in zip(plan.cells, tasks, strict=True):
        if task.kept(kept) is not None:
            continue
        dataset = data(task.source)
        try:
            rehearse(task.model, dataset, task.posterior, task.flatness, task.recipe)
        except (RuntimeError, ValueError) as error:
            found[cell.name] = str(error)
    return found
