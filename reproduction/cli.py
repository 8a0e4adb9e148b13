"""Command `python -m reproduction`: run a table of the paper and compare it with the published results."""

from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from rich.table import Table

from flatbayes.cli.artifacts import console
from flatbayes.cli.command import run_command
from flatbayes.cli.options import SplitName
from flatbayes.cli.parsing import new_parser
from flatbayes.core.files import atomic_write, write_json
from flatbayes.core.spec import short_name
from flatbayes.experiments import claim_folder, execute_runs, write_results
from flatbayes.reporting import write_report
from flatbayes.training.config_groups import Precision
from reproduction import (
    REFERENCES,
    TableConfig,
    describe_differences,
    estimate_cost,
    list_tables,
    make_comparison_rows,
)
from reproduction.rendering import make_comparison_table, render_comparison_markdown
from reproduction.table_config import Scale, find_failing_cells

EXTENDABLE_OPTIONS = ("cell_pattern", "num_seeds")
"""Options that may differ from those of an earlier run in the same folder."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(make_parser(), run_table, arguments)


def make_parser() -> ArgumentParser:
    """The parser of the command.

    Its options are the fields of TableConfig, and `--num_jobs`, `--share_trainings`, `--dry_run`, `--out` and
    `--overwrite`.
    """
    parser = new_parser(
        "--table TABLE --out FOLDER [options]",
        "Run a table of the paper, and compare it with the published results. The same command resumes an "
        "interrupted\n"
        "run.",
        program="python -m reproduction",
    )
    parser.add_argument("--table", type=str, required=True, help=f"table: {', '.join(list_tables())}")
    parser.add_argument(
        "--scale",
        type=Scale,
        default="quick",
        help="full: the published settings, days on a GPU; quick: smaller networks and fewer epochs",
    )
    parser.add_argument(
        "--data_root",
        type=str | None,
        default=None,
        metavar="FOLDER",
        help="folder of the data set; by default its folder below the one in the variable FLATBAYES_DATA",
    )
    parser.add_argument(
        "--cell_pattern", type=str, default="*", metavar="GLOB", help="cells to run, such as 'wrn28x10-swag-*'"
    )
    parser.add_argument("--num_seeds", type=int, default=1, help="seeds per cell, from 0 on")
    parser.add_argument("--split", type=SplitName, default="test", help="split to evaluate on")
    parser.add_argument("--epochs", type=int | None, default=None, help="epochs, instead of those of the scale")
    parser.add_argument(
        "--max_examples",
        type=int | None,
        default=None,
        help="most examples in each split, for a trial on a CPU; a batch then has at most an eighth of them",
    )
    parser.add_argument("--num_draws", type=int | None, default=None, help="networks averaged in a prediction")
    parser.add_argument(
        "--precision", type=Precision | None, default=None, help="floating-point precision of training"
    )
    parser.add_argument("--channels_last", action="store_true", help="as in flatbayes fit")
    parser.add_argument("--compile", action="store_true", help="as in flatbayes fit")
    parser.add_argument(
        "--num_jobs", type=int | None, default=None, help="parallel processes; by default one per core"
    )
    parser.add_argument(
        "--share_trainings", type=bool, default=True, help="train networks that several cells need once"
    )
    parser.add_argument("--dry_run", action="store_true", help="list the cells and their cost, and stop")
    parser.add_argument("--out", type=Path | None, default=None, help="folder of the results")
    parser.add_argument("--overwrite", action="store_true", help="replace the content of the folder")
    return parser


def run_table(options: Namespace) -> None:
    """Run the cells of a table and write results, table and report; or print their cost only.

    Raises:
        ValueError: There is no output folder, or it has a run with other options.
        RuntimeError: Some or all runs failed.
    """
    config = TableConfig(**{field.name: getattr(options, field.name) for field in fields(TableConfig)})
    if options.dry_run:
        console.print(make_cost_table(config))
        return
    if options.out is None:
        raise ValueError("There is no output folder. Give --out FOLDER, or --dry_run to see what the cells cost.")
    folder = Path(options.out)
    failing_cells = find_failing_cells(config, folder / "runs")
    claim_folder(folder, config.to_dict(), EXTENDABLE_OPTIONS, overwrite=options.overwrite)
    failures = [f"{name}: {reason}" for name, reason in failing_cells.items()]
    runs = config.make_runs()
    cells = config.cells * config.num_seeds
    runnable = [run for run, cell in zip(runs, cells, strict=True) if cell.name not in failing_cells]
    try:
        failures += execute_runs(runnable, folder / "runs", options.num_jobs, share_trainings=options.share_trainings)
    except KeyboardInterrupt:
        console.print(f"[yellow]finished runs are kept in {folder}; the same command resumes the rest[/yellow]")
        raise
    run_results = [result for run in runs if (result := run.load_result(folder / "runs")) is not None]
    if not run_results:
        raise RuntimeError("No run finished:\n" + "\n".join(failures))
    comparison = write_results(folder, config.to_dict(), run_results, failures)
    remarks = describe_differences(config)
    results = comparison.to_dict() | {
        "published": [asdict(row) for row in make_comparison_rows(config.cells, run_results, config.table)],
        "remarks": remarks,
        "references": REFERENCES,
    }
    write_json(folder / "results.json", results)
    with atomic_write(folder / "table.md") as temporary:
        temporary.write_text(render_comparison_markdown(results), encoding="utf-8")
    console.print(make_comparison_table(results))
    for remark in remarks:
        console.print(f"* {remark}", highlight=False)
    console.print_text(f"results  {folder / 'results.json'}\ntable    {folder / 'table.md'}")
    if comparison.rows:
        console.print_text(f"report   {write_report(folder)}")
    if failures:
        raise RuntimeError("Some runs failed; the others are in the table:\n" + "\n".join(failures))


def make_cost_table(config: TableConfig) -> Table:
    """The cells of a table, and the cost of one run of each."""
    title = f"{config.table}, {config.scale}: {len(config.cells)} cells, {config.num_seeds} seed(s) each"
    table = Table(title=title)
    table.add_column("Cell", overflow="fold")
    table.add_column("Network", overflow="fold")
    for name in ("Weights", "Gradients", "Batch", "Copies of the weights", "GB"):
        table.add_column(name, justify="right")
    for cell in config.cells:
        cost = estimate_cost(cell)
        numbers = (
            f"{cost.num_params:,}",
            f"{cost.num_gradients:,.0f}",
            f"{cost.batch_size}",
            f"{cost.weight_copies:.1f}",
        )
        table.add_row(cell.name, short_name(cell.model), *numbers, f"{cost.gigabytes:.2f}")
    table.caption = "cost of one run; memory without activations, in float32"
    return table
