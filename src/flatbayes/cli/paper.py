"""`flatbayes paper`: the tables of the paper, ours beside the published figures."""

from dataclasses import fields
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from rich.table import Table

from flatbayes.cli.options import PartName, new_parser
from flatbayes.cli.runs import console
from flatbayes.comparison import claim, execute, write_results
from flatbayes.core.files import replacing, write_json
from flatbayes.core.spec import label
from flatbayes.paper import SOURCES, Plan, beside, cost_of, remarks, table_names
from flatbayes.paper.plan import Scale, unfit
from flatbayes.reports import published_markdown, published_table, write_report
from flatbayes.training.recipe import Precision

EXTENDABLE = ("pattern", "seeds")


def options() -> ArgumentParser:
    """Its options."""
    parser = new_parser(
        "paper --table TABLE --out FOLDER [options]",
        "Run a table of the paper, and show ours beside the published figures. The same command goes on where it was "
        "stopped.",
    )
    parser.add_argument("--table", type=str, required=True, help=f"which: {', '.join(table_names())}")
    parser.add_argument(
        "--scale",
        type=Scale,
        default="quick",
        help="full: the published settings, days on a GPU; quick: smaller networks and fewer epochs",
    )
    parser.add_argument(
        "--data",
        type=str | None,
        default=None,
        metavar="FOLDER",
        help="folder of the data; by default that in the folder which FLATBAYES_DATA names",
    )
    parser.add_argument("--cells", type=str, default="*", metavar="GLOB", help="only some, such as 'wrn28x10-swag-*'")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds; twins share theirs")
    parser.add_argument("--part", type=PartName, default="test", help="evaluate on the test or the validation part")
    parser.add_argument("--epochs", type=int | None, default=None, help="instead of those of the scale")
    parser.add_argument(
        "--examples",
        type=int | None,
        default=None,
        help="most examples in each part of the data, for a trial on a CPU; batches are then an eighth at most",
    )
    parser.add_argument("--draws", type=int | None, default=None, help="networks averaged in a prediction")
    parser.add_argument("--precision", type=Precision | None, default=None, help="numbers of training")
    parser.add_argument("--channels_last", action="store_true", help="as in fit")
    parser.add_argument("--compile", action="store_true", help="as in fit")
    parser.add_argument("--jobs", type=int | None, default=None, help="processes; by default one per core")
    parser.add_argument("--dry_run", action="store_true", help="list the cells and what each costs, and stop")
    parser.add_argument("--out", type=Path | None, default=None, help="folder for everything that comes of it")
    parser.add_argument("--overwrite", action="store_true", help="replace what the folder holds")
    return parser


def run(options: Namespace) -> None:
    """The table, or what it would cost."""
    named = {"root": options.data, "pattern": options.cells}
    plan = Plan(**named, **{f.name: getattr(options, f.name) for f in fields(Plan) if f.name not in named})
    if options.dry_run:
        console.print(costs(plan))
        return
    if options.out is None:
        raise ValueError("Where to? Give --out FOLDER, or --dry_run to see what the cells cost.")
    folder = Path(options.out)
    bad = unfit(plan, folder / "runs")
    claim(folder, plan.config(), EXTENDABLE, overwrite=options.overwrite)
    failures = [f"{name}: {reason}" for name, reason in bad.items()]
    tasks = plan.tasks()
    fit_ones = [task for task, cell in zip(tasks, plan.cells * plan.seeds, strict=True) if cell.name not in bad]
    try:
        failures += execute(fit_ones, folder / "runs", options.jobs)
    except KeyboardInterrupt:
        console.print(f"[yellow]finished runs are kept in {folder}; the same command goes on with them[/yellow]")
        raise
    runs = [found for found in (task.kept(folder / "runs") for task in tasks) if found is not None]
    if not runs:
        raise RuntimeError("No run came to an end:\n" + "\n".join(failures))
    results = write_results(folder, plan.config(), runs, failures)
    results |= {"published": beside(plan.cells, runs, plan.table), "remarks": remarks(plan), "sources": SOURCES}
    write_json(folder / "results.json", results)
    with replacing(folder / "table.md") as temporary:
        temporary.write_text(published_markdown(results), encoding="utf-8")
    console.print(published_table(results))
    for remark in results["remarks"]:
        console.print(f"* {remark}", highlight=False)
    console.print(
        f"results  {folder / 'results.json'}\ntable    {folder / 'table.md'}", highlight=False, soft_wrap=True
    )
    if results["summary"]:
        console.print(f"report   {write_report(folder)}", highlight=False, soft_wrap=True)
    if failures:
        raise RuntimeError("Some runs failed, the others are in the table:\n" + "\n".join(failures))


def costs(plan: Plan) -> Table:
    """The cells, and what one run of each costs."""
    table = Table(title=f"{plan.table}, {plan.scale}: {len(plan.cells)} cells, each over {plan.seeds} seed(s)")
    table.add_column("Cell", overflow="fold")
    table.add_column("Network", overflow="fold")
    for name in ("Weights", "Gradients", "Batch", "Copies of the weights", "GB"):
        table.add_column(name, justify="right")
    for cell in plan.cells:
        cost = cost_of(cell)
        numbers = (f"{cost.params:,}", f"{cost.gradients:,.0f}", f"{cost.batch}", f"{cost.copies:.1f}")
        table.add_row(cell.name, label(cell.model), *numbers, f"{cost.gigabytes:.2f}")
    table.caption = "of one run; in memory beside activations, in float32"
    return table
