"""Options that several verbs share, generated from type hints and docstrings."""

from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import ArgumentParser, Namespace
from torch import nn

from flatbayes.cli.aliases import list_names
from flatbayes.cli.class_signatures import DATA_ARGUMENTS
from flatbayes.cli.models import bind_artifact_model, bind_new_head
from flatbayes.core.names import format_count, format_suggestion
from flatbayes.core.spec import instantiate, to_spec
from flatbayes.data import DataSource, DataSplits, Standardize
from flatbayes.data.readers import set_task
from flatbayes.experiments import FitOptions
from flatbayes.experiments.folder_lock import check_folder
from flatbayes.flatness import SAM, Flatness
from flatbayes.likelihoods.families import FAMILIES, find_family
from flatbayes.models import MLP, ConvNet
from flatbayes.posteriors import Posterior
from flatbayes.prediction.metadata import METADATA_FILE
from flatbayes.prediction.placement import PredictionPrecision
from flatbayes.training import FINE_TUNING, TrainingConfig
from flatbayes.training.compatibility import check_compatibility
from flatbayes.training.distributed.launch import check_accelerator

DEFAULT_NUM_DRAWS = 30
SplitName = Literal["test", "val", "train"]


def add_data_options(parser: ArgumentParser) -> None:
    """Add the options of data and model, and `--config` for a file that sets them."""
    parser.add_argument("--config", action="config", help="YAML file with any of these options")
    parser.add_subclass_arguments(
        DataSource,
        "data",
        required=True,
        metavar="NAME",
        help="digits, cifar10, npz, table ..., a path to a file or folder, or the dotted path of a torch dataset; "
        "its options are --data.OPTION, shown by --data.help NAME",
    )
    parser.add_subclass_arguments(
        nn.Module,
        "model",
        skip=DATA_ARGUMENTS,
        instantiate=False,
        required=False,
        metavar="NAME",
        help=f"{', '.join(list_names('model'))}, or the dotted path of your own class or function; "
        "by default ConvNet for images and MLP for tables",
    )
    parser.add_argument(
        "--new_head",
        action="store_true",
        help="replace the last layer of a model of your own if its number of outputs differs from that of the data",
    )
    for axis in ("data", "model"):
        (parser.groups or {})[axis].title = axis


def add_training_options(parser: ArgumentParser) -> None:
    """Add the options of data, model, flatness and training, and `--config` for a file that sets them."""
    add_data_options(parser)
    parser.add_argument(
        "--flatness",
        type=Flatness,
        metavar="NAME",
        help=f"perturbation at which gradients are taken: {', '.join(list_names('flatness'))}",
    )
    parser.add_class_arguments(TrainingConfig, None)
    parser.set_defaults({"flatness": to_spec(SAM()), **_config_defaults()})
    (parser.groups or {})["TrainingConfig"].title = "training"


def add_pretrained_options(parser: ArgumentParser) -> None:
    """Add the options of a pretrained network."""
    parser.add_argument(
        "--init",
        type=str | list[str] | None,
        default=None,
        help="trained weights to start from, with other training defaults: a safetensors or torch.save file, or "
        "a run; a list for an ensemble",
    )
    parser.add_argument(
        "--likelihood",
        type=str | None,
        default=None,
        metavar="NAME",
        help="distribution of numbers: poisson, student_t, gamma ...; by default Gaussian",
    )
    parser.add_argument(
        "--freeze", type=list[str], default=[], help="name patterns of parameters that are not trained"
    )
    for name in ("mean", "std"):
        parser.add_argument(
            f"--input_{name}",
            type=list[float] | None,
            default=None,
            help=f"{name} of the inputs, to standardize them; by default of training",
        )


def fine_tuning_defaults() -> dict[str, Any]:
    """Defaults of the training options if `--init` is given."""
    spec = FINE_TUNING.to_dict()
    return {name: spec[name] for name in ("epochs", "min_epochs", "min_steps", "schedule", "collection")}


def list_init(options: Namespace) -> list[str] | None:
    """Trained weights of `--init` as a list; None if there are none."""
    return [options.init] if isinstance(options.init, str) else options.init


def make_fit_options(options: Namespace, dataset: DataSplits) -> FitOptions:
    """The options of a pretrained network."""
    return FitOptions(
        init=list_init(options),
        new_head=options.new_head and bool(options.init),
        freeze=options.freeze,
        transform=make_transform(options, dataset),
        likelihood=options.likelihood,
    )


def apply_likelihood(options: Namespace) -> None:
    """Read the targets as numbers where `--likelihood` names a distribution of numbers.

    Raises:
        ValueError: There is no distribution of this name.
    """
    if options.likelihood is None:
        return
    family = find_family(options.likelihood)
    if family is None:
        raise ValueError(
            f"Unknown distribution {options.likelihood!r} of --likelihood. "
            f"{format_suggestion(options.likelihood, FAMILIES)}Known: {', '.join(FAMILIES)}."
        )
    options.likelihood = family
    options.data = set_task(options.data, "regression")


def make_transform(options: Namespace, dataset: DataSplits) -> Standardize | None:
    """Standardization of inputs from `--input_mean` and `--input_std`, or None.

    Raises:
        ValueError: One of the two is missing, has the wrong length, or a standard deviation is not positive.
    """
    mean, std = options.input_mean, options.input_std
    if mean is None and std is None:
        return None
    size = dataset.input_shape[0]
    if mean is None or std is None or {len(mean), len(std)} != {size} or min(std) <= 0:
        raise ValueError(
            f"--input_mean and --input_std go together, {format_count(size, 'number')} each, the latter positive; "
            f"got {mean} and {std}."
        )
    shape = (size,) if len(dataset.input_shape) == 1 else (size, 1, 1)
    dtype = torch.float64 if len(shape) == 1 else torch.float32
    mean, std = (torch.tensor(values, dtype=dtype).view(shape) for values in (mean, std))
    return Standardize(mean=mean, std=std)


def add_run_options(parser: ArgumentParser) -> None:
    """Add the options of a run folder and of predictions with its posterior."""
    parser.add_argument("folder", type=Path, help="folder of a run")
    parser.add_argument("--num_draws", type=int, default=DEFAULT_NUM_DRAWS, help="networks to average")
    parser.add_argument("--batch_size", type=int, default=256, help="examples in a forward pass")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws")
    parser.add_argument(
        "--precision",
        type=PredictionPrecision | None,
        default=None,
        help="of forward passes: by default that of the weights; training, that of the training; or mixed precision",
    )
    parser.add_argument(
        "--compiled", action="store_true", help="compile the network: slow at first, worth it for much data"
    )
    add_model_path_options(parser)


def add_model_path_options(parser: ArgumentParser) -> None:
    """Add `--model` and `--trust`, which confirm what may be imported because a run folder names it."""
    parser.add_argument(
        "--model", type=str | None, default=None, help="dotted path of the model, if it is not part of flatbayes"
    )
    parser.add_argument(
        "--trust",
        type=str,
        nargs="*",
        default=[],
        metavar="MODULE",
        help="modules outside flatbayes from which the run may import its model and data",
    )


def add_data_path_option(parser: ArgumentParser) -> None:
    """Add `--data`, which confirms that the torch dataset of a run may be imported."""
    parser.add_argument(
        "--data",
        type=str | None,
        default=None,
        metavar="PATH",
        help="dotted path of the run's torch dataset, if its data are not a source of flatbayes",
    )
    add_changed_data_option(parser)


def add_changed_data_option(parser: ArgumentParser) -> None:
    """Add `--allow_changed_data`."""
    parser.add_argument(
        "--allow_changed_data",
        action="store_true",
        help="go on although the content of the data has changed since the training",
    )


def add_result_options(parser: ArgumentParser) -> None:
    """Add `--out` and `--overwrite` of a verb that writes its results to the folder of the run by default."""
    parser.add_argument(
        "--out", type=Path | None, default=None, help="folder to write to; by default that of the run"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace results of other settings")


def add_output_options(parser: ArgumentParser) -> None:
    """Add `--out` and `--overwrite`."""
    parser.add_argument("--out", type=Path, required=True, help="folder for all output")
    parser.add_argument("--overwrite", action="store_true", help="delete the run in the folder first")


def check_before_loading(options: Namespace) -> None:
    """Refuse options that are wrong whatever the data are, before the data are read, as numbers for a distribution.

    Raises:
        ValueError: A training option is invalid, the device is absent, posterior and flatness do not go together, or
            the output folder cannot be made.
    """
    apply_likelihood(options)
    config = make_config(options)
    check_accelerator(config)
    for posterior in options.get("posteriors", None) or [options.posterior]:
        if isinstance(posterior, Posterior):
            check_compatibility(posterior, options.flatness, config)
    check_folder(Path(options.out))


def make_config(options: Namespace) -> TrainingConfig:
    """Training configuration of the options."""
    return TrainingConfig(**{name: getattr(options, name) for name in TrainingConfig.__dataclass_fields__})


def make_model(options: Namespace, dataset: DataSplits) -> Any:
    """Factory of the network: the given model, that of `--init`, or the default for the shape of the data.

    Raises:
        ValueError: The inputs of the data are several tensors, which the command line does not take.
    """
    dataset.train.check_one_input()
    init, spec = options.get("init"), options.model
    if options.new_head and not (init and (spec is None or spec["class_path"].startswith("flatbayes.models."))):
        return bind_new_head(spec)
    if spec is not None:
        return instantiate(spec, bind=True)
    if init and (Path(init[0]) / METADATA_FILE).is_file():
        return bind_artifact_model(Path(init[0]), DATA_ARGUMENTS)
    return partial(ConvNet if len(dataset.input_shape) == 3 else MLP)


def _config_defaults() -> dict[str, Any]:
    options = TrainingConfig().to_dict()
    return {name: value for name, value in options.items() if isinstance(value, dict) and "class_path" in value}
