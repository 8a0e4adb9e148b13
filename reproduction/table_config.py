"""A table at a scale: which cells, on which data, over how many seeds, and the runs that this makes."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from flatbayes.core.spec import instantiate
from flatbayes.data import DataSource, DataSplits
from flatbayes.experiments import ExperimentRun
from flatbayes.training import dry_run
from reproduction.configs import TABLES_DIR, TableCell, load_cells, load_yaml
from reproduction.subset import subset_source

Scale = Literal["quick", "full"]
MIN_STEPS_PER_EPOCH = 8
"""Steps that an epoch has at least where examples are few."""


@dataclass(frozen=True)
class TableConfig:
    """What is run of a table.

    Attributes:
        table: Its name.
        scale: `full` for the published settings, `quick` for smaller networks and fewer epochs.
        data_root: Folder of the data; None looks where its source does.
        cell_pattern: Of the names of cells.
        num_seeds: Number of seeds, from 0 on.
        split: The part of the data that is evaluated on.
        epochs: Instead of those of the scale.
        max_examples: Most examples in each part of the data; batches are then at most an eighth of them.
        num_draws: Instead of those of the scale.
        precision: Instead of that of the scale.
        channels_last: Store images with their channels innermost.
        compile: Compile networks.
    """

    table: str
    scale: Scale = "quick"
    data_root: str | None = None
    cell_pattern: str = "*"
    num_seeds: int = 1
    split: str = "test"
    epochs: int | None = None
    max_examples: int | None = None
    num_draws: int | None = None
    precision: str | None = None
    channels_last: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        if self.scale not in get_args(Scale):
            raise ValueError(f"scale must be {' or '.join(get_args(Scale))}, got {self.scale!r}.")
        for name in ("num_seeds", "epochs", "num_draws"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        if self.max_examples is not None and self.max_examples < 2 * MIN_STEPS_PER_EPOCH:
            raise ValueError(f"max_examples must be at least {2 * MIN_STEPS_PER_EPOCH}, got {self.max_examples}.")

    @cached_property
    def published_cells(self) -> list[TableCell]:
        """The cells as their files have them."""
        return load_cells(self.table, self.cell_pattern)

    @cached_property
    def cells(self) -> list[TableCell]:
        """The cells as they are run."""
        return [self._apply_overrides(cell) for cell in self.published_cells]

    def make_runs(self) -> list[ExperimentRun]:
        """Every run, the seeds outermost."""
        return [
            ExperimentRun(
                source=cell.source,
                model=cell.model,
                posterior=cell.posterior,
                flatness=cell.flatness,
                config=cell.config,
                seed=seed,
                num_draws=cell.num_draws,
                split=self.split,
                posterior_name=cell.posterior_name,
            )
            for seed in range(self.num_seeds)
            for cell in self.cells
        ]

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def _apply_overrides(self, cell: TableCell) -> TableCell:
        model, recipe, draws, source = cell.model, cell.config, cell.num_draws, cell.source
        if self.scale == "quick":
            quick = load_yaml(TABLES_DIR / "quick.yaml")
            model = instantiate(quick["models"][cell.network], bind=True)
            recipe, draws = recipe.with_options(**quick["config"]), quick["num_draws"]
        if self.data_root is not None:
            source = replace(source, root=self.data_root)  # type: ignore[call-arg]  # those of the tables have one
        if self.max_examples is not None:
            source = subset_source(source, self.max_examples)
            recipe = replace(
                recipe, batch_size=min(recipe.batch_size, max(1, self.max_examples // MIN_STEPS_PER_EPOCH))
            )
        changes: dict[str, Any] = {"epochs": self.epochs, "precision.mode": self.precision}
        changes = {name: value for name, value in changes.items() if value is not None}
        changes |= {f"precision.{name}": True for name in ("channels_last", "compile") if getattr(self, name)}
        return replace(
            cell,
            model=model,
            source=source,
            config=recipe.with_options(**changes),
            num_draws=draws if self.num_draws is None else self.num_draws,
        )


def find_failing_cells(config: TableConfig, run_dir: Path) -> Mapping[str, str]:
    """Cells that cannot end well, and why, found in a second each; those that are done are not looked at.

    Args:
        config: What is to be run.
        run_dir: Folder of finished runs.

    Raises:
        FileNotFoundError: The data are not there.
        ValueError: They are not what the table is about.
    """
    found: dict[str, str] = {}

    @cache
    def load_splits(source: DataSource) -> DataSplits:
        return source.load(0)

    tasks = [task for task in config.make_runs() if task.seed == 0]
    for cell, task in zip(config.cells, tasks, strict=True):
        if task.load_result(run_dir) is not None:
            continue
        dataset = load_splits(task.source)
        try:
            dry_run(task.model, dataset, task.posterior, task.flatness, task.config)
        except (RuntimeError, ValueError) as error:
            found[cell.name] = str(error)
    return found
