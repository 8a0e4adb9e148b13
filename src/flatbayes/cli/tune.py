"""`flatbayes tune`: the radius, and whatever else, by its loss on validation data."""

import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace
from rich.table import Table

from flatbayes.cli.options import chosen_model, chosen_recipe, new_parser, output_options, training_options
from flatbayes.cli.runs import console
from flatbayes.comparison import Task, Tuned, direction, tune, usual_ranges
from flatbayes.core.files import replacing
from flatbayes.core.spec import label, to_spec
from flatbayes.posteriors import SWAG, Posterior
from flatbayes.prediction import check_num_draws
from flatbayes.training import Recipe, rehearse
from flatbayes.training.run_folder import clear

CONFIG, BAR = "tuned.yaml", 30


def options() -> ArgumentParser:
    """Its options."""
    parser = new_parser(
        "tune --data DATA --out FOLDER [options]",
        "Choose rho (or other numbers) by the loss on validation data, and write a configuration for fit.",
    )
    training_options(parser)
    parser.add_argument("--posterior", type=Posterior, help="what is fitted")
    parser.add_argument(
        "--ranges",
        type=dict[str, tuple[float, float]] | None,
        default=None,
        help='what to tune, such as {"flatness.rho": [0.01, 1], "posterior.temperature": [0.01, 1]}; by default rho '
        "from a tenth to twenty times that of the flatness",
    )
    parser.add_argument("--trials", type=int, default=20, help="settings to try in all")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each setting, averaged")
    parser.add_argument("--metric", type=str, default="nll", help="what decides, on the validation part")
    parser.add_argument("--draws", type=int, default=30, help="networks averaged in a prediction")
    parser.add_argument(
        "--storage",
        type=str | None,
        default=None,
        help="URL of a database that holds the study; by default a file in the folder",
    )
    output_options(parser)
    parser.set_defaults({"posterior": to_spec(SWAG())})
    return parser


def run(options: Namespace) -> None:
    """Try, show the curve, write the best where `fit --config` reads it."""
    check_num_draws(options.draws)
    direction(options.metric)
    if options.trials < 1 or options.seeds < 1:
        raise ValueError(f"trials and seeds must be at least 1, got {options.trials} and {options.seeds}.")
    folder, dataset = Path(options.out), options.data.load(0)
    recipe = chosen_recipe(options, dataset)
    task = Task(
        source=options.data,
        model=chosen_model(options, dataset),
        posterior=options.posterior,
        flatness=options.flatness,
        recipe=recipe,
        seed=0,
        num_draws=options.draws,
    )
    rehearse(task.model, dataset, task.posterior, task.flatness, recipe)
    if options.overwrite:
        clear(folder)
    try:
        tuned = tune(
            task,
            options.ranges or usual_ranges(task),
            trials=options.trials,
            seeds=options.seeds,
            folder=folder,
            storage=options.storage,
            metric=options.metric,
            progress=sys.stderr.isatty(),
        )
    except KeyboardInterrupt:
        console.print(f"[yellow]finished trials are kept in {folder}; the same command goes on with them[/yellow]")
        raise
    with replacing(folder / CONFIG) as temporary:
        temporary.write_text(yaml.safe_dump(_config(tuned.best), sort_keys=False), encoding="utf-8")
    console.print(_curve(tuned, options.metric))
    best = f"{label(tuned.best.posterior)} x {label(tuned.best.flatness)}"
    console.print(
        f"best     {best}\nnext     flatbayes fit --config {folder / CONFIG} --out FOLDER",
        highlight=False,
        soft_wrap=True,
    )


def _config(task: Task) -> dict[str, Any]:
    recipe = {field.name: to_spec(getattr(task.recipe, field.name)) for field in fields(Recipe)}
    chosen = {name: to_spec(getattr(task, {"data": "source"}.get(name, name))) for name in ("data", "model")}
    return chosen | {"posterior": to_spec(task.posterior), "flatness": to_spec(task.flatness)} | recipe


def _curve(tuned: Tuned, metric: str) -> Table:
    names = [name for name in tuned.trials[0] if name != "score"]
    scores = [trial["score"] for trial in tuned.trials if trial["score"] is not None]
    low, high = min(scores), max(scores)
    best = high if tuned.higher_is_better else low
    table = Table(title=f"{len(tuned.trials)} trials")
    for name in (*names, metric):
        table.add_column(name, justify="right")
    table.add_column(f"{low:.4f} … {high:.4f}", min_width=BAR)
    for trial in sorted(tuned.trials, key=lambda trial: [trial[name] or 0.0 for name in names]):
        score = trial["score"]
        values = [f"{trial[name]:.3g}" for name in names]
        if score is None:
            table.add_row(*values, "diverged", "")
            continue
        filled = round(BAR * (score - low) / (high - low)) if high > low else 0
        table.add_row(*values, f"{score:.4f}", "█" * filled + ("◀ best" if score == best else ""))
    return table
