"""Verb `evaluate`: metrics of a fitted posterior on held-out data."""

import itertools
import math
import sys
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from rich.table import Table

from flatbayes.checks import CheckReport
from flatbayes.cli.artifacts import console, load_run, tolerate_read_only
from flatbayes.cli.check import print_failures
from flatbayes.cli.options import SplitName, add_data_path_option, add_run_options
from flatbayes.cli.parsing import new_parser
from flatbayes.cli.predict import add_costs_option, get_output_names
from flatbayes.cli.thresholds import Thresholds
from flatbayes.core.names import format_count
from flatbayes.core.spec import short_name
from flatbayes.data import Split
from flatbayes.decisions import decide, mean_cost
from flatbayes.experiments.results import RESULTS_FILE
from flatbayes.experiments.run_folder import THRESHOLDS_FILE, RunFolder
from flatbayes.experiments.run_result import RunCost, RunResult
from flatbayes.likelihoods import CategoricalPredictive
from flatbayes.metrics.definitions import select_definitions
from flatbayes.prediction import Evaluation, FittedPosterior, check_num_draws, evaluate
from flatbayes.prediction.description import name_flatness
from flatbayes.prediction.evaluation import predict_labelled
from flatbayes.prediction.placement import PredictionPrecision


def make_parser() -> ArgumentParser:
    """Options of `evaluate`."""
    parser = new_parser(
        "evaluate FOLDER [options]",
        "Compute metrics of a fitted posterior on the data of its run. The posterior is not changed.",
    )
    add_run_options(parser)
    add_data_path_option(parser)
    parser.add_argument("--split", type=SplitName, default="test", help="split of the data to evaluate on")
    add_costs_option(parser, "print the mean cost of the decisions of least expected cost")
    return parser


def run(options: Namespace) -> None:
    """Evaluate the posterior of a run on one split of its data."""
    check_num_draws(options.num_draws)
    folder, fitted, split = load_run(options)
    evaluate_run(
        fitted,
        folder,
        split,
        options.split,
        options.num_draws,
        options.batch_size,
        options.seed,
        precision=options.precision,
        compiled=options.compiled,
        costs=options.costs,
    )


def evaluate_run(
    fitted: FittedPosterior,
    folder: RunFolder,
    split: Split,
    split_name: str,
    num_draws: int,
    batch_size: int,
    seed: int,
    *,
    precision: PredictionPrecision | None = None,
    compiled: bool = False,
    costs: Any = None,
) -> CheckReport:
    """Compute metrics on a split, print them with the checks that fail, and add them to `results.json` of the folder.

    Earlier results of other settings stay in the file. A folder that is read-only gives a warning.
    The files of the posterior are not written: BatchNorm statistics that are estimated here stay in memory.

    `costs` are those of decisions, [classes, decisions], whose mean is printed.

    Returns:
        The self-checks on these examples.
    """
    config = folder.read_config()
    options: dict[str, Any] = {
        "batch_size": batch_size,
        "seed": seed,
        "show_progress": sys.stderr.isatty(),
        "precision": precision,
        "compiled": compiled,
    }
    with fitted.share_predictions():
        evaluation = evaluate(fitted, split.inputs, split.targets, num_draws, **options)
        report = fitted.check(split.inputs, split.targets, num_draws, **options)
        costs_text = "" if costs is None else describe_costs(fitted, split, costs, num_draws, **options)
    regions_text, regions = evaluate_thresholds(fitted, folder, split, split_name, **options)
    result = RunResult(
        data=short_name(config["data"]),
        model=short_name(config["model"]),
        posterior=short_name(config["posterior"]),
        flatness=short_name(config["flatness"]),
        seed=config["seed"],
        split=split_name,
        num_networks=evaluation.num_networks,
        metrics=evaluation.metrics,
        cost=RunCost(**fitted.info.get("cost", {})),
        reliability=evaluation.reliability,
        settings={
            "num_draws": num_draws,
            "draw_seed": seed,
            **({} if precision is None else {"precision": precision}),
            **({} if fitted.calibration is None else {"calibration": fitted.calibration.describe()}),
        },
        raw_metrics=evaluation.raw_metrics,
        failed_checks={finding.name: finding.message for finding in report.failed},
        regions=regions,
    )
    title = f"{result.posterior} x {name_flatness(result.flatness, fitted.info)}"
    title += f" on {format_count(len(split), f'{split_name} example')}"
    console.print(make_table(evaluation, title, fitted.info.get("target_names")))
    if fitted.calibration is not None:
        console.print_text(f"calibration: {fitted.calibration.describe()}")
    if costs_text:
        console.print_text(costs_text)
    if regions_text:
        console.print_text(regions_text)
    print_failures(report, folder.path, fitted.info)
    num_results = 0
    with tolerate_read_only():
        num_results = folder.add_result(result)
    if num_results > 1:
        console.print_text(
            f"{folder.path / RESULTS_FILE} has {format_count(num_results, 'result')} on the {split_name} split, of "
            "different settings (num_draws, seed, precision, calibration); each has its own."
        )
    return report


def describe_costs(fitted: FittedPosterior, split: Split, costs: Any, num_draws: int, **options: Any) -> str:
    """Mean cost of the decisions of least expected cost, and of the most probable classes where these are decisions.

    Raises:
        ValueError: The predictions are not one class of each example, or the costs are not those of them.
    """
    predictive, targets, _ = predict_labelled(fitted, split.inputs, split.targets, num_draws, **options)
    if not isinstance(predictive, CategoricalPredictive):
        raise ValueError(
            "--costs are those of one class of each example, and these predictions are of another kind. Leave it out."
        )
    text = f"mean cost: {format_metric(mean_cost(decide(predictive, costs), targets, costs))} with the decisions of "
    text += "least expected cost"
    if len(costs[0]) < predictive.mean.shape[1]:
        return text
    return f"{text}, {format_metric(mean_cost(predictive.top_class, targets, costs))} with the most probable classes"


def evaluate_thresholds(
    fitted: FittedPosterior, folder: RunFolder, split: Split, split_name: str, **options: Any
) -> tuple[str, dict[str, Any]]:
    """Coverage and size of prediction regions, and errors of accepted predictions, where the run has thresholds.

    Thresholds are not evaluated on the split that they were computed from; the draws are those of the thresholds.

    Returns:
        A text to print, and plain data for `results.json`; both are empty without thresholds.
    """
    if not (folder.path / THRESHOLDS_FILE).is_file():
        return "", {}
    try:
        thresholds = Thresholds.load(folder.path, fitted)
    except ValueError as error:  # the metrics do not need them
        return f"Prediction regions are not evaluated: {error}", {}
    if thresholds.source == split_name:
        metrics = "" if fitted.calibration is None else "calibrated metrics are better than on new examples, and "
        return f"Calibration used the {split_name} split: {metrics}prediction regions are not evaluated on it.", {}
    options |= {"seed": thresholds.seed}
    predictive, targets, _ = predict_labelled(fitted, split.inputs, split.targets, thresholds.num_draws, **options)
    evaluation = thresholds.evaluate(predictive, targets, get_output_names(fitted.info, predictive))
    return evaluation.summary(), evaluation.to_dict()


def make_table(evaluation: Evaluation, title: str, target_names: list[str] | None) -> Table:
    """The metrics with their definitions; for a posterior with a calibration, also those without it."""
    table = Table(title=title)
    raw, definitions = evaluation.raw_metrics, select_definitions(evaluation.metrics)
    table.add_column("metric")
    for column in ("raw", "calibrated") if raw else ("value",):
        table.add_column(column, justify="right")
    table.add_column("definition")
    for metric, value in evaluation.metrics.items():
        values = [raw[metric], value] if raw else [value]
        table.add_row(metric, *map(format_metric, values), definitions[metric])
        names = target_names or itertools.count()
        for name, target_value in zip(names, evaluation.target_metrics.get(metric, ())):  # noqa: B905 - count has no end
            blanks = [""] if raw else []
            table.add_row(f"  {name}", *blanks, format_metric(target_value), "of this target, in its unit")
    return table


def format_metric(value: float) -> str:
    """A metric with four decimals; a dash where these examples do not define it, such as an AUROC without errors."""
    return "–" if math.isnan(value) else f"{value:.4f}"
