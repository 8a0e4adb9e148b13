"""Verb `certify`: PAC-Bayes certificate of the error rate, with the settings of a run."""

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from rich.table import Table

from flatbayes.certification import CertificationConfig, CertificationResult, certify, format_statement
from flatbayes.certification.result import format_confidence, format_upper_bound
from flatbayes.cli.artifacts import console, explain_entry, load_run_data, load_source, tolerate_read_only
from flatbayes.cli.models import rebuild_model
from flatbayes.cli.options import add_data_path_option, add_model_path_options
from flatbayes.cli.parsing import new_parser
from flatbayes.core.files import write_json
from flatbayes.core.names import format_count
from flatbayes.core.renames import translate_training_options
from flatbayes.core.spec import instantiate
from flatbayes.experiments.run_folder import CERTIFICATE_FILE, RunFolder, describe_environment
from flatbayes.flatness import Flatness, Plain
from flatbayes.prediction.metadata import read_metadata
from flatbayes.training import TrainingConfig


def make_parser() -> ArgumentParser:
    """Options of `certify`."""
    parser = new_parser(
        "certify FOLDER [options]",
        "Prove an upper bound on the error rate from the training data of a run.\n\n"
        "A network is trained with the settings of the run on one part of the training data, and a\n"
        "Gaussian posterior around it is certified on the rest. The posterior of the run is not used, since it was\n"
        "fitted to all of them.",
    )
    parser.add_argument("folder", type=Path, help="folder of a run")
    parser.add_class_arguments(CertificationConfig, None)
    parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers")
    parser.add_argument("--compare_plain", action="store_true", help="also certify training with the flatness Plain")
    add_model_path_options(parser)
    add_data_path_option(parser)
    parser.add_argument("--overwrite", action="store_true", help=f"replace the {CERTIFICATE_FILE} of the folder")
    (parser.groups or {})["CertificationConfig"].title = "certification"
    return parser


def run(options: Namespace) -> None:
    """Certify, print the numbers and the certified statement, and write them to the run folder."""
    certification_config = CertificationConfig(
        **{field.name: getattr(options, field.name) for field in fields(CertificationConfig)}
    )
    folder = RunFolder.open(Path(options.folder))
    target = folder.path / CERTIFICATE_FILE
    if target.exists() and not options.overwrite:
        raise ValueError(
            f"{target} exists: --overwrite replaces it. A certificate selected among several seeds is not valid."
        )
    config = folder.read_config()
    source = load_source(config, options.data, options.trust)
    if read_metadata(folder.path)["info"].get("target_names"):  # before data are read
        raise ValueError(
            f"Certificates exist for classification only, and {folder.path} holds several labels, or a "
            "regression, whose errors are unbounded."
        )
    with explain_entry("model"):
        model = _load_model(config["model"], options)
    with explain_entry("config"):
        training_config = _load_config(config)
    dataset = load_run_data(source, {folder.path: config}, options)
    with explain_entry("flatness"):
        run_flatness = instantiate(config["flatness"], package="flatbayes.flatness")
    if not isinstance(run_flatness, Flatness):
        raise ValueError(f"The entry 'flatness' of {folder.path} is no flatness, but {config['flatness']!r:.80}.")
    compare_plain = options.compare_plain and run_flatness != Plain()
    flatnesses = [run_flatness, Plain()] if compare_plain else [run_flatness]
    results = [
        certify(model, dataset, flatness, training_config, certification_config, seed=options.seed)
        for flatness in flatnesses
    ]
    for result in results:
        console.print(certificate_table(result))
    console.print(format_statement(results[0]), highlight=False)
    with tolerate_read_only():
        write_json(
            target,
            {
                "config": asdict(certification_config),
                "seed": options.seed,
                "environment": describe_environment(),
                "certificates": [result.to_dict() | {"statement": format_statement(result)} for result in results],
            },
        )
        console.print_text(f"saved    {target}")


def certificate_table(result: CertificationResult) -> Table:
    """The numbers of a certification with their descriptions."""
    error, test = result.error, result.test
    table = Table(title=f"networks around a network trained with {result.flatness}")
    table.add_column("quantity")
    table.add_column("value", justify="right")
    table.add_column("description")
    bound_set = f"on the {format_count(error.num_data, 'example')} of the bound set"
    rows: list[tuple[str, str, str]] = [
        ("examples", f"{result.num_prior_examples} + {error.num_data}", "prior set and bound set"),
        (
            "empirical error",
            f"{error.empirical_error:.4f}",
            f"mean of {format_count(error.num_draws, 'draw')}, {bound_set}",
        ),
        ("KL", f"{result.kl:.2f}", f"nats, from the prior with standard deviation {result.prior_std:g}"),
        (
            "bound",
            format_upper_bound(error.bound),
            f"on the error rate of draws, confidence {format_confidence(error.confidence)}",
        ),
        (
            "bound, cross entropy",
            format_upper_bound(result.cross_entropy.bound),
            "of draws, truncated and scaled to [0, 1]",
        ),
        (
            "bound, prior network",
            format_upper_bound(result.holdout_bound),
            f"held-out bound, from the error {result.prior_error:.4f}",
        ),
        (
            "test error, draws",
            f"{test.gibbs_error:.4f}",
            f"estimate on {format_count(test.num_data, 'test example')}",
        ),
        ("test error, ensemble", f"{test.ensemble_error:.4f}", "estimate; not certified"),
        ("test error, prior network", f"{test.prior_error:.4f}", "estimate"),
    ]
    for row in rows:
        table.add_row(*row)
    return table


def _load_model(spec: dict[str, Any], options: Namespace) -> Any:
    model = rebuild_model(spec, options.model, options.trust)
    return instantiate(spec, package="flatbayes.models", bind=True) if model is None else model


def _load_config(config: dict[str, Any]) -> TrainingConfig:
    options = translate_training_options(config["config"])
    optimizer, schedule = options.pop("optimizer"), options.pop("schedule")
    return TrainingConfig().with_options(
        **options,
        optimizer=instantiate(optimizer, package="torch.optim", bind=True),
        schedule=instantiate(schedule, package="flatbayes.training"),
    )
