"""Configuration of a table: cells, data, scale and seeds, and the runs that follow from them."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from flatbayes.core.randomness import Stream, make_generator
from flatbayes.core.spec import instantiate
from flatbayes.data import CIFAR10, DataSource, DataSplits
from flatbayes.data.source import RawSplits
from flatbayes.experiments import ExperimentRun
from flatbayes.training import dry_run
from reproduction.configs import TABLES_DIR, TableCell, load_cells, load_yaml

Scale = Literal["quick", "full"]
MIN_STEPS_PER_EPOCH = 8
"""Fewest steps in an epoch if `max_examples` limits the data."""


@dataclass(frozen=True)
class TableConfig:
    """Which cells of a table are run, on which data and at which scale.

    Attributes:
        table: Name of the table.
        scale: `full` for the published settings, `quick` for smaller networks and fewer epochs.
        data_root: Folder of the data; None for the default folder of the source.
        cell_pattern: Shell pattern of cell names.
        num_seeds: Number of seeds, from 0 on.
        split: Split that is evaluated on.
        epochs: Number of epochs; None for that of the scale.
        max_examples: Most examples in each split; a batch then has at most an eighth of them.
        num_draws: Networks averaged in a prediction; None for the number of the scale.
        precision: Floating-point precision of training; None for that of the scale.
        channels_last: Store images with their channels innermost.
        compile: Compile networks.

    Raises:
        ValueError: An option is out of range.
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
        """The cells with their published settings."""
        return load_cells(self.table, self.cell_pattern)

    @cached_property
    def cells(self) -> list[TableCell]:
        """The cells with the overrides of scale and options."""
        return [self._apply_overrides(cell) for cell in self.published_cells]

    def make_runs(self) -> list[ExperimentRun]:
        """All runs: every cell with seed 0, then with seed 1, and so on."""
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
        """Options as plain data."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def _apply_overrides(self, cell: TableCell) -> TableCell:
        model, config, num_draws, source = cell.model, cell.config, cell.num_draws, cell.source
        if self.scale == "quick":
            quick = load_yaml(TABLES_DIR / "quick.yaml")
            model = instantiate(quick["models"][cell.network], bind=True)
            config, num_draws = config.with_options(**quick["config"]), quick["num_draws"]
        if self.data_root is not None:
            source = replace(source, root=self.data_root)  # type: ignore[call-arg]  # sources of tables have it
        if self.max_examples is not None:
            source = subset_source(source, self.max_examples)
            config = replace(config, batch_size=min(config.batch_size, self.max_examples // MIN_STEPS_PER_EPOCH))
        changes: dict[str, Any] = {"epochs": self.epochs, "precision.mode": self.precision}
        changes = {name: value for name, value in changes.items() if value is not None}
        changes |= {f"precision.{name}": True for name in ("channels_last", "compile") if getattr(self, name)}
        return replace(
            cell,
            model=model,
            source=source,
            config=config.with_options(**changes),
            num_draws=num_draws if self.num_draws is None else self.num_draws,
        )


def find_failing_cells(config: TableConfig, run_dir: Path) -> Mapping[str, str]:
    """Cells whose dry run fails, with the error message; cells with a finished run are skipped.

    Args:
        config: The table and its cells.
        run_dir: Folder of finished runs.

    Raises:
        FileNotFoundError: There are no data.
        ValueError: The data cannot be read as those of the table.
    """
    reasons: dict[str, str] = {}

    @cache
    def load_splits(source: DataSource) -> DataSplits:
        return source.load(0)

    first_runs = config.make_runs()[: len(config.cells)]
    for cell, run in zip(config.cells, first_runs, strict=True):
        if run.load_result(run_dir) is not None:
            continue
        data = load_splits(run.source)
        try:
            dry_run(run.model, data, run.posterior, run.flatness, run.config)
        except (RuntimeError, ValueError) as error:
            reasons[cell.name] = str(error)
    return reasons


@dataclass(frozen=True, kw_only=True)
class SourceSubset(DataSource):
    """A source with a random subset of its test split, the same for every seed.

    Attributes:
        source: The source of the examples; split and augmentation are options of this class.
        max_test_examples: Number of test examples to keep, if the source has a test split of its own.
    """

    source: DataSource = CIFAR10()
    max_test_examples: int = 1000

    def read(self) -> RawSplits:
        """Read the source, and keep a random subset of its test split."""
        raw = self.source.read()
        if raw.test is None or len(raw.test) <= self.max_test_examples:
            return raw
        order = torch.randperm(len(raw.test), generator=make_generator(Stream.REPRODUCTION, self.split_seed))
        return replace(raw, test=raw.test.take(order[: self.max_test_examples].sort().values))


def subset_source(source: DataSource, max_examples: int) -> SourceSubset:
    """A source with at most `max_examples` examples in each split."""
    held_out = min(max_examples, source.val_size) if source.val_size >= 1 else source.val_size
    options = {field.name: getattr(source, field.name) for field in fields(DataSource)}
    return SourceSubset(
        source=source, max_test_examples=max_examples, **{**options, "train_size": max_examples, "val_size": held_out}
    )
