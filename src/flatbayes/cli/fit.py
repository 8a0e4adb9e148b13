"""`flatbayes fit`: train one posterior and keep it."""

import sys
from functools import partial
from pathlib import Path
from typing import get_args

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console

from flatbayes.cli.options import chosen_model, chosen_recipe, new_parser, output_options, training_options
from flatbayes.cli.runs import console, load, measure
from flatbayes.core.spec import to_spec
from flatbayes.posteriors import SWAG, Posterior
from flatbayes.prediction import check_num_draws
from flatbayes.training import Checkpoints, Interrupted, Lines, Logged, Watch, Watches, fit, make_logger, rehearse
from flatbayes.training.logs import LogKind
from flatbayes.training.parallel import World
from flatbayes.training.recipe import fabric_of
from flatbayes.training.run_folder import RunFolder


def options() -> ArgumentParser:
    """Its options."""
    parser = new_parser(
        "fit --data DATA --out FOLDER [options]",
        "Fit one posterior, measure it on the validation part, and keep it.",
    )
    training_options(parser)
    parser.add_argument("--posterior", type=Posterior, help="what is fitted: SWAG, MCDropout, Ensemble, Point")
    parser.add_argument("--seed", type=int, default=0, help="decides everything random")
    parser.add_argument("--draws", type=int, default=30, help="networks averaged in the evaluation")
    output_options(parser)
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
        choices=get_args(LogKind),
        default=[],
        help="logs to write below the folder, beside metrics.jsonl: tensorboard, csv, wandb",
    )
    parser.add_argument("--log_steps", type=int, default=50, help="steps between two whose loss is logged")
    parser.set_defaults({"posterior": to_spec(SWAG())})
    return parser


def run(options: Namespace) -> None:
    """One posterior, kept in a run folder and measured on the validation part."""
    check_num_draws(options.draws)
    dataset = options.data.load(options.seed)
    model, recipe = chosen_model(options, dataset), chosen_recipe(options, dataset)
    rehearse(model, dataset, options.posterior, options.flatness, recipe)
    config = {
        "data": to_spec(options.data),
        "model": to_spec(model),
        "posterior": to_spec(options.posterior),
        "flatness": to_spec(options.flatness),
        "recipe": to_spec(recipe)["init_args"],
        "seed": options.seed,
    }
    in_parts = recipe.strategy == "fsdp"
    if in_parts and options.resume:
        raise ValueError("--strategy fsdp writes no checkpoints, so there is nothing that --resume could go on from.")
    world, folder = World.of(fabric_of(recipe, launch=True)), RunFolder(Path(options.out))
    world.first_does(
        lambda: RunFolder.create(folder.path, config, overwrite=options.overwrite, resume=options.resume)
    )
    checkpoints = Checkpoints(folder.checkpoints, options.checkpoint_steps, options.checkpoint_seconds)
    if world.read_by_first(lambda: folder.is_fitted):
        if not world.is_first:
            return
        checkpoints.remove()
        if folder.is_measured:
            console.print(f"{folder.path} is complete: there is nothing to resume.", soft_wrap=True)
            return
        fitted = load(folder.path, None)
    else:
        watches = _watches(folder, options) if world.is_first else []
        try:
            fitted = fit(
                model,
                dataset,
                options.posterior,
                options.flatness,
                recipe,
                seed=options.seed,
                watch=Watches(watches),
                checkpoints=None if in_parts else checkpoints,
            )
        except Interrupted as stop:
            if world.is_first:
                folder.save(stop.fitted)
                console.print(
                    f"[yellow]{stop}; what was fitted by then is in {folder.path}. To go on: the same command with "
                    "--resume.[/yellow]",
                    soft_wrap=True,
                )
            raise
        if not world.is_first:  # which has the rest to do
            return
        folder.save(fitted)
        checkpoints.remove()
    measure(fitted, folder, dataset.val, "val", options.draws, 256, 0)
    console.print(
        f"kept in  {folder.path}\nnext     flatbayes evaluate {folder.path}", highlight=False, soft_wrap=True
    )


def _watches(folder: RunFolder, options: Namespace) -> list[Watch]:
    loggers = [make_logger(kind, folder.logs) for kind in dict.fromkeys(options.log)]
    watches: list[Watch] = [folder.log(), *([Logged(loggers, options.log_steps)] if loggers else [])]
    if not sys.stderr.isatty():
        watches.append(Lines(partial(Console(stderr=True).print, highlight=False, soft_wrap=True)))
    return watches
