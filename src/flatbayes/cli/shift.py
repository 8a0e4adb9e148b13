"""`flatbayes shift`: a fitted posterior on corrupted images, on examples from outside, and at its temperature."""

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace

from flatbayes.cli.names import full_name
from flatbayes.cli.options import new_parser, run_options
from flatbayes.cli.runs import console, load
from flatbayes.core.environment import environment
from flatbayes.core.files import write_json
from flatbayes.core.spec import build, label
from flatbayes.data import CIFAR10C, ClassSplit, Part, Source, corruptions_for, held_out, shaped_like
from flatbayes.prediction import (
    FittedPosterior,
    check_num_draws,
    evaluate_corruptions,
    evaluate_ood,
    recalibrated,
)
from flatbayes.reports.shift import corruption_table, ood_table, severity_table, shift_picture, temperature_table
from flatbayes.training.run_folder import RunFolder

RESULTS, PICTURE = "shift.json", "shift.svg"
WORDS = ("standard", "all", "none")


def options() -> ArgumentParser:
    """Its options."""
    parser = new_parser(
        "shift FOLDER [options]",
        "Measure a fitted posterior away from its data: corrupted test images, examples from outside, and a "
        "temperature fitted to the validation part. Nothing is trained.",
    )
    run_options(parser)
    parser.add_argument(
        "--corruptions",
        type=str | None,
        default=None,
        help="standard (15), all, none, or names such as fog,snow; by default standard for images, none for tables",
    )
    parser.add_argument(
        "--severities", type=list[int], default=[1, 2, 3, 4, 5], help="of the corruptions, from 1 to 5"
    )
    parser.add_argument(
        "--corrupted",
        type=Path | None,
        default=None,
        help="folder with the original CIFAR-10-C (labels.npy, fog.npy ...), instead of making corrupted images",
    )
    parser.add_argument(
        "--ood",
        type=str | None,
        default=None,
        help="examples from outside: digits, cifar10 ... or a path; by default the classes that ClassSplit left out",
    )
    parser.add_argument(
        "--examples", type=int | None, default=None, help="at most so many test examples of each kind"
    )
    return parser


def run(options: Namespace) -> None:
    """Tables, `shift.json`, and metrics against severity as `shift.svg`."""
    check_num_draws(options.draws)
    if options.examples is not None and options.examples < 1:
        raise ValueError(f"--examples must be at least 1, got {options.examples}.")
    folder = RunFolder.open(Path(options.folder))
    config = folder.config()
    source: Source = build(config["data"], within="flatbayes.data")
    outsider = _outsider(options.ood)
    fitted = load(folder.path, options.model)
    dataset = source.load(config["seed"])
    if dataset.is_regression:
        raise ValueError(f"Shift is measured for classifications, and {folder.path} holds a regression.")
    test = _few(dataset.test, options)
    names = _names(options, dataset.input_shape)
    outside = _outside(outsider, source, test, options)
    how: dict[str, Any] = {"batch_size": options.batch_size, "seed": options.seed, "progress": sys.stderr.isatty()}
    known = len(fitted.statistics_of_draws)
    found: dict[str, Any] = {
        "flatbayes": version("flatbayes"),
        "environment": environment(),
        "run": {key: label(config[key]) for key in ("data", "model", "posterior", "flatness")}
        | {"seed": config["seed"]},
        "num_networks": len(fitted.draw_keys(options.draws, options.seed)),
        "examples": len(test),
        "corrupted_images": "files" if options.corrupted else "made by flatbayes",
        "recalibrated": recalibrated(fitted, dataset.val, test, options.draws, **how),
    }
    console.print(temperature_table(found["recalibrated"]))
    if outside is not None:
        name = options.ood or "the classes left out"
        found["ood"] = {"outside": name, **evaluate_ood(fitted, test.tensor, outside, options.draws, **how)}
        console.print(ood_table(found["ood"], name))
    if names:
        stored = (
            None if options.corrupted is None else CIFAR10C(path=str(options.corrupted), examples=options.examples)
        )
        found["corruptions"] = evaluate_corruptions(
            fitted, test, names, options.severities, options.draws, stored=stored, **how
        )
        console.print(corruption_table(found["corruptions"]))
        console.print(severity_table(found["corruptions"]))
    _keep(folder, fitted, found, changed=len(fitted.statistics_of_draws) > known)


def _keep(folder: RunFolder, fitted: FittedPosterior, found: dict[str, Any], *, changed: bool) -> None:
    if changed:  # estimating statistics of draws again would cost more than keeping them
        folder.save(fitted)
    write_json(folder.path / RESULTS, found)
    said = f"results  {folder.path / RESULTS}"
    if "corruptions" in found:
        title = f"{found['run']['posterior']} x {found['run']['flatness']} on {found['run']['data']}"
        said += f"\npicture  {shift_picture(found['corruptions'], title, folder.path / PICTURE)}"
    console.print(said, highlight=False, soft_wrap=True)


def _names(options: Namespace, input_shape: tuple[int, ...]) -> tuple[str, ...]:
    """The corruptions that are asked for."""
    if options.corruptions == "none" or (options.corruptions is None and len(input_shape) != 3):
        return ()
    if len(input_shape) != 3:
        raise ValueError(
            f"Corruptions are for images, and the inputs of this run are {input_shape[0]} features. Leave "
            "--corruptions out."
        )
    if not options.severities or not set(options.severities) <= {1, 2, 3, 4, 5}:
        raise ValueError(f"--severities are numbers from 1 to 5, such as [1,3,5]; got {options.severities}.")
    standard, every = corruptions_for(input_shape[0], standard=True), corruptions_for(input_shape[0])
    if options.corrupted is not None:
        every = CIFAR10C(path=str(options.corrupted)).names()
        standard = tuple(name for name in standard if name in every)
    wanted = options.corruptions or "standard"
    if wanted in WORDS:
        return standard if wanted == "standard" else every
    names = tuple(name.strip(" '\"") for name in wanted.strip(" []").split(","))
    unknown = [name for name in names if name not in every]
    if unknown:
        raise ValueError(
            f"Unknown corruption {unknown[0]!r} for images of the shape {input_shape}. Known: {', '.join(every)}; or "
            f"{', '.join(WORDS)}."
        )
    return names


def _outsider(name: str | None) -> Source | None:
    """The source that a name or a path stands for."""
    if name is None:
        return None
    spec = full_name("data", name)
    found: Source = build(json.loads(spec) if spec.startswith("{") else {"class_path": spec, "init_args": {}})
    return found


def _outside(outsider: Source | None, source: Source, test: Part, options: Namespace) -> torch.Tensor | None:
    if outsider is not None:
        found = held_out(outsider)
    elif isinstance(source, ClassSplit):
        found = source.outside()
    else:
        return None
    return shaped_like(_few(found, options).tensor, test.inputs)


def _few(part: Part, options: Namespace) -> Part:
    if options.examples is None:
        return Part(inputs=part.tensor, targets=part.targets)  # says so at once where there are too many
    if options.corrupted is not None:  # of which the first ones are read
        return part.take(torch.arange(min(options.examples, len(part))))
    return part.some(options.examples)
