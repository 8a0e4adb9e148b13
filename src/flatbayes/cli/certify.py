"""`flatbayes certify`: what can be proven about networks trained as a run's were."""

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from rich.table import Table

from flatbayes.certification import CertificationConfig, CertificationResult, certify, format_statement
from flatbayes.certification.result import format_confidence, format_upper_bound
from flatbayes.cli.artifacts import console, load_source
from flatbayes.cli.models import rebuild_model
from flatbayes.cli.options import add_data_path_option
from flatbayes.cli.parsing import new_parser
from flatbayes.core.files import write_json
from flatbayes.core.renames import translate_training_options
from flatbayes.core.spec import instantiate
from flatbayes.experiments.run_folder import CERTIFICATE_FILE, RunFolder, describe_environment
from flatbayes.flatness import Plain
from flatbayes.training import TrainingConfig


def make_parser() -> ArgumentParser:
    """Its options."""
    parser = new_parser(
        "certify FOLDER [options]",
        "Prove an error rate on the run's own training data.\n\n"
        "A network is trained on one share of them as the run's was, and a Gaussian around it is\n"
        "certified on the others; the run's own posterior has seen them all and is not used.",
    )
    parser.add_argument("folder", type=Path, help="folder of a run")
    parser.add_class_arguments(CertificationConfig, None)
    parser.add_argument("--seed", type=int, default=0, help="decides everything random")
    parser.add_argument("--compare_plain", action="store_true", help="also certify the plain twin")
    parser.add_argument(
        "--model",
        type=str | None,
        default=None,
        help="dotted path of the model, if it is not part of flatbayes",
    )
    add_data_path_option(parser)
    parser.add_argument("--overwrite", action="store_true", help=f"replace the {CERTIFICATE_FILE} of the folder")
    (parser.groups or {})["CertificationConfig"].title = "plan"
    return parser


def run(options: Namespace) -> None:
    """Certify, show the numbers and what they promise, and keep them in the run folder."""
    plan = CertificationConfig(**{field.name: getattr(options, field.name) for field in fields(CertificationConfig)})
    folder = RunFolder.open(Path(options.folder))
    target = folder.path / CERTIFICATE_FILE
    if target.exists() and not options.overwrite:
        raise ValueError(f"{target} exists: --overwrite replaces it. To try seeds and keep the best is no proof.")
    config = folder.read_config()
    source = load_source(config, options.data)
    dataset, model, recipe = (
        source.load(config["seed"]),
        _load_model(config["model"], options.model),
        _load_config(config),
    )
    flat = instantiate(config["flatness"], package="flatbayes.flatness")
    found = [
        certify(model, dataset, flatness, recipe, plan, seed=options.seed)
        for flatness in ([flat, Plain()] if options.compare_plain and flat != Plain() else [flat])
    ]
    write_json(
        target,
        {
            "config": asdict(plan),
            "seed": options.seed,
            "environment": describe_environment(),
            "certificates": [one.to_dict() | {"promise": format_statement(one)} for one in found],
        },
    )
    for one in found:
        console.print(certificate_table(one))
    console.print(format_statement(found[0]), highlight=False)
    console.print(f"kept in  {target}", highlight=False, soft_wrap=True)


def certificate_table(result: CertificationResult) -> Table:
    """The numbers of a certification, each with what it is."""
    error, test = result.error, result.test
    shown = Table(title=f"networks around one trained with {result.flatness}")
    shown.add_column("quantity")
    shown.add_column("value", justify="right")
    shown.add_column("what it is")
    seen = f"on the {error.num_data} examples of the bound"
    rows: list[tuple[str, str, str]] = [
        ("examples", f"{result.num_prior_examples} + {error.num_data}", "for the prior, for the bound"),
        ("empirical error", f"{error.empirical_error:.4f}", f"mean of {error.num_draws} draws, {seen}"),
        ("KL", f"{result.kl:.2f}", f"nats, from the prior of standard deviation {result.prior_std:g}"),
        (
            "bound",
            format_upper_bound(error.bound),
            f"on the error rate of draws, confidence {format_confidence(error.confidence)}",
        ),
        (
            "bound, cross entropy",
            format_upper_bound(result.cross_entropy.bound),
            "of draws, cut off and scaled to [0, 1]",
        ),
        (
            "bound, prior network",
            format_upper_bound(result.holdout_bound),
            f"alone, held-out, from {result.prior_error:.4f}",
        ),
        ("test error, draws", f"{test.gibbs_error:.4f}", f"estimate on {test.num_data} test examples"),
        ("test error, ensemble", f"{test.ensemble_error:.4f}", "estimate; of this nothing is promised"),
        ("test error, prior network", f"{test.prior_error:.4f}", "estimate"),
    ]
    for row in rows:
        shown.add_row(*row)
    return shown


def _load_model(spec: dict[str, Any], path: str | None) -> Any:
    if path is not None:
        return rebuild_model(spec, path)
    if not spec["class_path"].startswith("flatbayes.models."):
        raise ValueError(
            f"The model of this run is {spec['class_path']}, which is not part of flatbayes, and nothing is imported "
            "because a file says so: give its dotted path, --model."
        )
    return instantiate(spec, package="flatbayes.models", bind=True)


def _load_config(config: dict[str, Any]) -> TrainingConfig:
    options = translate_training_options(config["config"])
    optimizer, schedule = options.pop("optimizer"), options.pop("schedule")
    return TrainingConfig().with_options(
        **options,
        optimizer=instantiate(optimizer, package="torch.optim", bind=True),
        schedule=instantiate(schedule, package="flatbayes.training"),
    )
