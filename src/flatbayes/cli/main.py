"""From arguments to a verb, and from errors to messages and exit codes."""

import argparse
import signal
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console

from flatbayes.cli import (
    certify,
    compare,
    diagnose,
    evaluate,
    export,
    fit,
    paper,
    predict,
    report,
    shift,
    theory,
    tune,
)
from flatbayes.cli.bounded import MODE
from flatbayes.cli.help import HelpFormatter
from flatbayes.cli.names import known, with_full_names
from flatbayes.cli.terminal import listen, make_printable
from flatbayes.core.lock import let_go
from flatbayes.core.spec import build
from flatbayes.training.processes.parallel import ElsewhereError, joined

OVERVIEW = """Sharpness-aware Bayesian posteriors for any PyTorch model.

Compare them with their plain twins on your data, fit one, and predict with it.

  flatbayes compare --data digits --out runs/demo
  flatbayes fit --data images/ --model PreResNet --posterior SWAG --flatness SAM --flatness.rho 0.1 --out runs/x
  flatbayes evaluate runs/x
  flatbayes predict runs/x --input new.parquet --output predictions.parquet
  flatbayes diagnose runs/x runs/y --landscape
"""

VERBS = {
    "compare": (compare, "flat against plain: several posteriors, over seeds"),
    "fit": (fit, "train one posterior and keep it"),
    "evaluate": (evaluate, "measure a fitted posterior on held-out data"),
    "tune": (tune, "choose rho on validation data, for fit"),
    "diagnose": (diagnose, "measure how sharp the loss is around one run or several"),
    "shift": (shift, "measure a fitted posterior on corrupted and foreign inputs"),
    "predict": (predict, "predict for new inputs, with uncertainty"),
    "export": (export, "write one file that predicts with uncertainty, for torch or ONNX"),
    "certify": (certify, "prove an error rate on the training data of a run"),
    "report": (report, "write the HTML report of a comparison again"),
    "paper": (paper, "run the tables of the paper, and show ours beside the published figures"),
    "theory": (theory, "the two posteriors where both are known exactly, and what methods find of them"),
}
"""What each verb is: a module with `options()`, its parser, and `run(options)`."""

PATHS_AS_THEY_ARE = ("paper",)
"""Verbs whose options name no classes: their `--data` is a folder."""

BAD_INPUT, INTERRUPTED = 2, 130
EXPECTED = (
    argparse.ArgumentError,
    ValueError,
    TypeError,
    RuntimeError,
    OSError,
    ImportError,
    OverflowError,
    MemoryError,
)
"""Errors that a message is all there is to say about."""
NEEDED = ("data", "posterior", "posteriors", "flatness", "schedule")
"""Options that take a class or several, and cannot do without."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0, or 2 for bad input, or 130 after Ctrl-C.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    make_printable()
    pressed: list[int] = []
    before = listen(pressed)
    try:
        parser = build_parser()
        if not arguments:
            parser.print_help()
            return BAD_INPUT
        options = _parsed(parser, arguments)
        verb = options.subcommand
        if options[verb].get("init"):  # known only now, since it may stand in a file
            parser = build_parser(fit.fine_tuning())
            options = _parsed(parser, arguments)
        VERBS[verb][0].run(_objects(parser, options)[verb])
    except KeyboardInterrupt:
        _say("interrupted")
        return INTERRUPTED
    except ElsewhereError:
        return BAD_INPUT  # the process where it happened has said so
    except Exception as error:
        if pressed:  # and something in between made another error of it
            _say("interrupted")
            return INTERRUPTED
        if not isinstance(error, EXPECTED):
            raise  # a mistake of ours, which is to be seen
        _say(_message(error))
        return BAD_INPUT
    finally:
        let_go()
        if before is not None:
            signal.signal(signal.SIGINT, before)
    return 0


def build_parser(defaults: Mapping[str, Any] | None = None) -> ArgumentParser:
    """The parser of `flatbayes`, its verbs as subcommands.

    Args:
        defaults: Other defaults than usual for the options of `fit`.
    """
    parser = ArgumentParser(
        prog="flatbayes",
        usage="flatbayes VERB ... (flatbayes VERB --help for its options)",
        description=OVERVIEW,
        formatter_class=HelpFormatter,
        exit_on_error=False,
        parser_mode=MODE,
    )
    parser.add_argument("--version", action="version", version=version("flatbayes"))
    verbs = parser.add_subcommands(title="verbs", metavar="VERB", required=True)
    for name, (verb, text) in VERBS.items():
        options = verb.options()
        if name == "fit" and defaults:
            options.set_defaults(dict(defaults))
        verbs.add_subcommand(name, options, help=text)
    return parser


def _parsed(parser: ArgumentParser, arguments: Sequence[str]) -> Namespace:
    try:
        return parser.parse_args(arguments if arguments[0] in PATHS_AS_THEY_ARE else with_full_names(arguments))
    except EXPECTED:
        raise
    except Exception as error:  # what a damaged configuration makes the parser run into
        raise ValueError(
            f"The options cannot be read ({type(error).__name__}: {error}). If they come from a file, compare it "
            "with what the same command writes with --print_config."
        ) from error


def _objects(parser: ArgumentParser, options: Namespace) -> Namespace:
    # The model is built later, once per run and with what the data says; the optimizer once there are weights.
    verb = options[options.subcommand]
    later = {key: verb.pop(key) for key in ("model", "optimizer") if key in verb}
    ready: Namespace = parser.instantiate(options)
    empty = [key for key in NEEDED if key in verb and verb[key] is None]
    if empty and options.subcommand not in PATHS_AS_THEY_ARE:
        raise ValueError(f"--{empty[0]} is null: name one, or leave it out for the usual one.")
    for key, spec in later.items():
        plain = spec.as_dict() if isinstance(spec, Namespace) else spec
        ready[options.subcommand][key] = build(plain, bind=True) if key == "optimizer" else plain
    return ready


def _message(error: Exception) -> str:
    text = str(error)
    if isinstance(error, OverflowError):
        return f"One of the numbers is too large to compute with: {text}."
    if isinstance(error, MemoryError):
        return f"There is not enough memory ({text}). Ask for less: a smaller network, batch, rank or ensemble."
    if isinstance(error, argparse.ArgumentError) and "Expected a dot import path" in text:
        axes = ("data", "model", "posterior", "flatness", "schedule")
        names = "; ".join(f"{axis}: {', '.join(known(axis))}" for axis in axes)
        text = f"{text}\nKnown names: {names}."
    if isinstance(error, argparse.ArgumentError) and "does not correspond to a subclass of Module" in text:
        text = f"{text}\nA model is a subclass of torch.nn.Module, or a function annotated to return one."
    return text


def _say(message: Any) -> None:
    world = joined()
    who = "flatbayes" if world.size == 1 else f"flatbayes, process {world.rank}"
    Console(stderr=True).print(f"{who}: {message}", markup=False, highlight=False, soft_wrap=True)
