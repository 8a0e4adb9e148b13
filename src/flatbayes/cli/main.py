"""From arguments to a verb, and from errors to messages and exit codes."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console

from flatbayes.cli import verbs
from flatbayes.cli.names import AXES, known, with_full_names
from flatbayes.cli.parser import build_parser
from flatbayes.core.spec import build

VERBS = {
    "compare": verbs.compare,
    "fit": verbs.fit_one,
    "evaluate": verbs.evaluate_run,
    "predict": verbs.predict,
    "report": verbs.report,
}
BAD_INPUT, INTERRUPTED = 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0, or 2 for bad input, or 130 after Ctrl-C.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = build_parser()
    if not arguments:
        parser.print_help()
        return BAD_INPUT
    try:
        options = parser.parse_args(with_full_names(arguments))
        verb = options.subcommand
        VERBS[verb](_objects(parser, options)[verb])
    except KeyboardInterrupt:
        _say("interrupted")
        return INTERRUPTED
    except (argparse.ArgumentError, ValueError, TypeError, RuntimeError, OSError, ImportError) as error:
        _say(_message(error))
        return BAD_INPUT
    return 0


def _objects(parser: ArgumentParser, options: Namespace) -> Namespace:
    # The model is built later, once per run and with what the data says; the optimizer once there are weights.
    verb = options[options.subcommand]
    later = {key: verb.pop(key) for key in ("model", "optimizer") if key in verb}
    ready: Namespace = parser.instantiate(options)
    for key, spec in later.items():
        plain = spec.as_dict() if isinstance(spec, Namespace) else spec
        ready[options.subcommand][key] = build(plain, bind=True) if key == "optimizer" else plain
    return ready


def _message(error: Exception) -> str:
    text = str(error)
    if isinstance(error, argparse.ArgumentError) and "Expected a dot import path" in text:
        names = "; ".join(
            f"{axis}: {', '.join(known(axis))}" for axis in AXES if axis not in ("member", "posteriors")
        )
        text = f"{text}\nKnown names: {names}."
    return text


def _say(message: Any) -> None:
    Console(stderr=True).print(f"flatbayes: {message}", markup=False, highlight=False, soft_wrap=True)
