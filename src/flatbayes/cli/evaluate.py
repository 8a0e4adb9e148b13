"""`flatbayes evaluate`: measure a fitted posterior on held-out data."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from flatbayes.cli.options import PartName, new_parser, run_options
from flatbayes.cli.runs import load, measure
from flatbayes.core.spec import build
from flatbayes.data import Source
from flatbayes.prediction import check_num_draws
from flatbayes.training.run_folder import RunFolder


def options() -> ArgumentParser:
    """Its options."""
    parser = new_parser("evaluate FOLDER [options]", "Measure a fitted posterior on the data it was fitted for.")
    run_options(parser)
    parser.add_argument("--part", type=PartName, default="test", help="the part of the data")
    return parser


def run(options: Namespace) -> None:
    """A run's posterior on a part of its data."""
    check_num_draws(options.draws)
    folder = RunFolder.open(Path(options.folder))
    config = folder.config()
    fitted = load(folder.path, options.model)
    source: Source = build(config["data"], within="flatbayes.data")
    part = getattr(source.load(config["seed"]), options.part)
    measure(fitted, folder, part, options.part, options.draws, options.batch_size, options.seed)
