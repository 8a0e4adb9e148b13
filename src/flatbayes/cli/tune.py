"""Verb `tune`: hyperparameters, by default rho, by a metric on validation data."""

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace
from rich.table import Table

from flatbayes.cli.artifacts import console, protect_results
from flatbayes.cli.help_text import describe_axes
from flatbayes.cli.options import (
    add_output_options,
    add_pretrained_options,
    add_training_options,
    check_before_loading,
    list_init,
    make_config,
    make_fit_options,
    make_model,
)
from flatbayes.cli.parsing import new_parser
from flatbayes.core.files import atomic_write, write_json
from flatbayes.core.names import format_count
from flatbayes.core.spec import to_spec
from flatbayes.data.fingerprint import compute_fingerprint
from flatbayes.experiments import ExperimentRun, TuningResult, default_ranges, is_higher_better, tune_hyperparameters
from flatbayes.experiments.run_folder import TUNED_CONFIG_FILE, TUNING_FILE, clear_folder
from flatbayes.experiments.tuning import check_counts
from flatbayes.posteriors import SWAG, Posterior
from flatbayes.prediction import check_num_draws
from flatbayes.training import dry_run

BAR_WIDTH = 30


def make_parser() -> ArgumentParser:
    """Options of `tune`."""
    parser = new_parser(
        "tune --data DATA --out FOLDER [options]",
        "Tune rho (or other numbers) on validation data, and write a configuration for fit.",
    )
    parser.epilog = describe_axes("tune", "posterior")
    add_training_options(parser)
    add_pretrained_options(parser)
    parser.add_argument("--posterior", type=Posterior, help="posterior to fit")
    parser.add_argument(
        "--ranges",
        type=dict[str, tuple[float, float]] | None,
        default=None,
        help='hyperparameters and their ranges, such as {"flatness.rho": [0.01, 1], "posterior.temperature": [0.01, '
        "1]}; by default rho from a tenth to twenty times the value of the flatness, and "
        "further where the best value is at an edge",
    )
    parser.add_argument(
        "--num_trials",
        type=int,
        default=20,
        help="total number of settings to try; with rho also plain training",
    )
    parser.add_argument("--num_seeds", type=int, default=3, help="runs of each setting, averaged")
    parser.add_argument("--metric", type=str, default="nll", help="metric on the validation split that is optimized")
    parser.add_argument("--num_draws", type=int, default=30, help="networks averaged in a prediction")
    parser.add_argument(
        "--share_trainings",
        type=bool,
        default=True,
        help="train each seed once where no tuned number changes the training; the results are the same without",
    )
    parser.add_argument(
        "--storage",
        type=str | None,
        default=None,
        help="URL of a database that holds the study; by default a file in the folder",
    )
    add_output_options(parser)
    parser.set_defaults({"posterior": to_spec(SWAG())})
    return parser


def run(options: Namespace) -> None:
    """Run the trials, print them, and write the best setting as a configuration for `fit --config`."""
    check_num_draws(options.num_draws)
    is_higher_better(options.metric)
    check_counts(options.num_trials, options.num_seeds)
    options.init = list_init(options)
    check_before_loading(options)
    folder, dataset = Path(options.out), options.data.load(0)
    training_config, fit_options = make_config(options), make_fit_options(options, dataset)
    model = make_model(options, dataset)
    base_run = ExperimentRun(
        source=options.data,
        model=model,
        posterior=options.posterior,
        flatness=options.flatness,
        config=training_config,
        seed=0,
        num_draws=options.num_draws,
        data_fingerprint=compute_fingerprint(dataset),
        model_fingerprint=fit_options.fingerprint_start(model),
        options=fit_options,
    )
    method = base_run.posterior, base_run.flatness, training_config
    dry_run(model, dataset, *method, **fit_options.to_arguments())
    ranges = options.ranges or default_ranges(base_run)
    settings = describe_settings(base_run, ranges, options)
    protect_results(folder / TUNING_FILE, settings, overwrite=options.overwrite)
    if (folder / TUNED_CONFIG_FILE).exists() and not ((folder / TUNING_FILE).exists() or options.overwrite):  # of 0.1
        raise ValueError(f"{folder / TUNED_CONFIG_FILE} has the result of unknown settings: --overwrite replaces it.")
    if options.overwrite:
        clear_folder(folder)
    try:
        tuned = tune_hyperparameters(
            base_run,
            ranges,
            num_trials=options.num_trials,
            num_seeds=options.num_seeds,
            folder=folder,
            storage=options.storage,
            metric=options.metric,
            show_progress=sys.stderr.isatty(),
            share_trainings=options.share_trainings,
        )
    except KeyboardInterrupt as stop:
        stop.add_note(f"finished trials are kept in {options.storage or folder}; the same command does the others")
        raise
    with atomic_write(folder / TUNED_CONFIG_FILE) as temporary:
        temporary.write_text(yaml.safe_dump(_best_config(tuned.best_run, options), sort_keys=False), encoding="utf-8")
    write_json(folder / TUNING_FILE, {"settings": settings, "trials": tuned.trials, "plain_score": tuned.plain_score})
    console.print(_trials_table(tuned))
    for note in tuned.notes:
        console.print_text(note)
    path = shlex.quote(str(folder / TUNED_CONFIG_FILE))
    console.print_text(f"best     {tuned.best_name}\nnext     flatbayes fit --config {path} --out FOLDER")


def describe_settings(
    base_run: ExperimentRun, ranges: Mapping[str, tuple[float, float]], options: Namespace
) -> dict[str, Any]:
    """What determines the best hyperparameters, apart from the number of trials, as plain data."""
    numbers = {name: options[name] for name in ("metric", "num_seeds", "num_draws")}
    return numbers | {"ranges": {name: list(ends) for name, ends in ranges.items()}} | _best_config(base_run, options)


def _best_config(best_run: ExperimentRun, options: Namespace) -> dict[str, Any]:
    objects = {"data": "source", "model": "model", "posterior": "posterior", "flatness": "flatness"}
    specs = {option: to_spec(getattr(best_run, name)) for option, name in objects.items()}
    names = ("init", "likelihood", "new_head", "freeze", "input_mean", "input_std")
    pretrained = {name: options[name] for name in names if options.init or options[name] not in (None, [], False)}
    return specs | best_run.config.to_dict() | pretrained


def _trials_table(tuned: TuningResult) -> Table:
    scores = [trial["score"] for trial in tuned.trials if trial["score"] is not None]
    low, high = min(scores), max(scores)
    table = Table(title=format_count(len(tuned.trials), "trial"))
    for name in (*tuned.names, tuned.metric):
        table.add_column(name, justify="right")
    table.add_column(f"{low:.4f} … {high:.4f}", min_width=BAR_WIDTH)
    for trial in sorted(tuned.trials, key=lambda trial: [trial[name] or 0.0 for name in tuned.names]):
        score = trial["score"]
        values = [f"{trial[name]:.3g}" for name in tuned.names]
        if score is None:
            table.add_row(*values, "diverged", "")
            continue
        filled = round(BAR_WIDTH * (score - low) / (high - low)) if high > low else 0
        table.add_row(*values, f"{score:.4f}", "█" * filled + ("◀ best" if score == tuned.best_score else ""))
    return table
