"""`flatbayes certify`: what can be proven about networks trained as a run's were."""

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from rich.table import Table

from flatbayes.certification import Certified, Plan, certify, promise
from flatbayes.certification.promise import at_least, at_most
from flatbayes.cli.models import rebuilt
from flatbayes.cli.options import new_parser
from flatbayes.cli.runs import console
from flatbayes.core.environment import environment
from flatbayes.core.files import write_json
from flatbayes.core.spec import build
from flatbayes.data import Source
from flatbayes.flatness import Plain
from flatbayes.training import Recipe
from flatbayes.training.run_folder import RunFolder

CERTIFICATE = "certificate.json"


def options() -> ArgumentParser:
    """Its options."""
    parser = new_parser(
        "certify FOLDER [options]",
        "Prove an error rate on the run's own training data.\n\n"
        "A network is trained on one share of them as the run's was, and a Gaussian around it is\n"
        "certified on the others; the run's own posterior has seen them all and is not used.",
    )
    parser.add_argument("folder", type=Path, help="folder of a run")
    parser.add_class_arguments(Plan, None)
    parser.add_argument("--seed", type=int, default=0, help="decides everything random")
    parser.add_argument("--twin", action="store_true", help="also certify the plain twin")
    parser.add_argument(
        "--model",
        type=str | None,
        default=None,
        help="dotted path of the model, if it is not part of flatbayes",
    )
    parser.add_argument("--overwrite", action="store_true", help=f"replace the {CERTIFICATE} of the folder")
    (parser.groups or {})["Plan"].title = "plan"
    return parser


def run(options: Namespace) -> None:
    """Certify, show the numbers and what they promise, and keep them in the run folder."""
    plan = Plan(**{field.name: getattr(options, field.name) for field in fields(Plan)})
    folder = RunFolder.open(Path(options.folder))
    target = folder.path / CERTIFICATE
    if target.exists() and not options.overwrite:
        raise ValueError(f"{target} exists: --overwrite replaces it. To try seeds and keep the best is no proof.")
    config = folder.config()
    source: Source = build(config["data"], within="flatbayes.data")
    dataset, model, recipe = source.load(config["seed"]), _model(config["model"], options.model), _recipe(config)
    flat = build(config["flatness"], within="flatbayes.flatness")
    found = [
        certify(model, dataset, flatness, recipe, plan, seed=options.seed)
        for flatness in ([flat, Plain()] if options.twin and flat != Plain() else [flat])
    ]
    write_json(
        target,
        {
            "plan": asdict(plan),
            "seed": options.seed,
            "environment": environment(),
            "certificates": [one.to_dict() | {"promise": promise(one)} for one in found],
        },
    )
    for one in found:
        console.print(table(one))
    console.print(promise(found[0]), highlight=False)
    console.print(f"kept in  {target}", highlight=False, soft_wrap=True)


def table(certified: Certified) -> Table:
    """The numbers of a certification, each with what it is."""
    error, test = certified.error, certified.test
    shown = Table(title=f"networks around one trained with {certified.flatness}")
    shown.add_column("quantity")
    shown.add_column("value", justify="right")
    shown.add_column("what it is")
    seen = f"on the {error.num_data} examples of the bound"
    rows: list[tuple[str, str, str]] = [
        ("examples", f"{certified.num_prior} + {error.num_data}", "for the prior, for the bound"),
        ("empirical error", f"{error.empirical_error:.4f}", f"mean of {error.num_draws} draws, {seen}"),
        ("KL", f"{certified.kl:.2f}", f"nats, from the prior of standard deviation {certified.prior_std:g}"),
        ("bound", at_most(error.bound), f"on the error rate of draws, confidence {at_least(error.confidence)}"),
        ("bound, cross entropy", at_most(certified.cross_entropy.bound), "of draws, cut off and scaled to [0, 1]"),
        (
            "bound, prior network",
            at_most(certified.held_out_bound),
            f"alone, held-out, from {certified.prior_error:.4f}",
        ),
        ("test error, draws", f"{test.gibbs_error:.4f}", f"estimate on {test.num_data} test examples"),
        ("test error, ensemble", f"{test.ensemble_error:.4f}", "estimate; of this nothing is promised"),
        ("test error, prior network", f"{test.prior_error:.4f}", "estimate"),
    ]
    for row in rows:
        shown.add_row(*row)
    return shown


def _model(spec: dict[str, Any], path: str | None) -> Any:
    if path is not None:
        return rebuilt(spec, path)
    if not spec["class_path"].startswith("flatbayes.models."):
        raise ValueError(
            f"The model of this run is {spec['class_path']}, which is not part of flatbayes, and nothing is imported "
            "because a file says so: give its dotted path, --model."
        )
    return build(spec, within="flatbayes.models", bind=True)


def _recipe(config: dict[str, Any]) -> Recipe:
    plain = dict(config["recipe"])
    optimizer, schedule = plain.pop("optimizer"), plain.pop("schedule")
    return Recipe(
        **plain,
        optimizer=build(optimizer, within="torch.optim", bind=True),
        schedule=build(schedule, within="flatbayes.training"),
    )
