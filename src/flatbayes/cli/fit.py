"""`flatbayes fit`: train one posterior and keep it."""

import sys
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from jsonargparse import ArgumentParser, Namespace
from rich.console import Console

from flatbayes.cli.artifacts import console, evaluate_run, load_on_device
from flatbayes.cli.options import add_output_options, add_training_options, make_config, make_model
from flatbayes.cli.parsing import new_parser
from flatbayes.core.spec import to_spec
from flatbayes.data import DataSplits, Standardize
from flatbayes.experiments.run_folder import RunFolder
from flatbayes.posteriors import SWAG, Posterior
from flatbayes.prediction import check_num_draws
from flatbayes.training import (
    FINE_TUNING,
    Callback,
    CallbackList,
    Checkpoints,
    ConsoleLogger,
    Interrupted,
    MetricLogger,
    dry_run,
    fit,
    make_logger,
)
from flatbayes.training.callbacks.loggers import LoggerKind
from flatbayes.training.distributed.launch import get_fabric_process_group, make_fabric


def make_parser() -> ArgumentParser:
    """Its options."""
    parser = new_parser(
        "fit --data DATA --out FOLDER [options]",
        "Fit one posterior, measure it on the validation part, and keep it.",
    )
    add_training_options(parser)
    parser.add_argument("--posterior", type=Posterior, help="what is fitted: SWAG, MCDropout, Ensemble, Point")
    add_pretrained_options(parser)
    parser.add_argument("--seed", type=int, default=0, help="decides everything random")
    parser.add_argument("--num_draws", type=int, default=30, help="networks averaged in the evaluation")
    add_output_options(parser)
    parser.add_argument(
        "--resume", action="store_true", help="go on with the run in --out if it was stopped; harmless otherwise"
    )
    parser.add_argument(
        "--checkpoint_steps",
        type=int | None,
        default=None,
        help="steps between two checkpoints within an epoch; by default they are written at the end of epochs only",
    )
    parser.add_argument("--checkpoint_seconds", type=float, default=30.0, help="least time between two checkpoints")
    parser.add_argument(
        "--log",
        nargs="*",
        choices=get_args(LoggerKind),
        default=[],
        help="logs to write below the folder, beside metrics.jsonl: tensorboard, csv, wandb",
    )
    parser.add_argument("--log_steps", type=int, default=50, help="steps between two whose loss is logged")
    parser.set_defaults({"posterior": to_spec(SWAG())})
    return parser


def add_pretrained_options(parser: ArgumentParser) -> None:
    """A network that is there already."""
    parser.add_argument(
        "--init",
        type=str | list[str] | None,
        default=None,
        help="trained weights to start from, with other defaults for the recipe: a file of safetensors or torch.save "
        "or the folder of a run; a list for an ensemble",
    )
    parser.add_argument(
        "--freeze", type=list[str], default=[], help="name patterns of parameters that are not trained"
    )
    for name in ("mean", "std"):
        parser.add_argument(
            f"--input_{name}",
            type=list[float] | None,
            default=None,
            help=f"{name} that inputs are standardised by, for each channel or feature; by default of the data",
        )


def fine_tuning_defaults() -> dict[str, Any]:
    """The defaults of options where there is a trained network to start from."""
    spec = FINE_TUNING.to_dict()
    return {name: spec[name] for name in ("epochs", "schedule", "collection")}


def make_transform(options: Namespace, dataset: DataSplits) -> Standardize | None:
    """What inputs are standardised by, where the options say so.

    Raises:
        ValueError: There is a mean without a standard deviation, or not one for each channel.
    """
    mean, std = options.input_mean, options.input_std
    if mean is None and std is None:
        return None
    size = dataset.input_shape[0]
    if mean is None or std is None or {len(mean), len(std)} != {size} or min(std) <= 0:
        raise ValueError(
            f"--input_mean and --input_std go together, {size} numbers each, the latter positive; got {mean} and "
            f"{std}."
        )
    shape = (size,) if len(dataset.input_shape) == 1 else (size, 1, 1)
    return Standardize(mean=torch.tensor(mean).view(shape), std=torch.tensor(std).view(shape))


def run(options: Namespace) -> None:
    """One posterior, kept in a run folder and measured on the validation part."""
    check_num_draws(options.num_draws)
    options.init = [options.init] if isinstance(options.init, str) else options.init
    dataset = options.data.load(options.seed)
    model, recipe = make_model(options, dataset), make_config(options, dataset)
    transform = make_transform(options, dataset)
    trained = {"init": options.init, "new_head": options.new_head and bool(options.init), "freeze": options.freeze}
    dry_run(model, dataset, options.posterior, options.flatness, recipe, **trained)
    config = {
        "data": to_spec(options.data),
        "model": to_spec(model),
        "posterior": to_spec(options.posterior),
        "flatness": to_spec(options.flatness),
        "config": recipe.to_dict(),
        "seed": options.seed,
        **trained,
    }
    in_parts = recipe.distribution.strategy == "fsdp"
    if in_parts and options.resume:
        raise ValueError(
            "--distribution.strategy fsdp writes no checkpoints, so there is nothing that --resume could go on from."
        )
    world, folder = get_fabric_process_group(make_fabric(recipe, launch=True)), RunFolder(Path(options.out))
    world.run_on_main(
        lambda: RunFolder.create(folder.path, config, overwrite=options.overwrite, resume=options.resume)
    )
    checkpoints = Checkpoints(folder.checkpoint_folder, options.checkpoint_steps, options.checkpoint_seconds)
    if world.read_on_main(lambda: folder.is_fitted):
        if not world.is_main_process:
            return
        checkpoints.remove()
        if folder.has_results:
            console.print(f"{folder.path} is complete: there is nothing to resume.", soft_wrap=True)
            return
        fitted = load_on_device(folder.path, None)
    else:
        watches = _make_callbacks(folder, options) if world.is_main_process else []
        try:
            fitted = fit(
                model,
                dataset,
                options.posterior,
                options.flatness,
                recipe,
                seed=options.seed,
                callback=CallbackList(watches),
                checkpoints=None if in_parts else checkpoints,
                transform=transform,
                **trained,
            )
        except Interrupted as stop:
            if world.is_main_process:
                folder.save(stop.fitted)
                console.print(
                    f"[yellow]{stop}; what was fitted by then is in {folder.path}. To go on: the same command with "
                    "--resume.[/yellow]",
                    soft_wrap=True,
                )
            raise
        if not world.is_main_process:  # which has the rest to do
            return
        folder.save(fitted)
        checkpoints.remove()
    evaluate_run(fitted, folder, dataset.val, "val", options.num_draws, 256, 0)
    console.print(
        f"kept in  {folder.path}\nnext     flatbayes evaluate {folder.path}", highlight=False, soft_wrap=True
    )


def _make_callbacks(folder: RunFolder, options: Namespace) -> list[Callback]:
    loggers = [make_logger(kind, folder.log_folder) for kind in dict.fromkeys(options.log)]
    watches: list[Callback] = [
        folder.open_metrics_log(),
        *([MetricLogger(loggers, options.log_steps)] if loggers else []),
    ]
    if not sys.stderr.isatty():
        watches.append(ConsoleLogger(partial(Console(stderr=True).print, highlight=False, soft_wrap=True)))
    return watches
