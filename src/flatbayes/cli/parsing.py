"""Parser of a verb: readable help, and YAML read within bounds with short class names resolved."""

from argparse import SUPPRESS, Action
from typing import Any

import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter, get_loader, set_loader, set_parsing_settings
from yaml.nodes import MappingNode, Node, SequenceNode

from flatbayes.core.spec import short_name

LOADER_MODE = "bounded"
"""`parser_mode` of jsonargparse whose loader is `load_bounded_yaml`."""

MAX_YAML_NODES = 100_000
"""Largest number of entries of a file once its aliases are expanded: a few lines of aliases can stand for 10^9."""

_load_yaml = get_loader("yaml")


class HelpFormatter(DefaultHelpFormatter):
    """Keeps the line breaks of descriptions, and prints defaults as one would write them."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(indent + line for line in text.splitlines())

    def _expand_help(self, action: Action) -> str:
        text = (action.help or "").replace("%%", "%")
        if not action.option_strings or action.default in (None, False, SUPPRESS, []) or action.nargs == 0:
            return text
        return f"{text} (default: {format_default(action.default)})"


def new_parser(usage: str, description: str, *, program: str = "flatbayes") -> ArgumentParser:
    """A parser without options."""
    return ArgumentParser(
        prog=program,
        usage=f"{program} {usage}",
        description=description,
        formatter_class=HelpFormatter,
        exit_on_error=False,
        parser_mode=LOADER_MODE,
    )


def to_plain_spec(spec: Any) -> Any:
    """The spec of a class as plain data, also where the parser has read it into a namespace."""
    return spec.as_dict() if hasattr(spec, "as_dict") else spec


def format_default(value: Any) -> str:
    """A default value for the help text: `SWAG(rank=0)` for the spec of a class, lists by their items."""
    plain = to_plain_spec(value)
    if isinstance(plain, dict) and "class_path" in plain:
        return short_name({"init_args": {}, **plain})
    if isinstance(plain, list | tuple):
        return ", ".join(format_default(item) for item in plain)
    return str(plain)


def load_bounded_yaml(text: str) -> Any:
    """Read YAML as jsonargparse does, then resolve the names of classes.

    Raises:
        ValueError: With its aliases expanded the text has too many entries or contains itself; or a class name is
            unknown.
    """
    from flatbayes.cli.aliases import resolve_value  # here, since it imports torch

    if "*" in text and "&" in text:
        _count_nodes(yaml.compose(text, Loader=yaml.SafeLoader), {}, ())
    return resolve_value(_load_yaml(text))


def _count_nodes(node: Node | None, sizes: dict[int, int], ancestors: tuple[int, ...]) -> int:
    if node is None or id(node) in sizes:
        return sizes.get(id(node), 0)
    if id(node) in ancestors:
        raise ValueError("The YAML contains itself: an alias stands for a node around it.")
    children: list[Node] = []
    if isinstance(node, MappingNode):
        children = [child for pair in node.value for child in pair]
    elif isinstance(node, SequenceNode):
        children = node.value
    size = 1 + sum(_count_nodes(child, sizes, (*ancestors, id(node))) for child in children)
    if size > MAX_YAML_NODES:
        raise ValueError(f"The YAML has over {MAX_YAML_NODES} entries once its aliases are written out.")
    sizes[id(node)] = size
    return size


set_loader(LOADER_MODE, load_bounded_yaml, exceptions=(yaml.YAMLError,))
# A class path where any value is allowed, as in `config_overrides`, is data: what reads it decides what to build.
set_parsing_settings(instantiate_subclass_spec_in_any=False)
