"""`flatbayes theory`: the two posteriors where both are known exactly, and what the methods find of them."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from flatbayes.cli.options import new_parser, output_options
from flatbayes.cli.runs import console
from flatbayes.comparison.wells import WellsStudy, claim, save
from flatbayes.reports.wells import draw_wells, wells_sentence, wells_table


def options() -> ArgumentParser:
    """Its options."""
    parser = new_parser(
        "theory --out FOLDER [options]",
        "Sample and fit the plain and the sharpness-aware posterior of a loss with a sharp deep and a flat shallow "
        "well,\nbeside the exact answers: figures, numbers, and what they say.",
    )
    usual = WellsStudy()
    parser.add_argument(
        "--rho", type=float, default=usual.rho, help="radius of the ball; up to 0.3 SAM is exact here"
    )
    parser.add_argument(
        "--inverse_temperature",
        type=float,
        default=usual.inverse_temperature,
        help="λ, the weight of the loss beside the prior; well above 7 the chains would need more steps",
    )
    parser.add_argument("--seed", type=int, default=usual.seed, help="decides everything random")
    output_options(parser)
    return parser


def run(options: Namespace) -> None:
    """Half a minute of sampling, then the figures, the table and a conclusion."""
    folder = Path(options.out)
    study = WellsStudy(rho=options.rho, inverse_temperature=options.inverse_temperature, seed=options.seed)
    claim(folder, overwrite=options.overwrite)
    results, draws = study.run()
    numbers = save(folder, results, draws)
    figures = draw_wells(folder)
    console.print(wells_table(results))
    console.print(wells_sentence(results), highlight=False)
    shown = "\n".join(f"figure   {path}" for path in figures)
    console.print(f"numbers  {numbers}\n{shown}", highlight=False, soft_wrap=True)
