"""Command lines as options with the values after them, and values as people type them: `SWAG(rank=3)`, or YAML."""

import ast
import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from flatbayes.cli.class_signatures import LIST_OPTION, OPTIMIZER_OPTION
from flatbayes.cli.value_types import accepts
from flatbayes.data.parquet import read_schema

OPTIMIZER_NAMES = (OPTIMIZER_OPTION, "lr", "learning_rate", "momentum", "weight_decay", "betas", "nesterov")
"""Options that may be those of the posterior's default optimizer, which depends on the options before."""


@dataclass
class Token:
    """An option and the values after it.

    `flag` is the option as it was written, empty for values before the first option.
    """

    flag: str
    values: list[str]


def split_tokens(arguments: Sequence[str]) -> Iterator[Token]:
    """Options with the values after them; the first token holds the values before any option."""
    token = Token("", [])
    for argument in arguments:
        if argument.startswith("-") and len(argument) > 1 and not accepts(float, argument):
            yield token
            flag, equals, value = argument.partition("=")
            token = Token(flag, [value] if equals else [])
        else:
            token.values.append(argument)
    yield token


def sort_tokens(tokens: Sequence[Token], class_options: Sequence[str]) -> list[Token]:
    """Options that name classes before the options of these classes, and those of optimizers last."""

    def order(token: Token) -> int:
        name = token.flag.lstrip("-").removesuffix("+").replace("-", "_")
        return 0 if name in class_options else 2 if name.partition(".")[0] in OPTIMIZER_NAMES else 1

    ordered: list[Token] = []
    segment: list[Token] = []
    for token in tokens:
        if token.flag == "--config":
            ordered += [*sorted(segment, key=order), token]
            segment = []
        else:
            segment.append(token)
    return [*ordered, *sorted(segment, key=order)]


def read_scalar(value: Any) -> Any:
    """A number for text that is one."""
    if not isinstance(value, str):
        return value
    try:
        return float(value) if "." in value or "e" in value.lower() else int(value)
    except ValueError:
        return yaml.safe_load(value) if value in ("true", "false", "null") else value


def read_class_text(text: str, name: str) -> Any:
    """Value of a class option: a name, or a list or mapping in YAML.

    Raises:
        ValueError: A list or mapping is not valid YAML.
    """
    calls = read_calls(text)
    if calls is not None:
        return calls
    if text.lstrip()[:1] not in ("[", "{"):
        return text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        example = "[MCDropout, SWAG]" if name == LIST_OPTION else "{class_path: SAM, init_args: {rho: 0.1}}"
        raise ValueError(f"--{name} {text} is not a valid list or mapping: write it like '{example}'.") from None


def read_calls(text: str) -> Any:
    """The spec of `SWAG(rank=3)`, as tables of results show it, or a list of such; None for any other text."""
    if "(" not in text:
        return None
    try:
        return _to_spec(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError):
        return None


def _to_spec(node: ast.expr) -> Any:
    if isinstance(node, ast.List):
        return [_to_spec(item) for item in node.elts]
    if isinstance(node, ast.Call) and not node.args and all(keyword.arg for keyword in node.keywords):
        arguments = {str(keyword.arg): _to_spec(keyword.value) for keyword in node.keywords}
        return {"class_path": ast.unparse(node.func), "init_args": arguments}
    return ast.unparse(node) if isinstance(node, ast.Name | ast.Attribute) else ast.literal_eval(node)


def list_columns(path: str) -> str:
    """Sentences with the columns of a CSV or parquet file and an example; empty if it cannot be read."""
    try:
        names = _read_column_names(path)
    except (OSError, ValueError, ImportError):
        return "Example: --data.target price."
    return f"It has {', '.join(names)}. Example: --data.target {names[-1]}." if names else "It is empty."


def _read_column_names(path: str) -> list[str]:
    if path.endswith(".parquet"):
        return list(read_schema(Path(path)).names)
    with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
        header = file.readline()
    separator = max(",;\t|", key=header.count)
    return [name for name in next(csv.reader([header.strip()], delimiter=separator), []) if name]
