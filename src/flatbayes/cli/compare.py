"""`flatbayes compare`: flat against plain, several posteriors, over seeds."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

from jsonargparse import ArgumentParser, Namespace

from flatbayes.cli.options import (
    PartName,
    chosen_model,
    chosen_recipe,
    new_parser,
    output_options,
    training_options,
)
from flatbayes.cli.runs import console
from flatbayes.comparison import Comparison, Measures, Method
from flatbayes.core.spec import to_spec
from flatbayes.data import Dataset, Source, held_out, shaped_like
from flatbayes.diagnostics import Probe
from flatbayes.posteriors import SWAG, Ensemble, MCDropout, Posterior
from flatbayes.reports import summary_tables, write_report
from flatbayes.training import rehearse
from flatbayes.training.processes.workers import Backend

Measure = Literal["calibration", "shift", "sharpness"]
"""What `--diagnose` measures."""

POSTERIORS = (MCDropout(rate=0.1), SWAG(rank=0), SWAG(), Ensemble())


def options() -> ArgumentParser:
    """Its options."""
    parser = new_parser(
        "compare --data DATA --out FOLDER [options]",
        "Fit every posterior plainly and flatly over seeds, and report who wins.",
    )
    training_options(parser)
    parser.add_argument(
        "--posteriors", type=list[Posterior | Method], help="those to compare, such as [MCDropout, SWAG]"
    )
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds; twins share theirs")
    parser.add_argument("--draws", type=int, default=30, help="networks averaged in a prediction")
    parser.add_argument("--part", type=PartName, default="test", help="evaluate on the test or the validation part")
    parser.add_argument(
        "--diagnose",
        action="store_true",
        help="also measure calibration in depth, corrupted images, and how sharp the training loss is around draws",
    )
    parser.add_argument(
        "--measures",
        type=list[Measure] | None,
        default=None,
        help="only some of that, such as [calibration, sharpness]",
    )
    parser.add_argument(
        "--outside",
        type=Source | None,
        default=None,
        metavar="NAME",
        help="also tell test inputs from foreign ones: the data that those come from",
    )
    parser.add_argument(
        "--sharpness_rho", type=float, default=0.05, help="radius that --diagnose measures sharpness at"
    )
    parser.add_argument("--examples", type=int, default=1000, help="most examples that any of that is measured on")
    parser.add_argument("--sharpness_draws", type=int, default=5, help="networks drawn for sharpness")
    parser.add_argument("--jobs", type=int | None, default=None, help="processes; by default one per core")
    parser.add_argument(
        "--backend",
        type=Backend,
        default="loky",
        help="what starts them: loky on this machine, ray on the cluster at RAY_ADDRESS",
    )
    output_options(parser)
    parser.set_defaults({"posteriors": to_spec(POSTERIORS)})
    return parser


def run(options: Namespace) -> None:
    """Every posterior, plain and flat, over seeds; ends with the table and the report."""
    folder, dataset = Path(options.out), options.data.load(0)
    comparison = Comparison(
        source=options.data,
        model=chosen_model(options, dataset),
        posteriors=[_described(one) for one in options.posteriors],
        flatness=options.flatness,
        recipe=chosen_recipe(options, dataset),
        seeds=options.seeds,
        num_draws=options.draws,
        part=options.part,
        measures=_measures(options, dataset),
    )
    for task in comparison.tasks()[: 2 * len(comparison.posteriors)]:
        rehearse(task.model, dataset, task.posterior, task.flatness, task.recipe)
    comparison.claim(folder, overwrite=options.overwrite)
    try:
        results = comparison.results(folder, jobs=options.jobs, backend=options.backend)
    except KeyboardInterrupt:
        console.print(f"[yellow]finished runs are kept in {folder}; the same command goes on with them[/yellow]")
        raise
    failures = "\n".join(results["failures"])
    if not results["summary"]:
        raise RuntimeError(f"No pair of twins came to an end:\n{failures}")
    report = write_report(folder)
    for table in summary_tables(results):
        console.print(table)
    console.print(f"results  {folder / 'results.json'}\nreport   {report}", highlight=False, soft_wrap=True)
    if failures:
        raise RuntimeError(f"Some runs failed, the others are in the report:\n{failures}")


def _measures(options: Namespace, dataset: Dataset) -> Measures:
    classes = not dataset.is_regression
    if options.outside is not None:
        if not classes:
            raise ValueError("Foreign inputs are told from others by classifiers, and these data are a regression.")
        shaped_like(held_out(options.outside).some(1).tensor, dataset.train.inputs)
    asked = options.measures or (get_args(Measure) if options.diagnose else ())
    Probe(rho=options.sharpness_rho)
    return Measures(
        calibration="calibration" in asked and classes and options.part == "test",
        shift="shift" in asked and classes and len(dataset.input_shape) == 3,
        outside=options.outside,
        sharpness=options.sharpness_rho if "sharpness" in asked else None,
        examples=options.examples,
        draws=options.sharpness_draws,
    )


def _described(one: Posterior | Method) -> Posterior | Method:
    return replace(one, recipe={k: _spec(v) for k, v in one.recipe.items()}) if isinstance(one, Method) else one


def _spec(value: Any) -> Any:
    if not isinstance(value, Namespace):
        return value
    spec = value.as_dict()  # with every default filled in, and None for the parameters an optimizer is yet to get
    return {**spec, "init_args": {k: v for k, v in spec["init_args"].items() if v is not None}}
