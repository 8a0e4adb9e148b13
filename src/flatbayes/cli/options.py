"""Options that several verbs share, made from the type hints and docstrings of what they build."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser, Namespace
from torch import nn

from flatbayes.cli.bounded import MODE
from flatbayes.cli.help import HelpFormatter
from flatbayes.cli.models import of_artefact, with_new_head
from flatbayes.cli.names import known
from flatbayes.core.spec import build, to_spec
from flatbayes.data import Dataset, Source
from flatbayes.flatness import SAM, Flatness
from flatbayes.models import MLP, ConvNet
from flatbayes.prediction.description import DESCRIPTION
from flatbayes.training import Recipe

KNOWN_TO_DATA = {"input_shape", "num_classes", "num_outputs"}
REGRESSION_CLIP = 1.0
PartName = Literal["test", "val", "train"]


def new_parser(usage: str, description: str) -> ArgumentParser:
    """The empty parser of a verb."""
    return ArgumentParser(
        usage=f"flatbayes {usage}",
        description=description,
        formatter_class=HelpFormatter,
        exit_on_error=False,
        parser_mode=MODE,
    )


def training_options(parser: ArgumentParser) -> None:
    """Data, model, flatness, recipe, and the file that any of them may come from."""
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
        help=f"{', '.join(known('model'))}, or the dotted path of your own class or function; "
        "by default ConvNet for images and MLP for tables",
    )
    parser.add_argument(
        "--new_head",
        action="store_true",
        help="replace the last layer of a model of your own if it has not as many outputs as the data needs",
    )
    parser.add_argument(
        "--flatness",
        type=Flatness,
        metavar="NAME",
        help=f"where gradients are taken: {', '.join(known('flatness'))}",
    )
    parser.add_class_arguments(Recipe, None)
    parser.set_defaults({"flatness": to_spec(SAM()), **_recipe_defaults()})
    for axis, title in {"data": "data", "model": "model", "Recipe": "training"}.items():
        (parser.groups or {})[axis].title = title


def run_options(parser: ArgumentParser) -> None:
    """Which run, and how its predictions are made."""
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


def output_options(parser: ArgumentParser) -> None:
    """Where everything goes."""
    parser.add_argument("--out", type=Path, required=True, help="folder for everything that comes of it")
    parser.add_argument("--overwrite", action="store_true", help="replace what the folder holds")


def chosen_recipe(options: Namespace, dataset: Dataset) -> Recipe:
    """The recipe that the options describe; a regression is clipped, since its loss has no bound to its slope."""
    recipe = Recipe(**{name: getattr(options, name) for name in Recipe.__dataclass_fields__})
    clipped = dataset.is_regression and recipe.clip_norm is None
    return replace(recipe, clip_norm=REGRESSION_CLIP) if clipped else recipe


def chosen_model(options: Namespace, dataset: Dataset) -> Any:
    """What builds the network: the one named, or the usual one for data of this shape."""
    init, spec = options.get("init"), options.model
    if options.new_head and not (init and (spec is None or spec["class_path"].startswith("flatbayes.models."))):
        return with_new_head(spec)
    if spec is not None:
        return build(spec, bind=True)
    if init and (Path(init[0]) / DESCRIPTION).is_file():
        return of_artefact(Path(init[0]), KNOWN_TO_DATA)
    return partial(ConvNet if len(dataset.input_shape) == 3 else MLP)


def _recipe_defaults() -> dict[str, Any]:
    spec: dict[str, Any] = to_spec(Recipe())["init_args"]
    return {key: value for key, value in spec.items() if isinstance(value, dict)}
