"""Verb `predict`: predictions with uncertainty for new inputs."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import ArgumentParser, Namespace
from numpy.typing import NDArray
from rich.progress import Progress

from flatbayes.cli.artifacts import check_output_file, console, load_on_device
from flatbayes.cli.models import read_data_spec
from flatbayes.cli.options import DEFAULT_NUM_DRAWS, add_run_options
from flatbayes.cli.parsing import new_parser
from flatbayes.cli.thresholds import Thresholds
from flatbayes.core.console import PlainConsole
from flatbayes.core.names import format_count
from flatbayes.data import InputReader, PredictionWriter
from flatbayes.data.csv_files import get_table_suffix
from flatbayes.data.csv_format import CsvFormat
from flatbayes.data.prediction_writer import to_text
from flatbayes.decisions import decide
from flatbayes.likelihoods import CategoricalPredictive, Predictive
from flatbayes.prediction import FittedPosterior, check_num_draws
from flatbayes.prediction.inputs import count_chunk_examples
from flatbayes.prediction.labelled import infer_task

OUTSIDE_COLUMN = "outside_training"
"""Column with whether an input is unlike all training inputs, where the artefact has statistics of these."""
BYTES_PER_FEATURE, BYTES_PER_PIXEL = 32, 2
"""Memory of an input: a feature is held in a table and as float64, with a copy of each; a pixel has one copy."""


def make_parser() -> ArgumentParser:
    """Options of `predict`."""
    parser = new_parser(
        "predict FOLDER --input FILE --output FILE [options]",
        "Predict classes or numbers, with uncertainties, for new inputs, a chunk at a time and in their order.",
    )
    add_run_options(parser)
    parser.add_argument(
        "--input", type=Path, required=True, help="parquet, CSV or npz file, image, or folder of images"
    )
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        help="parquet, CSV or npz file to write; without a suffix it gets that of the input (.csv for a folder)",
    )
    parser.add_argument(
        "--keep_columns", type=list[str], default=[], help="columns (or arrays) of the input to pass on, such as [id]"
    )
    add_input_options(parser)
    parser.add_argument(
        "--conformal",
        type=float | None,
        default=None,
        help="add sets of classes, or intervals, with this coverage, from the thresholds of flatbayes calibrate",
    )
    parser.add_argument(
        "--abstain_below", type=float | None, default=None, help="mark predictions of a lower confidence as abstained"
    )
    parser.add_argument(
        "--risk",
        type=float | None,
        default=None,
        help="mark predictions as abstained by the threshold that flatbayes calibrate computed for this error rate",
    )
    add_costs_option(parser, "add the decision of least expected cost")
    parser.add_argument(
        "--escape_formulas",
        action="store_true",
        help="in CSV, put ' before texts that a spreadsheet would run as formulas: those that begin with = + - @",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the output file")
    return parser


def add_costs_option(parser: ArgumentParser, purpose: str) -> None:
    """Add the option of the costs of decisions."""
    parser.add_argument(
        "--costs",
        type=list[list[float]] | None,
        default=None,
        help=f"{purpose}: a row of costs for each true class, a column for each decision, such as [[0,1],[20,0]]",
    )


def add_input_options(parser: ArgumentParser) -> None:
    """Add the options of how a file of inputs is read."""
    parser.add_argument(
        "--image_column",
        type=str | None,
        default=None,
        help="column of a parquet file that holds the images; by default img, or the only one that may",
    )
    for name, example in {"encoding": "cp1252", "separator": "semicolon", "decimal": ","}.items():
        parser.add_argument(
            f"--{name}",
            type=str | None,
            default=None,
            help=f"{name} of a CSV file, such as {example}; by default detected, else that of the training data",
        )


def run(options: Namespace) -> None:
    """Predict for every row of a file or image of a folder, and write the predictions to a file."""
    source, target = Path(options.input), Path(options.output)
    if str(target) == "-":
        raise ValueError("Predictions are written to a file, not to standard output: --output predictions.csv.")
    if not target.suffix:
        suffix = get_table_suffix(source)
        target = target.with_suffix(suffix if suffix in (".parquet", ".npz") else ".csv")
    check_output_file(target, overwrite=options.overwrite, option="--output")
    check_num_draws(options.num_draws)
    writer = PredictionWriter(target, escape_formulas=options.escape_formulas)
    fitted = load_on_device(Path(options.folder), options.model, options.trust)
    thresholds = _load_thresholds(options, fitted)
    num_networks = len(fitted.sample_ids(options.num_draws, options.seed))
    predictive_bytes = fitted.likelihood.count_predictive_bytes(num_networks)
    if infer_task(fitted.likelihood) == "dense":  # of a position
        predictive_bytes *= math.prod(fitted.info.get("input_shape") or [1])
    group_column = None if thresholds is None or options.conformal is None else thresholds.group_column
    is_added = group_column is not None and group_column not in options.keep_columns
    if is_added:
        options.keep_columns = [*options.keep_columns, group_column]
    inputs = make_input_reader(fitted.info, source, options, predictive_bytes)
    count, total = 0, inputs.count_inputs()
    progress = Progress(console=PlainConsole(stderr=True), transient=True)
    with writer, progress:
        task = progress.add_task("predicting", total=total)
        for kept_columns, examples in inputs.iter_chunks():
            predictive = fitted.predict(
                examples,
                options.num_draws,
                batch_size=options.batch_size,
                seed=options.seed,
                precision=options.precision,
                compiled=options.compiled,
                abstain_below=options.abstain_below,
            )
            names = get_output_names(fitted.info, predictive)
            columns = dict(predictive.columns(names))
            if thresholds is not None and options.conformal is not None:
                groups = None if group_column is None else to_text(kept_columns[group_column])
                region = thresholds.get_conformal(options.conformal).predict(predictive, groups)
                columns |= region.columns(names)
            if options.costs is not None:
                columns["decision"] = name_decisions(predictive, options.costs, names)
            if is_added:
                kept_columns = {name: values for name, values in kept_columns.items() if name != group_column}
            distance = fitted.measure_input_distance(examples)
            if distance is not None:
                columns[OUTSIDE_COLUMN] = distance.is_outside.numpy()
            duplicates = kept_columns.keys() & columns.keys()
            if duplicates:
                raise ValueError(
                    f"Predictions also have columns {sorted(duplicates)}: rename those of {source} to keep them."
                )
            writer.write({**kept_columns, **columns})
            count += len(examples)
            progress.update(task, completed=count)
    console.print_text(f"{format_count(count, 'prediction')} in {target}")
    if thresholds is not None:
        lines = [] if options.conformal is None else [thresholds.get_conformal(options.conformal).guarantee()]
        lines += [] if options.risk is None else [thresholds.get_abstention(options.risk).describe()]
        console.print_text("\n".join(lines))


def _load_thresholds(options: Namespace, fitted: FittedPosterior) -> Thresholds | None:
    """Thresholds of the run, if an option needs them; options of the draws become those that they hold for."""
    if options.risk is not None and options.abstain_below is not None:
        raise ValueError("--risk and --abstain_below both say when to abstain. Give one of them.")
    if options.conformal is None and options.risk is None:
        return None
    thresholds = Thresholds.load(Path(options.folder), fitted)
    thresholds.check_draws(options.num_draws, options.seed, (DEFAULT_NUM_DRAWS, 0))
    options.num_draws, options.seed = thresholds.num_draws, thresholds.seed
    if options.conformal is not None:
        thresholds.get_conformal(options.conformal)
    if options.risk is not None:
        options.abstain_below = thresholds.get_abstention(options.risk).threshold
    return thresholds


def make_input_reader(
    info: Mapping[str, Any], source: Path, options: Namespace, predictive_bytes: int, labels: str | None = None
) -> InputReader:
    """Reader of the input file or folder, for the input shape and feature names in the artefact.

    `predictive_bytes` is the size of the prediction for an input; `labels` names an array with a row for each input.

    Raises:
        ValueError: The artefact has no input shape or feature names.
    """
    shape: Any = info.get("input_shape")
    names: Any = info.get("feature_names")
    is_valid = (
        isinstance(shape, list) and len(shape) in (1, 2, 3) and all(type(size) is int and size > 0 for size in shape)
    )
    if not is_valid or not isinstance(names, list) or (len(shape) == 1 and names and len(names) != shape[0]):
        raise ValueError(
            f"{options.folder} has no description of its inputs, because it was fitted to a loader. "
            "Predict in Python: FittedPosterior.load(folder, model).predict(inputs)."
        )
    if len(shape) == 1 and not names and source.suffix.lower() != ".npz":
        raise ValueError(
            f"{options.folder} does not say which columns of {source} are its features. Give a .npz file."
        )
    if len(shape) == 2 and source.suffix.lower() != ".npz":
        raise ValueError(f"{options.folder} takes sequences of the shape {tuple(shape)}. Give a .npz file with them.")
    input_bytes = math.prod(shape) * (BYTES_PER_FEATURE if len(shape) == 1 else BYTES_PER_PIXEL)
    resize, crop = read_image_options(Path(options.folder))
    return InputReader(
        path=source,
        input_shape=tuple(shape),
        feature_names=tuple(map(str, names)),
        keep_columns=tuple(options.keep_columns),
        labels=labels,
        image=options.image_column,
        resize=resize,
        crop=crop,
        csv_format=CsvFormat(encoding=options.encoding, separator=options.separator, decimal=options.decimal),
        expected_csv_format=CsvFormat.from_dict(info.get("csv_format")),
        chunk_size=count_chunk_examples(input_bytes + predictive_bytes),
    )


def name_decisions(predictive: Predictive, costs: Any, names: Sequence[str] | None) -> NDArray[np.str_]:
    """The decision of least expected cost for each example: a class, or `decision_<column>` for a further column.

    Raises:
        TypeError, ValueError: The predictions are not one class of each example, or the costs are not those of them.
    """
    if not isinstance(predictive, CategoricalPredictive):
        raise ValueError(
            "--costs are those of one class of each example, and these predictions are of another kind. Leave it out."
        )
    decisions = decide(predictive, costs).cpu().numpy()
    num_classes = predictive.mean.shape[1]
    classes = [str(k) for k in range(num_classes)] if names is None else list(map(str, names))
    others = [f"decision_{column}" for column in range(len(costs[0]))]
    all_names = classes + others[num_classes:] if len(others) >= num_classes else others
    named: NDArray[np.str_] = np.asarray(all_names)[decisions]
    return named


def read_image_options(folder: Path) -> tuple[bool, bool]:
    """Whether the run resized its images, and whether it cropped them; new images are processed in the same way."""
    spec = read_data_spec(folder)
    resizes = spec["init_args"].get("size") is not None
    crops_by_default = spec.get("class_path") == "flatbayes.data.ImageNet"
    return resizes, resizes and bool(spec["init_args"].get("crop", crops_by_default))


def get_output_names(info: Mapping[str, Any], predictive: Predictive) -> Sequence[str] | None:
    """Names of the classes or targets if their number equals that of the predicted columns, else None."""
    names = info.get("class_names") or info.get("target_names") or []
    width = predictive.mean.shape[-1] if predictive.mean.ndim > 1 else 1
    fits = isinstance(names, list) and len(names) == len({str(name) for name in names}) == width
    return [str(name) for name in names] if fits else None
