"""YAML of options and configuration files, within bounds: a line of aliases may stand for a billion entries."""

from typing import Any

import yaml
from jsonargparse import get_loader, set_loader
from yaml.nodes import MappingNode, Node, SequenceNode

from flatbayes.cli.defaults import fill_defaults

LOADER_MODE = "bounded"
"""The parser mode whose loader is `load`."""
MAX_YAML_NODES = 100_000
_load_yaml = get_loader("yaml")


def load_bounded_yaml(text: str) -> Any:
    """Read YAML as jsonargparse does, with the arguments of every class of ours written out.

    Raises:
        ValueError: Written out, it has too many entries, or contains itself.
    """
    if "*" in text and "&" in text:
        _count_nodes(yaml.compose(text, Loader=yaml.SafeLoader), {}, ())
    return fill_defaults(_load_yaml(text))


def _count_nodes(node: Node | None, sizes: dict[int, int], ancestors: tuple[int, ...]) -> int:
    if node is None or id(node) in sizes:
        return sizes.get(id(node), 0)
    if id(node) in ancestors:
        raise ValueError("The YAML contains itself, by an alias within what it stands for.")
    within: list[Node] = []
    if isinstance(node, MappingNode):
        within = [part for pair in node.value for part in pair]
    elif isinstance(node, SequenceNode):
        within = node.value
    size = 1 + sum(_count_nodes(part, sizes, (*ancestors, id(node))) for part in within)
    if size > MAX_YAML_NODES:
        raise ValueError(f"The YAML has over {MAX_YAML_NODES} entries once its aliases are written out.")
    sizes[id(node)] = size
    return size


set_loader(LOADER_MODE, load_bounded_yaml, exceptions=(yaml.YAMLError,))
