"""The options of every verb, made from the type hints and docstrings of what they build."""

from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser
from torch import nn

from flatbayes.cli.help import HelpFormatter
from flatbayes.core.spec import to_spec
from flatbayes.data import Source
from flatbayes.flatness import SAM, Flatness
from flatbayes.posteriors import SWAG, Ensemble, MCDropout, Posterior
from flatbayes.training import Recipe

POSTERIORS = (MCDropout(rate=0.1), SWAG(rank=0), SWAG(), Ensemble())

OVERVIEW = """Sharpness-aware Bayesian posteriors for any PyTorch model.

Compare them with their plain twins on your data, fit one, and predict with it.

  flatbayes compare --data digits --out runs/demo
  flatbayes fit --data images/ --model PreResNet --posterior SWAG --flatness SAM --flatness.rho 0.1 --out runs/x
  flatbayes evaluate runs/x
  flatbayes predict runs/x --input new.parquet --output predictions.parquet
"""

KNOWN_TO_DATA = {"input_shape", "num_classes"}
PartName = Literal["test", "val", "train"]


def build_parser() -> ArgumentParser:
    """The parser of `flatbayes`, its verbs as subcommands."""
    parser = ArgumentParser(
        prog="flatbayes",
        usage="flatbayes VERB ... (flatbayes VERB --help for its options)",
        description=OVERVIEW,
        formatter_class=HelpFormatter,
        exit_on_error=False,
    )
    parser.add_argument("--version", action="version", version=version("flatbayes"))
    verbs = parser.add_subcommands(title="verbs", metavar="VERB", required=True)
    verbs.add_subcommand("compare", _compare(), help="flat against plain: several posteriors, over seeds")
    verbs.add_subcommand("fit", _fit(), help="train one posterior and keep it")
    verbs.add_subcommand("evaluate", _evaluate(), help="measure a fitted posterior on held-out data")
    verbs.add_subcommand("predict", _predict(), help="predict for new inputs, with uncertainty")
    verbs.add_subcommand("report", _report(), help="write the HTML report of a comparison again")
    return parser


def _verb(usage: str, description: str) -> ArgumentParser:
    return ArgumentParser(
        usage=f"flatbayes {usage}",
        description=description,
        formatter_class=HelpFormatter,
        exit_on_error=False,
    )


def _training_options(parser: ArgumentParser) -> None:
    parser.add_argument("--config", action="config", help="YAML file with any of these options")
    parser.add_subclass_arguments(
        Source,
        "data",
        required=True,
        metavar="NAME",
        help="digits, cifar10, npz, table ... or a path to a file or folder; its options are --data.OPTION, shown by "
        "--data.help NAME",
    )
    parser.add_subclass_arguments(
        nn.Module,
        "model",
        skip=KNOWN_TO_DATA,
        instantiate=False,
        required=False,
        metavar="NAME",
        help="ConvNet, MLP, PreResNet, WideResNet, or the dotted path of your own class or function; "
        "by default ConvNet for images and MLP for tables",
    )
    parser.add_argument(
        "--flatness",
        type=Flatness,
        metavar="NAME",
        help="where gradients are taken: SAM, ASAM, FisherSAM, Random, Plain",
    )
    parser.add_class_arguments(Recipe, None)
    parser.set_defaults({"flatness": to_spec(SAM()), **_recipe_defaults()})
    for axis, title in {"data": "data", "model": "model", "Recipe": "training"}.items():
        (parser.groups or {})[axis].title = title


def _compare() -> ArgumentParser:
    parser = _verb(
        "compare --data DATA --out FOLDER [options]",
        "Fit every posterior plainly and flatly over seeds, and report who wins.",
    )
    _training_options(parser)
    parser.add_argument("--posteriors", type=list[Posterior], help="those to compare, such as [MCDropout, SWAG]")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds; twins share theirs")
    parser.add_argument("--draws", type=int, default=30, help="networks averaged in a prediction")
    parser.add_argument("--part", type=PartName, default="test", help="evaluate on the test or the validation part")
    parser.add_argument("--jobs", type=int | None, default=None, help="processes; by default one per core")
    _output_options(parser)
    parser.set_defaults({"posteriors": to_spec(POSTERIORS)})
    return parser


def _fit() -> ArgumentParser:
    parser = _verb(
        "fit --data DATA --out FOLDER [options]",
        "Fit one posterior, measure it on the validation part, and keep it.",
    )
    _training_options(parser)
    parser.add_argument("--posterior", type=Posterior, help="what is fitted: SWAG, MCDropout, Ensemble, Point")
    parser.add_argument("--seed", type=int, default=0, help="decides everything random")
    parser.add_argument("--draws", type=int, default=30, help="networks averaged in the evaluation")
    _output_options(parser)
    parser.set_defaults({"posterior": to_spec(SWAG())})
    return parser


def _evaluate() -> ArgumentParser:
    parser = _verb("evaluate FOLDER [options]", "Measure a fitted posterior on the data it was fitted for.")
    _run_options(parser)
    parser.add_argument("--part", type=PartName, default="test", help="the part of the data")
    return parser


def _predict() -> ArgumentParser:
    parser = _verb(
        "predict FOLDER --input FILE --output FILE [options]",
        "Predict class probabilities and uncertainties for new inputs.",
    )
    _run_options(parser)
    parser.add_argument("--input", type=Path, required=True, help="parquet, CSV or npz file, or folder of images")
    parser.add_argument("--output", type=Path, required=True, help="parquet, CSV or npz file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the output file")
    return parser


def _report() -> ArgumentParser:
    parser = _verb("report FOLDER", "Write report.html from the results.json of a comparison.")
    parser.add_argument("folder", type=Path, help="folder of a comparison")
    return parser


def _run_options(parser: ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="folder of a run")
    parser.add_argument("--draws", type=int, default=30, help="networks to average")
    parser.add_argument("--batch_size", type=int, default=256, help="examples in a forward pass")
    parser.add_argument("--seed", type=int, default=0, help="decides which networks are drawn")
    parser.add_argument(
        "--model",
        type=str | None,
        default=None,
        help="dotted path of the model, if it is not part of flatbayes",
    )


def _output_options(parser: ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, help="folder for everything that comes of it")
    parser.add_argument("--overwrite", action="store_true", help="replace what the folder holds")


def _recipe_defaults() -> dict[str, Any]:
    spec: dict[str, Any] = to_spec(Recipe())["init_args"]
    return {key: value for key, value in spec.items() if isinstance(value, dict)}
