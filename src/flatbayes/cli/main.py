"""Command `flatbayes`: one parser with a subcommand for each verb."""

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from flatbayes.cli import certify, compare, diagnose, evaluate, export, fit, predict, report, shift, tune
from flatbayes.cli.aliases import RUN_FOLDER_VERBS, resolve_arguments
from flatbayes.cli.arguments import normalize_arguments
from flatbayes.cli.command import parse_options, run_command
from flatbayes.cli.completion import render_completion
from flatbayes.cli.help_text import print_class_help
from flatbayes.cli.parsing import new_parser
from flatbayes.core.names import format_suggestion
from flatbayes.core.optional import get_version
from flatbayes.core.spec import instantiate

OVERVIEW = """Sharpness-aware Bayesian posteriors for any PyTorch model.

Compare flat and plain training on your data, fit a posterior, and predict with it.

  flatbayes compare --data digits --out runs/demo
  flatbayes fit --data images/ --model PreResNet --posterior SWAG --flatness SAM --flatness.rho 0.1 --out runs/x
  flatbayes evaluate runs/x
  flatbayes predict runs/x --input new.parquet --output predictions.parquet
  flatbayes diagnose runs/x runs/y --landscape
"""

VERBS: dict[str, tuple[ModuleType, str]] = {
    "compare": (compare, "compare flat with plain training: several posteriors, over seeds"),
    "fit": (fit, "fit one posterior and save it"),
    "evaluate": (evaluate, "compute metrics of a fitted posterior on held-out data"),
    "tune": (tune, "tune rho on validation data, for fit"),
    "diagnose": (diagnose, "measure the sharpness of the loss around one run or several"),
    "shift": (shift, "evaluate a fitted posterior on corrupted and out-of-distribution inputs"),
    "predict": (predict, "predict for new inputs, with uncertainty"),
    "export": (export, "write one file that predicts with uncertainty, for torch or ONNX"),
    "certify": (certify, "prove a bound on the error rate, from the training data of a run"),
    "report": (report, "write the HTML report of a comparison again"),
}
"""Module of each verb, with `make_parser()` and `run(options)`, and its line in the help."""

MOVED_VERBS = {"paper": "python -m reproduction", "theory": "python -m studies.double_well"}
"""Verbs of flatbayes 0.1 that are commands of a checkout now, outside the installed package."""

VERBS_THAT_WRITE_LAST = ("evaluate", "shift", "predict", "export", "certify", "report")
"""Verbs whose output appears at the end, or not at all."""

REQUIRED_CLASS_OPTIONS = ("data", "posterior", "posteriors", "flatness", "schedule")
"""Options that take one class or several and may not be null."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `flatbayes`.

    Args:
        arguments: Command-line arguments without the program's name; by default those of this process.

    Returns:
        Exit code: 0, or 2 for bad input, or 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP.
    """
    given = sys.argv[1:] if arguments is None else arguments
    if [*given] == ["--completion"]:
        print(render_completion(VERBS), end="")  # noqa: T201
        return 0
    with import_from_working_folder():
        return run_command(_get_parser(), lambda options: _run_verb(options), arguments, parse=_parse_verb)


@contextmanager
def import_from_working_folder() -> Iterator[None]:
    """Context in which modules of the working folder can be named, `--model nets.Net`; installed ones come first."""
    folder = os.getcwd()
    is_missing = not {"", folder} & set(sys.path)
    if is_missing:
        sys.path.append(folder)
    try:
        yield
    finally:
        if is_missing and folder in sys.path:
            sys.path.remove(folder)


def build_parser(fit_defaults: Mapping[str, Any] | None = None) -> ArgumentParser:
    """The parser of `flatbayes`, with the verbs as subcommands.

    Args:
        fit_defaults: Defaults of the verb `fit` to replace.
    """
    parser = new_parser("VERB ... (flatbayes VERB --help for its options)", OVERVIEW)
    parser.add_argument("--version", action="version", version=get_version())
    parser.add_argument("--completion", action="store_true", help="print a script of completions for bash and zsh")
    subcommands = parser.add_subcommands(title="verbs", metavar="VERB", required=True)
    for name, (module, text) in VERBS.items():
        verb_parser = module.make_parser()
        if name == "fit" and fit_defaults:
            verb_parser.set_defaults(dict(fit_defaults))
        subcommands.add_subcommand(name, verb_parser, help=text)
    return parser


@cache
def _get_parser() -> ArgumentParser:
    return build_parser()


@cache
def _get_verb_parser(verb: str) -> ArgumentParser:
    return VERBS[verb][0].make_parser()  # type: ignore[no-any-return]  # a module


def _parse_verb(parser: ArgumentParser, arguments: Sequence[str]) -> Namespace:
    arguments = _normalize_verb(arguments)
    verb = arguments[0]
    if verb in VERBS:
        arguments = [verb, *normalize_arguments(verb, _get_verb_parser(verb), arguments[1:])]
    resolved = resolve_arguments(arguments)
    requested = next((argument[2:] for argument in resolved if re.match(r"--[\w.]+\.help\b", argument)), None)
    if requested is not None:
        option, _, path = requested.partition("=")
        print_class_help(parser, resolved, option.removesuffix(".help"), path.rpartition(".")[2])
    options = parse_options(parser, resolved)
    if options[options.subcommand].get("init"):  # known only after parsing, since a file may set it
        parser = build_parser(fit.fine_tuning_defaults())
        options = parse_options(parser, resolved)
    return _instantiate_options(parser, options)


def _normalize_verb(arguments: Sequence[str]) -> list[str]:
    verb, *rest = arguments
    if verb == "help":
        return [rest[0], "--help", *rest[1:]] if rest and rest[0] in VERBS else ["--help"]
    if verb in VERBS or verb in ("-h", "--help", "--version"):
        return [*arguments]
    if verb in MOVED_VERBS:
        raise ValueError(
            f"The verb {verb} has moved out of the installed package: run `{MOVED_VERBS[verb]}` in a "
            "checkout of the repository."
        )
    suggestion = format_suggestion(verb, VERBS, "flatbayes ")
    known = f"Verbs: {', '.join(VERBS)}; flatbayes --help explains them."
    if verb.startswith("-"):
        raise ValueError(f"A verb comes first, such as flatbayes fit --data digits --out runs/x; got {verb}. {known}")
    raise ValueError(f"There is no verb {verb!r}. {suggestion}{known}")


def _run_verb(options: Namespace) -> None:
    run: Callable[[Namespace], None] = VERBS[options.subcommand][0].run
    try:
        run(options[options.subcommand])
    except KeyboardInterrupt as stop:
        if options.subcommand in VERBS_THAT_WRITE_LAST:
            stop.add_note("nothing was written")
        raise


def _instantiate_options(parser: ArgumentParser, options: Namespace) -> Namespace:
    # The model is built later, with the shapes of the data, and the optimizer once there are weights.
    verb = options[options.subcommand]
    deferred = {key: verb.pop(key) for key in ("model", "optimizer") if key in verb}
    instances: Namespace = parser.instantiate(options)
    optional = {"data"} if options.subcommand in RUN_FOLDER_VERBS else set()
    unset = [key for key in REQUIRED_CLASS_OPTIONS if key in verb and verb[key] is None and key not in optional]
    if unset:
        raise ValueError(f"--{unset[0]} is null: give a name, or leave the option out for its default.")
    for key, spec in deferred.items():
        plain = spec.as_dict() if isinstance(spec, Namespace) else spec
        instances[options.subcommand][key] = instantiate(plain, bind=True) if key == "optimizer" else plain
    return instances
