"""What each verb does with its options."""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from rich.console import Console
from rich.table import Table

from flatbayes.comparison import Comparison
from flatbayes.core.files import read_json
from flatbayes.core.spec import build, label, locate, to_spec
from flatbayes.data import Dataset, Part, PredictionWriter, Source, read_inputs
from flatbayes.metrics import DEFINITIONS
from flatbayes.models import MLP, ConvNet
from flatbayes.prediction import FittedPosterior, check_num_draws, evaluate
from flatbayes.reports import summary_table, write_report
from flatbayes.training import Interrupted, Recipe, fit, rehearse
from flatbayes.training.run_folder import RunFolder

Options = Namespace
console = Console()


def compare(options: Options) -> None:
    """Every posterior, plain and flat, over seeds; ends with the table and the report."""
    folder, dataset = Path(options.out), options.data.load(0)
    comparison = Comparison(
        source=options.data,
        model=_model(options.model, dataset),
        posteriors=options.posteriors,
        flatness=options.flatness,
        recipe=_recipe(options),
        seeds=options.seeds,
        num_draws=options.draws,
        part=options.part,
    )
    for posterior in comparison.posteriors:
        rehearse(comparison.model, dataset, posterior, comparison.flatness, comparison.recipe)
    comparison.claim(folder, overwrite=options.overwrite)
    try:
        results = comparison.results(folder, jobs=options.jobs)
    except KeyboardInterrupt:
        console.print(f"[yellow]finished runs are kept in {folder}; the same command goes on with them[/yellow]")
        raise
    failures = "\n".join(results["failures"])
    if not results["summary"]:
        raise RuntimeError(f"No pair of twins came to an end:\n{failures}")
    report = write_report(folder)
    console.print(summary_table(results))
    console.print(f"results  {folder / 'results.json'}\nreport   {report}", highlight=False, soft_wrap=True)
    if failures:
        raise RuntimeError(f"Some runs failed, the others are in the report:\n{failures}")


def fit_one(options: Options) -> None:
    """One posterior, kept in a run folder and measured on the validation part."""
    check_num_draws(options.draws)
    dataset = options.data.load(options.seed)
    model, recipe = _model(options.model, dataset), _recipe(options)
    rehearse(model, dataset, options.posterior, options.flatness, recipe)
    config = {
        "data": to_spec(options.data),
        "model": to_spec(model),
        "posterior": to_spec(options.posterior),
        "flatness": to_spec(options.flatness),
        "recipe": to_spec(recipe)["init_args"],
        "seed": options.seed,
    }
    folder = RunFolder.create(Path(options.out), config, overwrite=options.overwrite)
    try:
        fitted = fit(
            model, dataset, options.posterior, options.flatness, recipe, seed=options.seed, watch=folder.log()
        )
    except Interrupted as stop:
        folder.save(stop.fitted)
        console.print(f"[yellow]{stop}; what was fitted by then is in {folder.path}[/yellow]", soft_wrap=True)
        raise
    folder.save(fitted)
    _measure(fitted, folder, dataset.val, "val", options.draws, 256, 0)
    console.print(
        f"kept in  {folder.path}\nnext     flatbayes evaluate {folder.path}", highlight=False, soft_wrap=True
    )


def evaluate_run(options: Options) -> None:
    """A run's posterior on a part of its data."""
    check_num_draws(options.draws)
    folder = RunFolder.open(Path(options.folder))
    config = folder.config()
    fitted = _load(folder.path, options.model)
    source: Source = build(config["data"], within="flatbayes.data")
    part = getattr(source.load(config["seed"]), options.part)
    _measure(fitted, folder, part, options.part, options.draws, options.batch_size, options.seed)


def predict(options: Options) -> None:
    """Class probabilities and uncertainties for every row of a file or image of a folder."""
    target = Path(options.output)
    if target.exists() and not options.overwrite:
        raise ValueError(f"{target} exists: choose another --output, or --overwrite.")
    check_num_draws(options.draws)
    writer = PredictionWriter(target)
    fitted = _load(Path(options.folder), options.model)
    info, count = fitted.info, 0
    inputs = read_inputs(Path(options.input), tuple(info["input_shape"]), tuple(info["feature_names"]))
    with writer, console.status("predicting") as status:
        for names, examples in inputs:
            predictive = fitted.predict(examples, options.draws, batch_size=options.batch_size, seed=options.seed)
            columns = dict(predictive.columns(info["class_names"]))
            writer.write(columns if names is None else {"name": names, **columns})
            count += len(examples)
            status.update(f"predicting: {count} done")
    console.print(f"{count} predictions in {target}", highlight=False, soft_wrap=True)


def report(options: Options) -> None:
    """The HTML report, from the results that are there."""
    console.print(f"report   {write_report(Path(options.folder))}", highlight=False, soft_wrap=True)


def _measure(
    fitted: FittedPosterior, folder: RunFolder, part: Part, name: str, draws: int, batch_size: int, seed: int
) -> None:
    config = folder.config()
    show, known = sys.stderr.isatty(), len(fitted.statistics_of_draws)
    found = evaluate(fitted, part.inputs, part.targets, draws, batch_size=batch_size, seed=seed, progress=show)
    if len(fitted.statistics_of_draws) > known:  # estimating them again would cost more than keeping them
        folder.save(fitted)
    run = {key: label(config[key]) for key in ("data", "model", "posterior", "flatness")} | {
        "seed": config["seed"],
        "part": name,
        "num_networks": found.num_networks,
        "metrics": found.metrics,
        "cost": fitted.info.get("cost", {}),
        "reliability": found.reliability,
    }
    folder.add_result(run)
    table = Table(title=f"{run['posterior']} x {run['flatness']} on {len(part)} {name} examples")
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("definition")
    for metric, value in found.metrics.items():
        table.add_row(metric, f"{value:.4f}", DEFINITIONS[metric])
    console.print(table)


def _load(folder: Path, model: str | None) -> FittedPosterior:
    architecture = None
    if model is not None:
        spec = read_json(folder / "posterior.json")["info"].get("model") or {"init_args": {}}
        architecture = partial(locate(model), **spec["init_args"])
    fitted = FittedPosterior.load(folder, architecture)
    return fitted.to("cuda") if torch.cuda.is_available() else fitted


def _recipe(options: Options) -> Recipe:
    return Recipe(**{name: getattr(options, name) for name in Recipe.__dataclass_fields__})


def _model(spec: Any, dataset: Dataset) -> Any:
    if spec is not None:
        return build(spec, bind=True)
    return partial(ConvNet if len(dataset.input_shape) == 3 else MLP)
