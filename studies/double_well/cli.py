"""Command `python -m studies.double_well`: sample and fit both posteriors of a double-well loss, and draw figures."""

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from flatbayes.cli.artifacts import console
from flatbayes.cli.command import run_command
from flatbayes.cli.options import add_output_options
from flatbayes.cli.parsing import new_parser
from studies.double_well.figures import describe_wells, draw_wells, wells_table
from studies.double_well.study import DoubleWellStudy, check_folder, save_results


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(make_parser(), run, arguments)


def make_parser() -> ArgumentParser:
    """The parser of the command."""
    parser = new_parser(
        "--out FOLDER [options]",
        "Sample and fit the Gibbs posterior and the sharpness-aware posterior of a loss with a sharp deep and a "
        "flat\nshallow well, and compare both with the exact densities: figures, numbers, and a summary.",
        program="python -m studies.double_well",
    )
    defaults = DoubleWellStudy()
    parser.add_argument(
        "--rho", type=float, default=defaults.rho, help="radius of the ball; up to 0.3 one SAM step is exact here"
    )
    parser.add_argument(
        "--inverse_temperature",
        type=float,
        default=defaults.inverse_temperature,
        help="λ, the weight of the loss against the prior; well above 7 the chains need more steps",
    )
    parser.add_argument("--seed", type=int, default=defaults.seed, help="seed of all random numbers")
    add_output_options(parser)
    return parser


def run(options: Namespace) -> None:
    """Run the study (about half a minute), then write figures and print the table and the summary."""
    folder = Path(options.out)
    study = DoubleWellStudy(rho=options.rho, inverse_temperature=options.inverse_temperature, seed=options.seed)
    check_folder(folder, overwrite=options.overwrite)
    results, draws = study.run()
    numbers = save_results(folder, results, draws)
    figures = draw_wells(folder)
    console.print(wells_table(results))
    console.print(describe_wells(results), highlight=False)
    shown = "\n".join(f"figure   {path}" for path in figures)
    console.print_text(f"numbers  {numbers}\n{shown}")
