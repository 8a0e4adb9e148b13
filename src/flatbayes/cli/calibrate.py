"""Verb `calibrate`: a calibration map, thresholds of conformal prediction and of abstention, from validation data."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jsonargparse import ArgumentParser, Namespace
from torch import Tensor

from flatbayes.calibration import fit_abstention, fit_conformal
from flatbayes.calibration import scores as score_types
from flatbayes.calibration.maps import CalibrationMethod
from flatbayes.calibration.scores import CALIBRATE_LABELS, NO_LABEL_REGIONS
from flatbayes.calibration.targets import NO_POSITION_REGIONS
from flatbayes.cli.artifacts import console, explain_entry, load_on_device, load_run_data, load_source
from flatbayes.cli.models import format_run_command
from flatbayes.cli.options import SplitName, add_data_path_option, add_run_options
from flatbayes.cli.parsing import new_parser
from flatbayes.cli.predict import add_input_options, make_input_reader
from flatbayes.cli.thresholds import Thresholds, choose_rows
from flatbayes.core.names import format_count
from flatbayes.core.randomness import Stream, make_generator
from flatbayes.data import Split
from flatbayes.data.prediction_writer import to_array, to_text
from flatbayes.experiments.run_folder import RunFolder
from flatbayes.likelihoods import DistributionLikelihood
from flatbayes.prediction import FittedPosterior, calibrate, check_num_draws, replace_calibration
from flatbayes.prediction.evaluation import predict_labelled
from flatbayes.prediction.labelled import infer_task

MethodName = Literal["default", "none", CalibrationMethod]
ScoreName = Literal["LAC", "APS", "RAPS", "NormalizedResidual", "QuantileResidual"]
BY_CLASS = "class"
PILOT_ENTRIES = ("radius", "prior")
"""Metadata of what a pilot has chosen on the validation split."""


def make_parser() -> ArgumentParser:
    """Options of `calibrate`."""
    parser = new_parser(
        "calibrate FOLDER [--input FILE] [options]",
        "Fit a calibration map to labelled validation examples, and compute the thresholds of prediction sets or "
        "intervals and of abstention from others of them. Networks are not changed; `predict` and `evaluate` use it.",
    )
    add_run_options(parser)
    add_data_path_option(parser)
    parser.add_argument(
        "--split", type=SplitName, default="val", help="split of the run's data, if there is no --input"
    )
    parser.add_argument(
        "--input", type=Path | None, default=None, help="parquet, CSV or npz file with labelled examples"
    )
    parser.add_argument(
        "--target",
        type=list[str] | str | None,
        default=None,
        help="column or columns, or array, of the targets in --input; by default those of the training data",
    )
    add_input_options(parser)
    parser.add_argument(
        "--method",
        type=MethodName,
        default="default",
        help="map: temperature (default for classes), vector, dirichlet, isotonic; scale (default for a Gaussian), "
        "quantile; or none (default for other distributions)",
    )
    parser.add_argument(
        "--fraction",
        type=float,
        default=0.5,
        help="fraction of the examples for the map; the others give thresholds, and without any all are for the map",
    )
    parser.add_argument(
        "--conformal",
        type=list[float] | None,
        default=None,
        help="levels of prediction sets or intervals, or []; by default [0.9], and none for several labels",
    )
    parser.add_argument(
        "--score",
        type=ScoreName | None,
        default=None,
        help="LAC (default for classes), APS, RAPS; NormalizedResidual (default for a Gaussian), QuantileResidual",
    )
    parser.add_argument(
        "--groups",
        type=str | None,
        default=None,
        help="thresholds of their own for every 'class', or for every group in this column of --input",
    )
    parser.add_argument(
        "--risk", type=list[float], default=[], help="wanted error rates of predictions that do not abstain"
    )
    return parser


def run(options: Namespace) -> None:
    """Fit the map, compute thresholds, and write both to the folder of the run."""
    check_num_draws(options.num_draws)
    if not 0 <= options.fraction < 1:
        raise ValueError(f"--fraction lies between 0 and 1 (without 1), got {options.fraction}. Try 0.5.")
    folder = RunFolder.open(Path(options.folder))
    fitted = load_on_device(folder.path, options.model, options.trust)
    task = infer_task(fitted.likelihood)
    has_no_sets = task in ("multi_label", "dense")
    if has_no_sets and options.conformal:  # before the map is fitted, which may take long
        raise ValueError(NO_POSITION_REGIONS if task == "dense" else f"{NO_LABEL_REGIONS}. {CALIBRATE_LABELS}")
    if options.risk and (has_no_sets or task == "regression"):
        raise ValueError("--risk is for one class of each example, which is predicted right or wrong.")
    levels = options.conformal if options.conformal is not None else [] if has_no_sets else [0.9]
    if options.method == "default" and isinstance(fitted.likelihood, DistributionLikelihood):
        options.method = "none"  # there is no map
    data, groups, source = _load_examples(options, folder, fitted)
    fraction = 0.0 if options.method == "none" else options.fraction
    map_rows = rows = torch.arange(len(data))
    if levels or options.risk:
        map_rows, rows = choose_rows(len(data), fraction, make_generator(Stream.SUBSAMPLE, options.seed))
    draws = {"num_draws": options.num_draws, "batch_size": options.batch_size, "seed": options.seed}
    if options.method == "none":
        fitted = replace_calibration(fitted, None)
    else:
        method = None if options.method == "default" else options.method
        subset = data.take(map_rows)
        fitted = calibrate(fitted, subset.inputs, subset.targets, method=method, **draws)
    subset = data.take(rows)
    predictive, targets, is_labelled = predict_labelled(fitted, subset.inputs, subset.targets, **draws)
    if not isinstance(groups, str) and groups is not None:
        groups = [groups[row] for row in rows.tolist()]
        if is_labelled is not None:
            groups = [name for name, keep in zip(groups, is_labelled.tolist(), strict=True) if keep]
    score = next((kind() for kind in score_types.SCORES if kind.__name__ == options.score), None)
    predictors = {
        f"{level:g}": fit_conformal(predictive, targets, score, level=level, groups=groups) for level in levels
    }
    classes: Any = predictive  # otherwise fit_abstention refuses them
    rules = {f"{risk:g}": fit_abstention(classes, targets, risk=risk) for risk in options.risk}
    thresholds = Thresholds(
        num_draws=options.num_draws,
        seed=options.seed,
        source=source,
        calibration=fitted.info.get("calibration"),
        conformal=predictors,
        abstention=rules,
        group_column=None if options.groups in (None, BY_CLASS) else options.groups,
    )
    has_training_inputs = bool(fitted.statistics_inputs) or fitted.training_inputs is not None
    folder.save(fitted, with_training_inputs=has_training_inputs)
    thresholds.save(folder.path)
    _print_report(folder.path, fitted, thresholds, len(targets))


def _print_report(folder: Path, fitted: FittedPosterior, thresholds: Thresholds, num_examples: int) -> None:
    calibration = fitted.calibration
    lines = [f"calibration: {'none' if calibration is None else calibration.describe()}"]
    names = fitted.info.get("class_names") or None
    lines += [predictor.summary(names) for predictor in thresholds.conformal.values()]
    lines += [f"risk {risk}: {rule.describe()}" for risk, rule in thresholds.abstention.items()]
    training = fitted.info.get("training", {})
    entries = (training.get("draw_options"), training.get("best_epochs"), *map(fitted.info.get, PILOT_ENTRIES))
    if any(entries) and thresholds.source == "val":
        lines.append(
            "Note: the training chose options, or where to stop, on the validation split, which a guarantee does not "
            "allow for. Give examples that nothing was chosen on: --input FILE."
        )
    if thresholds.conformal or thresholds.abstention:
        lines.append(f"thresholds from {format_count(num_examples, 'example')} of {thresholds.source}")
    lines.append(f"saved    {folder}")
    level = next(iter(thresholds.conformal), None)
    option = "" if level is None else f" --conformal {level}"
    command = format_run_command("predict", folder, fitted.info, f" --input FILE --output FILE{option}")
    lines.append(f"next     {command}")
    console.print_text("\n".join(lines))


def _load_examples(
    options: Namespace, folder: RunFolder, fitted: FittedPosterior
) -> tuple[Split, list[str] | str | None, str]:
    """Labelled examples, their groups, and the name of where they are from."""
    config = folder.read_config()
    if options.input is None:
        if options.groups not in (None, BY_CLASS):
            raise ValueError(f"--groups {options.groups} is a column: give a file with it, --input FILE.")
        source = load_source(config, options.data, options.trust)
        split: Split = getattr(load_run_data(source, {folder.path: config}, options), options.split)
        if options.split == "train":
            raise ValueError("Training examples are fitted better than new ones. Give --split val or --input FILE.")
        if not len(split):
            raise ValueError(f"The {options.split} split of the run is empty. Give examples: --input FILE.")
        return split, options.groups, options.split
    target = options.target or _find_target(config)
    names = [target] if isinstance(target, str) else list(target)
    column = None if options.groups in (None, BY_CLASS) else options.groups
    options.keep_columns = [*names, *([] if column is None else [column])]
    has_label_rows = len(names) == 1 and infer_task(fitted.likelihood) in ("multi_label", "dense")
    labels_name = names[0] if has_label_rows else None
    reader = make_input_reader(fitted.info, Path(options.input), options, predictive_bytes=0, labels=labels_name)
    chunks = list(reader.iter_chunks())
    if not chunks:
        raise ValueError(f"{options.input} has no examples.")
    columns = [np.concatenate([to_array(kept[name]) for kept, _ in chunks]) for name in names]
    labels = columns[0] if len(columns) == 1 else np.stack(columns, 1)
    groups = options.groups if column is None else [name for kept, _ in chunks for name in to_text(kept[column])]
    inputs = torch.cat([examples for _, examples in chunks])
    return Split(inputs=inputs, targets=_encode_targets(labels, fitted)), groups, str(options.input)


def _encode_targets(values: Any, fitted: FittedPosterior) -> Tensor:
    """Numbers, or indices of the classes whose names are the texts of the values; labels of positions are indices."""
    names = fitted.info.get("class_names")
    if infer_task(fitted.likelihood) == "dense":
        return torch.from_numpy(np.asarray(values))
    if not names:
        return torch.from_numpy(np.asarray(values, dtype=np.float64))
    numbers, texts = {name: index for index, name in enumerate(map(str, names))}, list(map(str, values.tolist()))
    unknown = sorted(set(texts) - set(numbers))
    if unknown:
        raise ValueError(f"{unknown[0]!r} is not the name of a class of the training: {', '.join(numbers)}.")
    return torch.tensor([numbers[text] for text in texts])


def _find_target(config: Any) -> str | list[str]:
    with explain_entry("data"):
        arguments = config["data"].get("init_args", {})
        target = next((arguments[name] for name in ("target", "targets", "label") if name in arguments), None)
    if not isinstance(target, str | list):
        raise ValueError("The data of the run have no column of targets: name that of --input with --target.")
    return target
