"""Verb `shift`: corrupted images, out-of-distribution detection and temperature scaling of a fitted posterior."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace

from flatbayes.cli.artifacts import (
    check_result_folder,
    console,
    load_on_device,
    load_run_data,
    load_source,
    protect_results,
    tolerate_read_only,
)
from flatbayes.cli.options import add_data_path_option, add_result_options, add_run_options
from flatbayes.cli.parsing import new_parser
from flatbayes.core.files import write_json
from flatbayes.core.names import format_count
from flatbayes.core.optional import get_version
from flatbayes.core.spec import short_name
from flatbayes.data import (
    CIFAR10C,
    ClassSplit,
    DataSource,
    Split,
    list_corruptions,
    load_test_split,
    match_input_format,
)
from flatbayes.experiments.run_folder import SHIFT_FIGURE_FILE, SHIFT_FILE, RunFolder, describe_environment
from flatbayes.prediction import (
    CorruptionMetrics,
    check_num_draws,
    evaluate_corruptions,
    evaluate_ood,
    evaluate_recalibration,
)
from flatbayes.prediction.description import name_flatness
from flatbayes.prediction.labelled import infer_task
from flatbayes.reporting.shift import (
    corruption_table,
    ood_table,
    severity_table,
    temperature_table,
    write_shift_figure,
)

CORRUPTION_GROUPS = ("standard", "all", "none")
NO_CLASSES = "Shift is evaluated for classes and several labels, and {folder} holds a regression."


def make_parser() -> ArgumentParser:
    """Options of `shift`."""
    parser = new_parser(
        "shift FOLDER [options]",
        "Evaluate a fitted posterior under distribution shift: corrupted test images, out-of-distribution inputs, "
        "and a temperature fitted to the validation split. Nothing is trained, and the posterior is not changed.",
    )
    add_run_options(parser)
    add_data_path_option(parser)
    parser.add_argument(
        "--corruptions",
        type=list[str] | None,
        default=None,
        help="standard (15), all, none, or names such as fog,snow; by default standard for images, none for tables",
    )
    parser.add_argument(
        "--severities", type=list[int], default=[1, 2, 3, 4, 5], help="severities of the corruptions, from 1 to 5"
    )
    parser.add_argument(
        "--corrupted_folder",
        type=Path | None,
        default=None,
        help="folder with the original CIFAR-10-C (labels.npy, fog.npy ...), instead of corrupting the test images",
    )
    parser.add_argument(
        "--ood",
        type=DataSource | None,
        default=None,
        metavar="NAME",
        help="out-of-distribution data: digits, cifar10 ... or a path; by default the classes left out by ClassSplit",
    )
    parser.add_argument(
        "--max_examples", type=int | None, default=None, help="largest number of test examples of each kind"
    )
    add_result_options(parser)
    return parser


def run(options: Namespace) -> None:
    """Print tables, and write `shift.json` and the figure `shift.svg`."""
    check_num_draws(options.num_draws)
    if options.max_examples is not None and options.max_examples < 1:
        raise ValueError(f"--max_examples must be at least 1, got {options.max_examples}.")
    folder = RunFolder.open(Path(options.folder))
    config = folder.read_config()
    options_with_effect = ("num_draws", "seed", "corruptions", "severities", "corrupted_folder", "max_examples")
    described = {name: options[name] for name in options_with_effect}
    described["corrupted_folder"] = None if options.corrupted_folder is None else str(options.corrupted_folder)
    described["corruptions"] = None if options.corruptions is None else ",".join(options.corruptions)
    if options.precision is not None:
        described["precision"] = options.precision
    described["ood"] = None if options.ood is None else short_name(options.ood)
    out_folder = check_result_folder(folder.path, options.out)
    protect_results(out_folder / SHIFT_FILE, described, overwrite=options.overwrite)
    source = load_source(config, options.data, options.trust)
    fitted = load_on_device(folder.path, options.model, options.trust)
    task = infer_task(fitted.likelihood)
    is_dense = task == "dense"
    if task == "regression":
        raise ValueError(NO_CLASSES.format(folder=folder.path))
    shape = fitted.info.get("input_shape")
    if isinstance(shape, list) and shape:
        _select_corruptions(options, tuple(shape), is_dense)  # refuses unknown ones before data are read
    dataset = load_run_data(source, {folder.path: config}, options)
    if dataset.is_regression:
        raise ValueError(NO_CLASSES.format(folder=folder.path))
    test = _subsample_split(dataset.test, options)
    names = _select_corruptions(options, dataset.input_shape, is_dense)
    ood_inputs = _load_ood_inputs(options.ood, source, test, options)
    settings: dict[str, Any] = {
        "batch_size": options.batch_size,
        "seed": options.seed,
        "show_progress": sys.stderr.isatty(),
        "precision": options.precision,
        "compiled": options.compiled,
    }
    results: dict[str, Any] = {
        "flatbayes": get_version(),
        "environment": describe_environment(),
        "settings": described,
        "run": {key: short_name(config[key]) for key in ("data", "model", "posterior", "flatness")}
        | {"seed": config["seed"]},
        "num_networks": len(fitted.sample_ids(options.num_draws, options.seed)),
        "examples": len(test),
        "corrupted_images": "files" if options.corrupted_folder else "made by flatbayes",
    }
    with fitted.share_predictions():
        recalibration = evaluate_recalibration(fitted, dataset.val, test, options.num_draws, **settings)
        results["recalibrated"] = recalibration.to_dict()
        console.print(temperature_table(recalibration))
        if ood_inputs is not None:
            name = short_name(options.ood) if options.ood is not None else "the classes left out"
            evaluation = evaluate_ood(fitted, test.input_tensor, ood_inputs, options.num_draws, **settings)
            results["ood"] = {"source": name, **evaluation.to_dict()}
            console.print(ood_table(evaluation, name))
        rows: Sequence[CorruptionMetrics] = ()
        if names:
            stored = None
            if options.corrupted_folder is not None:
                stored = CIFAR10C(path=str(options.corrupted_folder), max_examples=options.max_examples)
            rows = evaluate_corruptions(
                fitted, test, names, options.severities, options.num_draws, corruption_source=stored, **settings
            )
            results["corruptions"] = [row.to_dict() for row in rows]
            console.print(corruption_table(rows))
            console.print(severity_table(rows))
    with tolerate_read_only():
        labels = results["run"]
        title = f"{labels['posterior']} x {name_flatness(labels['flatness'], fitted.info)} on {labels['data']}"
        _write_results(results, rows, title, out_folder)


def _write_results(results: dict[str, Any], rows: Sequence[CorruptionMetrics], title: str, folder: Path) -> None:
    write_json(folder / SHIFT_FILE, results)
    console.print_text(f"results  {folder / SHIFT_FILE}")
    if rows:
        figure = write_shift_figure(rows, title, folder / SHIFT_FIGURE_FILE)
        console.print_text(f"figure   {figure}")


def _select_corruptions(options: Namespace, input_shape: tuple[int, ...], is_dense: bool) -> tuple[str, ...]:
    """Names of the corruptions given by `--corruptions`."""
    names = tuple(options.corruptions or ("standard",))
    if names == ("none",) or (options.corruptions is None and len(input_shape) != 3):
        return ()
    if len(input_shape) != 3:
        raise ValueError(
            f"Corruptions are for images, and the inputs of this run are {format_count(input_shape[0], 'feature')}. "
            "Leave --corruptions out."
        )
    if not options.severities or not set(options.severities) <= {1, 2, 3, 4, 5}:
        raise ValueError(f"--severities are numbers from 1 to 5, such as [1,3,5]; got {options.severities}.")
    standard, available = (
        list_corruptions(input_shape[0], standard_only=only, with_moving=not is_dense) for only in (True, False)
    )
    if options.corrupted_folder is not None:
        available = CIFAR10C(path=str(options.corrupted_folder)).corruption_names()
        standard = tuple(name for name in standard if name in available)
    if names in {("standard",), ("all",)}:
        return standard if names == ("standard",) else available
    unknown = [name for name in names if name not in available]
    if unknown:
        raise ValueError(
            f"Unknown corruption {unknown[0]!r} for images of the shape {input_shape}. Known: {', '.join(available)}"
            f"; or {', '.join(CORRUPTION_GROUPS)}."
        )
    return names


def _load_ood_inputs(
    ood_source: DataSource | None, source: DataSource, test: Split, options: Namespace
) -> torch.Tensor | None:
    if ood_source is not None:
        ood_split = load_test_split(ood_source)
    elif isinstance(source, ClassSplit):
        ood_split = source.read_ood()
    else:
        return None
    return match_input_format(_subsample_split(ood_split, options).input_tensor, test.inputs)


def _subsample_split(split: Split, options: Namespace) -> Split:
    if options.max_examples is None:
        return Split(inputs=split.input_tensor, targets=split.targets)  # raises here if they do not fit into memory
    if options.corrupted_folder is not None:  # CIFAR10C reads the first ones
        return split.take(torch.arange(min(options.max_examples, len(split))))
    return split.subsample(options.max_examples)
