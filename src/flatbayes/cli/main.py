"""Command `flatbayes`: one parser with a subcommand for each verb.

The overview, the version and messages on the verb itself need no torch, which is imported with the verb's module.
"""

import gc
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from flatbayes.cli.command import parse_options, run_command
from flatbayes.cli.parsing import new_parser, to_plain_spec
from flatbayes.core.names import format_suggestion
from flatbayes.core.optional import get_version
from flatbayes.core.spec import instantiate

OVERVIEW = """Sharpness-aware Bayesian posteriors for any PyTorch model.

Compare flat and plain training on your data, fit a posterior, and predict with it.

  flatbayes compare --data digits --out runs/demo
  flatbayes fit --data images/ --model PreResNet --posterior SWAG --flatness SAM --flatness.rho 0.1 --out runs/x
  flatbayes calibrate runs/x
  flatbayes evaluate runs/x
  flatbayes predict runs/x --input new.parquet --output predictions.parquet
  flatbayes diagnose runs/x runs/y --landscape
"""

VERBS = {
    "compare": "compare flat with plain training: several posteriors, over seeds",
    "fit": "fit one posterior and save it",
    "evaluate": "compute metrics of a fitted posterior on held-out data",
    "check": "check whether the uncertainty of a fitted posterior can be relied on",
    "calibrate": "calibrate a fitted posterior on validation data, for predict and evaluate",
    "tune": "tune rho on validation data, for fit",
    "diagnose": "measure the sharpness of the loss around one run or several",
    "shift": "evaluate a fitted posterior on corrupted and out-of-distribution inputs",
    "predict": "predict for new inputs, with uncertainty",
    "export": "write one file that predicts with uncertainty, for torch or ONNX",
    "reference": "sample the exact posterior of a small network, for compare",
    "certify": "prove a bound on the error rate, from the training data of a run",
    "report": "write the HTML report of a comparison again",
}
"""Verbs with their lines in the help; each is a module of this package, with `make_parser()` and `run(options)`."""

MOVED_VERBS = {"paper": "python -m reproduction", "theory": "python -m studies.double_well"}
"""Verbs of flatbayes 0.1 that are commands of a checkout now, outside the installed package."""

VERBS_THAT_WRITE_LAST = (
    "calibrate",
    "evaluate",
    "check",
    "shift",
    "predict",
    "export",
    "reference",
    "certify",
    "report",
)
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
        from flatbayes.cli.completion import render_completion

        print(render_completion({verb: load_verb(verb).make_parser() for verb in VERBS}), end="")  # noqa: T201
        return 0
    with import_from_working_folder():
        return run_command(build_parser({}), lambda options: _run_verb(options), arguments, parse=_parse_verb)


@contextmanager
def pause_garbage_collection() -> Iterator[None]:
    """Context without garbage collection, which would search the 10^5 objects of an import of torch and free none."""
    is_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if is_enabled:
            gc.enable()


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


def load_verb(verb: str) -> ModuleType:
    """Import the module of a verb, and torch with it."""
    return import_module(f"flatbayes.cli.{verb}")


def build_parser(parsers: Mapping[str, ArgumentParser] | None = None) -> ArgumentParser:
    """The parser of `flatbayes`, with the verbs as subcommands.

    Without `parsers` it has those of all verbs; verbs that are not among them are listed, without options.
    """
    if parsers is None:
        parsers = {verb: load_verb(verb).make_parser() for verb in VERBS}
    parser = new_parser("VERB ... (flatbayes VERB --help for its options)", OVERVIEW)
    parser.add_argument("--version", action="version", version=get_version())
    parser.add_argument("--completion", action="store_true", help="print a script of completions for bash and zsh")
    subcommands = parser.add_subcommands(title="verbs", metavar="VERB", required=True)
    for verb, text in VERBS.items():
        subcommands.add_subcommand(verb, parsers[verb] if verb in parsers else new_parser(verb, text), help=text)
    return parser


@cache
def _get_parsers(verb: str) -> tuple[ArgumentParser, ArgumentParser]:
    verb_parser = load_verb(verb).make_parser()
    return build_parser({verb: verb_parser}), verb_parser


@pause_garbage_collection()
def _parse_verb(parser: ArgumentParser, arguments: Sequence[str]) -> Namespace:
    arguments = _normalize_verb(arguments)
    verb = arguments[0]
    if verb not in VERBS:
        return parse_options(parser, arguments)  # the parser prints help or version, and ends the program
    from flatbayes.cli.aliases import resolve_arguments
    from flatbayes.cli.arguments import normalize_arguments
    from flatbayes.cli.class_signatures import shorten_class_path
    from flatbayes.cli.help_text import print_class_help
    from flatbayes.cli.models import check_model_path, has_trained_model

    parser, verb_parser = _get_parsers(verb)
    normalized = normalize_arguments(verb, verb_parser, arguments[1:])
    arguments = [verb, *normalized.arguments]
    resolved = resolve_arguments(arguments)
    requested = next((argument[2:] for argument in resolved if re.match(r"--[\w.]+\.help\b", argument)), None)
    if requested is not None:
        option, _, path = requested.partition("=")
        if option == "model.help" and "." in shorten_class_path(path):
            check_model_path(path)  # gives untyped parameters a type
        print_class_help(parser, resolved, option.removesuffix(".help"), path)
    options = parse_options(parser, resolved)
    verb_options = options[options.subcommand]
    # Known only after parsing, since a file may set them.
    if "init" in verb_options and (verb_options["init"] or has_trained_model(verb_options.get("model"))):
        verb_parser = load_verb(verb).make_parser()
        verb_parser.set_defaults(import_module("flatbayes.cli.options").fine_tuning_defaults())
        parser = build_parser({verb: verb_parser})
        options = parse_options(parser, resolved)
    return _instantiate_options(parser, options, normalized.optimizer_options)


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
    verbs = f"Verbs: {', '.join(VERBS)}; flatbayes --help explains them."
    if verb.startswith("-"):
        raise ValueError(f"A verb comes first, such as flatbayes fit --data digits --out runs/x; got {verb}. {verbs}")
    raise ValueError(f"There is no verb {verb!r}. {suggestion}{verbs}")


def _run_verb(options: Namespace) -> None:
    run: Callable[[Namespace], None] = load_verb(options.subcommand).run
    try:
        run(options[options.subcommand])
    except KeyboardInterrupt as stop:
        if options.subcommand in VERBS_THAT_WRITE_LAST:
            stop.add_note("nothing was written")
        raise


def _instantiate_options(
    parser: ArgumentParser, options: Namespace, optimizer_options: Sequence[str] = ()
) -> Namespace:
    from flatbayes.cli.aliases import RUN_FOLDER_VERBS
    from flatbayes.training.optimizers import DefaultOptimizer

    # The model is built later, with the shapes of the data, and the optimizer once there are weights.
    verb = options[options.subcommand]
    deferred = {key: verb.pop(key) for key in ("model", "optimizer") if key in verb}
    instances: Namespace = parser.instantiate(options)
    optional = {"data"} if options.subcommand in RUN_FOLDER_VERBS else set()
    unset = [key for key in REQUIRED_CLASS_OPTIONS if key in verb and verb[key] is None and key not in optional]
    if unset:
        raise ValueError(f"--{unset[0]} is null: give a name, or leave the option out for its default.")
    for key, spec in deferred.items():
        plain = to_plain_spec(spec)
        value: Any = instantiate(plain, bind=True) if key == "optimizer" else plain
        if key == "optimizer" and optimizer_options:
            value = DefaultOptimizer(value, {name: value.keywords[name] for name in optimizer_options})
        instances[options.subcommand][key] = value
    return instances
