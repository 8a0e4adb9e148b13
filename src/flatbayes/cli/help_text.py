"""Help texts: the methods of both axes with a line each, and the options of one class."""

import inspect
import re
from contextlib import redirect_stdout
from io import StringIO
from textwrap import fill

from jsonargparse import ArgumentParser, Namespace

from flatbayes.cli.aliases import CLASS_OPTIONS, list_names
from flatbayes.cli.class_signatures import DATA_ARGUMENTS, LIST_OPTION, shorten_class_path
from flatbayes.core.signatures import read_signature
from flatbayes.core.spec import import_object

METHOD_OPTIONS = ("posterior", "posteriors", "flatness")
"""Options whose classes are listed with their descriptions."""
LINE_WIDTH, NAME_WIDTH = 88, 20


def list_methods(axis: str) -> str:
    """The classes of an axis, `posterior` or `flatness`, by name, with the first sentence of their descriptions."""
    lines = []
    for name in list_names(axis):
        doc = inspect.getdoc(getattr(CLASS_OPTIONS[axis][0], name)) or ""
        sentence = doc.split("\n\n")[0].replace("\n", " ").split(". ")[0].removesuffix(".")
        indent = " " * (NAME_WIDTH + 2)
        lines.append(fill(f"  {name:<{NAME_WIDTH}}{sentence}", LINE_WIDTH, subsequent_indent=indent))
    return "\n".join(lines)


def describe_axes(verb: str, posterior_option: str) -> str:
    """The last part of the help of a verb: all posteriors and flatnesses, and how to see and set their options."""
    if posterior_option == "posterior":
        posterior_usage = "--posterior SWAG --posterior.rank 10"
    else:
        posterior_usage = '--posteriors "[MAP, SWAG(rank=10)]"'
    return (
        f"posteriors ({posterior_usage}):\n{list_methods('posterior')}\n\n"
        f"flatness methods (--flatness SAM --flatness.rho 0.1, or --rho 0.1 where that is unambiguous):\n"
        f"{list_methods('flatness')}\n\n"
        f"Options of one of them, or of a model, data source, schedule or optimizer: flatbayes {verb} --help SWAG"
    )


def describe_parameters(path: str) -> str:
    """A line for each parameter of a function that builds a network."""
    lines = []
    for name, parameter in read_signature(import_object(path)).parameters.items():
        if name in DATA_ARGUMENTS or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        default = "must be given" if parameter.default is parameter.empty else f"default: {parameter.default!r}"
        lines.append(f"  --model.{name}  ({default})")
    return "\n".join([f"{path}:", *lines]) if lines else f"{path} has no options."


def print_class_help(parser: ArgumentParser, arguments: list[str], option: str, path: str) -> Namespace:
    """Parse a command line that asks for the options of a class, with a usage line of this program.

    The command line has the verb first, and an option that ends in `.help`. `path` is empty for the names of all
    classes.

    Raises:
        SystemExit: The help was printed.
    """
    name = shorten_class_path(path)
    if not name:
        print(list_methods(option) if option in METHOD_OPTIONS else ", ".join(list_names(option)))  # noqa: T201
        raise SystemExit(0)
    usage = f"flatbayes {arguments[0]} --{option} {name} [--{option}.OPTION VALUE ...]"
    if option == LIST_OPTION:
        usage = f'flatbayes {arguments[0]} --{option} "[{name}(OPTION=VALUE, ...), ...]"'
    if option == "model" and "." in name and inspect.isfunction(import_object(path)):  # the parser describes classes
        print(f"usage: {usage}\n\n{describe_parameters(path)}")  # noqa: T201
        raise SystemExit(0)
    output = StringIO()
    try:
        with redirect_stdout(output):
            options: Namespace = parser.parse_args(arguments)
    except SystemExit:
        plain = re.sub(r"\x1b\[[\d;]*m", "", output.getvalue())  # the parser writes colours where FORCE_COLOR is set
        text = re.sub(r"\Ausage: .*?\n\n(Help for [^\n]*\n\n)?", f"usage: {usage}\n\n", plain, flags=re.DOTALL)
        text = text.replace(f"--{LIST_OPTION}.", "").replace("(required, ", "(must be given, ")
        print(text, end="")  # noqa: T201
        raise
    return options
