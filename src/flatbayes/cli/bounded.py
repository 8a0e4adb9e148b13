"""YAML of options and configuration files, within bounds: a line of aliases may stand for a billion entries."""

from typing import Any

import yaml
from jsonargparse import get_loader, set_loader
from yaml.nodes import MappingNode, Node, SequenceNode

from flatbayes.cli.completed import completed

MODE = "bounded"
"""The parser mode whose loader is `load`."""
MOST = 100_000
_load = get_loader("yaml")


def load(text: str) -> Any:
    """Read YAML as jsonargparse does, with the arguments of every class of ours written out.

    Raises:
        ValueError: Written out, it has too many entries, or contains itself.
    """
    if "*" in text and "&" in text:
        _size(yaml.compose(text, Loader=yaml.SafeLoader), {}, ())
    return completed(_load(text))


def _size(node: Node | None, known: dict[int, int], above: tuple[int, ...]) -> int:
    if node is None or id(node) in known:
        return known.get(id(node), 0)
    if id(node) in above:
        raise ValueError("The YAML contains itself, by an alias within what it stands for.")
    within: list[Node] = []
    if isinstance(node, MappingNode):
        within = [part for pair in node.value for part in pair]
    elif isinstance(node, SequenceNode):
        within = node.value
    size = 1 + sum(_size(part, known, (*above, id(node))) for part in within)
    if size > MOST:
        raise ValueError(f"The YAML has over {MOST} entries once its aliases are written out.")
    known[id(node)] = size
    return size


set_loader(MODE, load, exceptions=(yaml.YAMLError,))
