"""`flatbayes evaluate`: measure a fitted posterior on held-out data."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from flatbayes.cli.artifacts import evaluate_run, load_on_device, load_source
from flatbayes.cli.options import SplitName, add_data_path_option, add_run_options
from flatbayes.cli.parsing import new_parser
from flatbayes.experiments.run_folder import RunFolder
from flatbayes.prediction import check_num_draws


def make_parser() -> ArgumentParser:
    """Its options."""
    parser = new_parser("evaluate FOLDER [options]", "Measure a fitted posterior on the data it was fitted for.")
    add_run_options(parser)
    add_data_path_option(parser)
    parser.add_argument("--split", type=SplitName, default="test", help="the part of the data")
    return parser


def run(options: Namespace) -> None:
    """A run's posterior on a part of its data."""
    check_num_draws(options.num_draws)
    folder = RunFolder.open(Path(options.folder))
    config = folder.read_config()
    fitted = load_on_device(folder.path, options.model)
    source = load_source(config, options.data)
    part = getattr(source.load(config["seed"]), options.split)
    evaluate_run(fitted, folder, part, options.split, options.num_draws, options.batch_size, options.seed)
