"""Verb `fit`: train one posterior and save it in a run folder."""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from jsonargparse import ArgumentParser, Namespace

from flatbayes.calibration.targets import MIN_EXAMPLES
from flatbayes.cli.aliases import list_names
from flatbayes.cli.artifacts import console, load_on_cpu, load_on_device
from flatbayes.cli.evaluate import evaluate_run
from flatbayes.cli.help_text import describe_axes
from flatbayes.cli.models import build_with_new_head, format_run_command
from flatbayes.cli.options import (
    add_changed_data_option,
    add_output_options,
    add_pretrained_options,
    add_training_options,
    check_before_loading,
    list_init,
    make_config,
    make_model,
    make_transform,
)
from flatbayes.cli.parsing import new_parser
from flatbayes.core.console import PlainConsole
from flatbayes.core.names import format_count
from flatbayes.core.spec import to_spec
from flatbayes.data import DataSplits
from flatbayes.data.fingerprint import FINGERPRINT_KEY, compute_fingerprint
from flatbayes.experiments.run_folder import RunFolder, check_free_folder
from flatbayes.posteriors import SWAG, Posterior
from flatbayes.prediction import FittedPosterior, check_num_draws
from flatbayes.prediction.metadata import update_info
from flatbayes.training import (
    Callback,
    CallbackList,
    Checkpoints,
    ConsoleLogger,
    Interrupted,
    MetricLogger,
    TrainingConfig,
    make_logger,
)
from flatbayes.training.callbacks.loggers import LoggerKind
from flatbayes.training.distributed.launch import get_fabric_process_group, make_fabric
from flatbayes.training.dry_run import try_runs
from flatbayes.training.fit import train_prepared
from flatbayes.training.optimizers import DefaultOptimizer
from flatbayes.training.preparation import prepare_runs
from flatbayes.training.run_factory import RunFactory
from flatbayes.training.setup import TrainingSetup


def make_parser() -> ArgumentParser:
    """Options of `fit`."""
    parser = new_parser(
        "fit --data DATA --out FOLDER [options]",
        "Fit one posterior, save it, and evaluate it on the validation split.",
    )
    parser.epilog = describe_axes("fit", "posterior")
    add_training_options(parser)
    parser.add_argument("--posterior", type=Posterior, help=f"posterior: {', '.join(list_names('posterior'))}")
    add_pretrained_options(parser)
    parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers")
    parser.add_argument("--num_draws", type=int, default=30, help="networks averaged in the evaluation")
    add_output_options(parser)
    parser.add_argument("--resume", action="store_true", help="continue the run in --out if it was interrupted")
    add_changed_data_option(parser)
    parser.add_argument(
        "--without_training_inputs",
        action="store_true",
        help="keep no training inputs in the artefact of a network with BatchNorm: it draws no further networks",
    )
    parser.add_argument(
        "--checkpoint_steps",
        type=int | None,
        default=None,
        help="steps between checkpoints in an epoch; by default none",
    )
    parser.add_argument("--checkpoint_seconds", type=float, default=30.0, help="minimum time between checkpoints")
    parser.add_argument(
        "--log",
        nargs="*",
        choices=get_args(LoggerKind),
        default=[],
        help="loggers in addition to metrics.jsonl",
    )
    parser.add_argument("--log_steps", type=int, default=50, help="steps between logged losses")
    parser.set_defaults({"posterior": to_spec(SWAG())})
    return parser


def run(options: Namespace) -> None:
    """Fit a posterior, save it in a run folder, and evaluate it on the validation split."""
    check_num_draws(options.num_draws)
    options.init = list_init(options)
    check_before_loading(options)
    is_main_process = os.environ.get("RANK", "0") == "0"  # of torchrun; the process group does not exist yet
    if is_main_process and not (options.resume or options.overwrite):
        check_free_folder(Path(options.out))
    dataset = options.data.load(options.seed)
    model, training_config = make_model(options, dataset), make_config(options)
    warn_of_small_validation(dataset, training_config)
    transform = make_transform(options, dataset)
    trained = {"init": options.init, "new_head": options.new_head and bool(options.init), "freeze": options.freeze}
    named = {"likelihood": options.likelihood} if options.likelihood else {}
    factory, model_spec = prepare_runs(
        model,
        dataset,
        options.posterior,
        options.flatness,
        training_config,
        transform=transform,
        seed=options.seed,
        **trained,
        **named,
    )
    try_runs(factory)
    training_config = _name_optimizer(training_config, factory)
    fingerprint = factory.training_data.fingerprint
    config = {
        "data": to_spec(options.data),
        "model": to_spec(model),
        "posterior": to_spec(options.posterior),
        "flatness": to_spec(options.flatness),
        "config": training_config.to_dict(),
        "seed": options.seed,
        FINGERPRINT_KEY: {
            **{name: fingerprint[name] for name in ("train", "val")},
            **compute_fingerprint(dataset, ("test",)),
        },
        **trained,
        **named,
    }
    is_sharded = training_config.distribution.strategy == "fsdp"
    if is_sharded and options.resume:
        raise ValueError("--distribution.strategy fsdp writes no checkpoints, so --resume is not possible.")
    world = get_fabric_process_group(make_fabric(training_config, launch=True))
    folder = RunFolder(Path(options.out))
    world.run_on_main(
        lambda: RunFolder.create(
            folder.path,
            config,
            overwrite=options.overwrite,
            resume=options.resume,
            allow_changed_data=options.allow_changed_data,
        )
    )
    checkpoints = Checkpoints(
        folder.checkpoint_folder,
        options.checkpoint_steps,
        options.checkpoint_seconds,
        allow_changed_data=options.allow_changed_data,
    )
    trusted_path = _get_model_path(model)
    finished = world.run_on_main(lambda: _load_finished(folder, trusted_path))
    if world.broadcast(finished is not None):
        if finished is None:  # in the other processes
            return
        checkpoints.remove()
        if folder.has_results:
            if options.without_training_inputs and finished.statistics_inputs:
                folder.save(finished, with_training_inputs=False)
            console.print(f"{folder.path} is complete: there is nothing to resume.", soft_wrap=True)
            return
        fitted = finished
    else:
        callbacks = _make_callbacks(folder, options) if world.is_main_process else []
        try:
            training_checkpoints = None if is_sharded else checkpoints
            setup = TrainingSetup.create(factory, model_spec, training_checkpoints)
            fitted = train_prepared(setup, training_checkpoints, CallbackList(callbacks))
        except Interrupted as stop:
            if world.is_main_process:
                folder.save(stop.fitted)
                console.print(_describe_interruption(stop, folder.path), soft_wrap=True, style="yellow")
            raise
        except KeyboardInterrupt as stop:
            stop.add_note(_describe_early_stop(folder))
            raise
        if not world.is_main_process:
            return
        folder.save(fitted)
        load_on_cpu(folder.path, None, [trusted_path])  # checkpoints are removed once the artefact has been read back
        checkpoints.remove()
    num_cached = len(fitted.norm_statistics)
    try:
        report = evaluate_run(fitted, folder, dataset.val, "val", options.num_draws, 256, 0)
    except KeyboardInterrupt as stop:
        stop.add_note(f"the posterior is complete and saved in {folder.path}; its evaluation was stopped")
        raise
    fitted.info["checks"] = report.to_dict()
    if options.without_training_inputs or len(fitted.norm_statistics) > num_cached:
        # With the statistics of the draws, so that evaluate and predict need not estimate them again.
        folder.save(fitted, with_training_inputs=not options.without_training_inputs)
    else:
        update_info(folder.path, {"checks": fitted.info["checks"]})
    for name in ("radius", "prior"):
        if name in fitted.info:
            console.print_text(f"{name:8} {fitted.info[name]['reason']}")
    command = format_run_command("evaluate", folder.path, fitted.info)
    console.print_text(f"saved    {folder.path}\nnext     {command}")


def warn_of_small_validation(dataset: DataSplits, config: TrainingConfig) -> None:
    """Say on the terminal that a measurement on few validation examples depends on chance."""
    if len(dataset.val) < MIN_EXAMPLES and not config.stops_early:
        total = len(dataset.train) + len(dataset.val)
        PlainConsole(stderr=True).print_text(
            f"flatbayes: note: The validation split has {len(dataset.val)} of {format_count(total, 'example')}, and "
            "what is measured on it depends on chance. --data.val_size 0.3 takes more."
        )


def _load_finished(folder: RunFolder, model_path: str) -> FittedPosterior | None:
    """The posterior of a finished training; None if training has to start or to continue.

    Raises:
        ValueError: The posterior is damaged, and there is no checkpoint to continue from.
    """
    try:
        return load_on_device(folder.path, None, [model_path]) if folder.is_fitted else None
    except (ValueError, OSError) as error:
        if not any(folder.checkpoint_folder.glob("*.pt")):
            raise ValueError(f"{error} There is no checkpoint to continue from: --overwrite trains again.") from error
        console.print(f"{error} Training continues from its checkpoints.", style="yellow", soft_wrap=True)
        return None


def _name_optimizer(config: TrainingConfig, factory: RunFactory) -> TrainingConfig:
    """The configuration with the optimizer of the network, where options of the default one are given."""
    is_default = isinstance(config.optimizer, DefaultOptimizer)
    return replace(config, optimizer=factory.config.optimizer) if is_default else config


def _get_model_path(model: Any) -> str:
    """Dotted path of the network that this command names, which its artefact may import."""
    spec = to_spec(model)
    return str(spec["init_args"]["path"] if model.func is build_with_new_head else spec["class_path"])


def _describe_interruption(stop: Interrupted, folder: Path) -> str:
    ability = (
        f"it cannot predict yet: {stop.missing}"
        if stop.missing
        else f"it can predict: {format_run_command('evaluate', folder, stop.fitted.info)}"
    )
    start = (
        "starts again, since there is no checkpoint"
        if stop.resume_step is None
        else f"continues after step {stop.resume_step}"
    )
    return (
        f"stopped {stop.place}; the posterior fitted so far is in {folder} ({ability}). To continue: the same "
        f"command with --resume, which {start}."
    )


def _describe_early_stop(folder: RunFolder) -> str:
    if any(folder.checkpoint_folder.glob("*.pt")):  # of members that were trained in worker processes
        return f"{folder.path} holds no posterior yet. --resume goes on from the checkpoints of its members"
    return f"before the first step; {folder.path} holds no posterior. --resume starts again"


def _make_callbacks(folder: RunFolder, options: Namespace) -> list[Callback]:
    loggers = [make_logger(kind, folder.log_folder) for kind in dict.fromkeys(options.log)]
    callbacks: list[Callback] = [
        folder.open_metrics_log(),
        *([MetricLogger(loggers, options.log_steps)] if loggers else []),
    ]
    if not sys.stderr.isatty():
        callbacks.append(ConsoleLogger(PlainConsole(stderr=True).print_text))
    return callbacks
