"""Verb `compare`: flat against plain training for several posteriors, over seeds."""

from pathlib import Path
from typing import Literal, get_args

from jsonargparse import ArgumentParser, Namespace

from flatbayes.cli.artifacts import console
from flatbayes.cli.help_text import describe_axes
from flatbayes.cli.options import (
    SplitName,
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
from flatbayes.core.names import format_count
from flatbayes.core.spec import short_name
from flatbayes.data import DataSource, DataSplits
from flatbayes.data.fingerprint import compute_fingerprint
from flatbayes.diagnostics import SharpnessConfig
from flatbayes.experiments import Comparison, EvaluationConfig, Method
from flatbayes.experiments.comparison import DEFAULT_POSTERIORS, choose_default_posteriors
from flatbayes.experiments.references import ReferenceFile
from flatbayes.posteriors import Posterior
from flatbayes.reporting import format_verdict, summary_tables, write_report
from flatbayes.training.distributed.workers import ParallelBackend

EvaluationName = Literal["calibration", "shift", "sharpness"]
"""Evaluations of `--diagnose`."""


def make_parser() -> ArgumentParser:
    """Options of `compare`."""
    parser = new_parser(
        "compare --data DATA --out FOLDER [options]",
        "Fit every posterior with plain and with flat training over seeds, and report the differences.",
    )
    parser.epilog = describe_axes("compare", "posteriors")
    add_training_options(parser)
    add_pretrained_options(parser)
    # An empty list stands for the default ones: jsonargparse would merge each entry that is given with the default
    # one at its place.
    names = ", ".join(map(short_name, DEFAULT_POSTERIORS))
    parser.add_argument(
        "--posteriors",
        type=list[Posterior | Method],
        default=[],
        help=f"posteriors to compare, such as [MCDropout, SWAG]; by default {names}",
    )
    parser.add_argument(
        "--num_seeds", type=int, default=5, help="number of seeds; the plain and the flat run of a pair share theirs"
    )
    parser.add_argument("--num_draws", type=int, default=30, help="networks averaged in a prediction")
    parser.add_argument("--split", type=SplitName, default="test", help="split to evaluate on")
    parser.add_argument(
        "--diagnose",
        action="store_true",
        help="also evaluate further calibration metrics, corrupted images, and the sharpness of the training loss",
    )
    parser.add_argument(
        "--evaluations",
        type=list[EvaluationName] | None,
        default=None,
        help="evaluations to run instead of all of --diagnose, such as [calibration, sharpness]",
    )
    parser.add_argument(
        "--ood",
        type=DataSource | None,
        default=None,
        metavar="NAME",
        help="out-of-distribution data: also evaluate how well uncertainty detects them",
    )
    parser.add_argument(
        "--reference",
        type=list[Path],
        default=[],
        metavar="FILE",
        help="files of flatbayes reference, [plain.safetensors, flat.safetensors]: also measure the distance of "
        "predictions to the exact posterior",
    )
    parser.add_argument("--sharpness_rho", type=float, default=0.05, help="radius of the sharpness measures")
    parser.add_argument(
        "--max_examples", type=int, default=1000, help="largest number of examples for these evaluations"
    )
    parser.add_argument(
        "--num_sharpness_draws", type=int, default=5, help="networks drawn for the sharpness measures"
    )
    parser.add_argument(
        "--num_jobs",
        type=int | None,
        default=None,
        help="processes, spread over the GPUs; by default one per GPU, or without GPUs one per core where that saves "
        "time",
    )
    parser.add_argument(
        "--backend",
        type=ParallelBackend,
        default="loky",
        help="backend of the processes: loky on this machine, ray on the cluster at RAY_ADDRESS",
    )
    parser.add_argument(
        "--share_trainings",
        type=bool,
        default=True,
        help="train networks that several posteriors need once; the results are the same without, with more time and "
        "less memory",
    )
    add_output_options(parser)
    return parser


def run(options: Namespace) -> None:
    """Run all fits, and write results, tables and the report."""
    options.init = list_init(options)
    is_default, options.posteriors = not options.posteriors, options.posteriors or list(DEFAULT_POSTERIORS)
    check_before_loading(options)
    folder, dataset = Path(options.out), options.data.load(0)
    model, config = make_model(options, dataset), make_config(options)
    fit_options = make_fit_options(options, dataset)
    if is_default:
        options.posteriors = choose_default_posteriors(model, dataset, config, fit_options)
    comparison = Comparison(
        source=options.data,
        model=model,
        posteriors=options.posteriors,
        flatness=options.flatness,
        config=config,
        num_seeds=options.num_seeds,
        num_draws=options.num_draws,
        split=options.split,
        evaluations=_select_evaluations(options, dataset),
        references=list(map(ReferenceFile.open, options.reference)),
        data_fingerprint=compute_fingerprint(dataset),
        options=fit_options,
    )
    comparison.check_compatibility(dataset)
    comparison.claim_folder(folder, overwrite=options.overwrite)
    try:
        results = comparison.run(
            folder, jobs=options.num_jobs, backend=options.backend, share_trainings=options.share_trainings
        )
    except KeyboardInterrupt as stop:
        runs = comparison.list_runs()
        num_finished = sum(run.load_result(folder / "runs") is not None for run in runs)
        verb = "is" if num_finished == 1 else "are"
        stop.add_note(
            f"{num_finished} of {format_count(len(runs), 'run')} {verb} finished and kept in {folder}; the same "
            "command does the others"
        )
        raise
    failures = "\n".join(results.failures)
    if not results.rows:
        raise RuntimeError(f"No pair of a plain and a flat run finished:\n{failures}")
    for table in summary_tables(results):
        console.print(table)
    console.print(f"\n{format_verdict(results)}\n", highlight=False)
    report = write_report(folder)
    console.print_text(f"results  {folder / 'results.json'}\nreport   {report}")
    if failures:
        raise RuntimeError(f"Some runs failed, the others are in the report:\n{failures}")


def _select_evaluations(options: Namespace, dataset: DataSplits) -> EvaluationConfig:
    is_classification = bool(dataset.class_names)
    names = options.evaluations or (get_args(EvaluationName) if options.diagnose else ())
    SharpnessConfig(rho=options.sharpness_rho)
    evaluations = EvaluationConfig(
        calibration="calibration" in names and is_classification and options.split == "test",
        shift="shift" in names and not dataset.is_regression and len(dataset.input_shape) == 3,
        ood=options.ood,
        sharpness_rho=options.sharpness_rho if "sharpness" in names else None,
        max_examples=options.max_examples,
        num_sharpness_draws=options.num_sharpness_draws,
    )
    evaluations.check(dataset, options.split)  # before the folder is made
    return evaluations
