"""Types of option values in words, and values as people type them: lists without brackets, yes for true."""

import json
import math
from collections.abc import Callable, Sequence
from functools import reduce
from operator import or_
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml

from flatbayes.core.names import format_suggestion

TRUE_WORDS, FALSE_WORDS = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
NULL_WORDS = ("null", "none", "~")


def split_union(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a type."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def is_sequence(hint: Any) -> bool:
    """Whether a type is a list or tuple, or has one among its alternatives."""
    return any(get_origin(kind) in (list, tuple) or kind in (list, tuple) for kind in split_union(hint))


def reduce_hint(hint: Any) -> Any:
    """A type without the alternatives that cannot be written as an option, such as the tensor of `float | Tensor`."""
    kinds = split_union(hint)
    plain = [kind for kind in kinds if is_checkable(kind)]
    is_reducible = len(kinds) > len(plain) > 0 and any(kind in (int, float, bool) for kind in plain)
    return reduce(or_, plain) if is_reducible else hint


def is_checkable(hint: Any) -> bool:
    """Whether the words of this module describe a type completely: plain values, and lists and mappings of them."""
    if get_origin(hint) is Literal or hint in (int, float, bool, str, Path, NoneType):
        return True
    if get_origin(hint) in (Union, UnionType, list, tuple, dict):
        return all(argument is Ellipsis or is_checkable(argument) for argument in get_args(hint))
    return False


def accepts(hint: Any, value: Any) -> bool:
    """Whether a value from YAML or JSON, or the text of an option, is of a type."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(accepts(argument, value) for argument in arguments)
    if origin is Literal:
        return value in arguments or (isinstance(value, str) and value in map(str, arguments))
    if origin is list:
        return isinstance(value, list | tuple) and all(accepts(arguments[0], item) for item in value)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            return False
        if arguments[-1] is Ellipsis:
            return all(accepts(arguments[0], item) for item in value)
        return len(value) == len(arguments) and all(map(accepts, arguments, value))
    if origin is dict:
        return isinstance(value, dict) and all(accepts(arguments[1], item) for item in value.values())
    return _SIMPLE_CHECKS[hint](value)


def describe_type(hint: Any) -> str:
    """A type in words, such as `a whole number` or `one of torch, onnx`."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(describe_type(argument) for argument in arguments if argument is not NoneType)
    if origin is Literal:
        choices = [str(argument) for argument in arguments]
        return choices[0] if len(choices) == 1 else f"one of {', '.join(choices)}"
    if origin in (list, tuple):
        kinds = [argument for argument in arguments if argument is not Ellipsis]
        if len(kinds) > 1:
            return f"{len(kinds)} values such as [{', '.join(map(_make_example, kinds))}]"
        choices = _list_choices(hint)
        if choices:
            return f"a list of {', '.join(choices)}, such as [{', '.join(choices[:2])}]"
        return f"a list such as [{', '.join(_make_example(kinds[0], index) for index in range(2))}]"
    if origin is dict:
        return f"a mapping in quotes such as '{{name: {_make_example(arguments[1])}}}'"
    return _DESCRIPTIONS.get(hint, getattr(hint, "__name__", str(hint)))


def suggest_choice(hint: Any, text: str) -> str:
    """` Did you mean onnx?`, or nothing if no choice of a type is similar to a text."""
    choices = _list_choices(hint)
    words = text.strip("[] ").split(",") if is_sequence(hint) else [text]
    unknown = [word.strip() for word in words if word.strip() not in choices]
    return f" {format_suggestion(unknown[0], choices)}".rstrip() if unknown and choices else ""


def _list_choices(hint: Any) -> list[str]:
    if get_origin(hint) is Literal:
        return [str(choice) for choice in get_args(hint)]
    return [choice for argument in get_args(hint) if argument is not Ellipsis for choice in _list_choices(argument)]


def split_list(values: Sequence[str]) -> list[str]:
    """The items of `a b`, `a,b` and `[a, b]`.

    >>> split_list(["a", "b"]), split_list(["[a,", "b]"]), split_list(["a,b"])
    (['a', 'b'], ['a', 'b'], ['a', 'b'])
    """
    text = " ".join(values).strip()
    return text.removeprefix("[").removesuffix("]").replace(",", " ").split()


def join_values(hint: Any, values: Sequence[str]) -> list[str]:
    """The text of an option as the parser reads it, followed by values that are left over.

    Several values, or one with commas, become a list if the type is one; `yes`, `on` and `1` become `true`.
    """
    if is_sequence(hint):
        kinds = split_union(hint)
        plain = [kind for kind in kinds if get_origin(kind) not in (list, tuple)]
        is_list_text = len(values) == 1 and values[0].lstrip()[:1] in ("[", "{")
        separated = (str in plain and [*values]) or [item for value in values for item in value.split(",") if item]
        is_single = len(separated) == 1 and any(is_checkable(kind) and accepts(kind, separated[0]) for kind in plain)
        if is_list_text or is_single or not separated:
            return [*values]
        if len(values) > 1 and any(value.strip(" ").endswith(",") or value.startswith("[") for value in values):
            return [" ".join(values)]  # a list with brackets and spaces, without quotes
        return [f"[{', '.join(map(_quote, separated))}]"]
    if bool in split_union(hint) and values:
        word = values[0].lower()
        return ["true" if word in TRUE_WORDS else "false" if word in FALSE_WORDS else values[0], *values[1:]]
    return [*values]


def read_text(hint: Any, text: str) -> Any:
    """The value that the text of an option stands for; the text itself where it is no list or mapping."""
    if text.lower() in NULL_WORDS and NoneType in split_union(hint):
        return None
    if text.lstrip()[:1] in ("[", "{"):
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError:
            return text
    return text


def _quote(text: str) -> str:
    return json.dumps(text) if set(text) & set("*&!%@`#:{}[]|>'\"") and "(" not in text else text


def _make_example(hint: Any, index: int = 0) -> str:
    if get_origin(hint) is Literal:
        choices = get_args(hint)
        return str(choices[index % len(choices)])
    if get_origin(hint) in (list, tuple):
        return f"[{', '.join(_make_example(kind, k) for k, kind in enumerate(get_args(hint)[:2]))}]"
    examples = {int: ("1", "2"), float: ("0.1", "0.5"), str: ("a", "b"), bool: ("true", "false")}
    return examples.get(hint, ("SWAG", "SGVB"))[index % 2]


def _is_integer(value: Any) -> bool:
    return _converts(int, value) if isinstance(value, str) else type(value) is int


def _is_number(value: Any) -> bool:
    """Texts must be finite: the parser does not read `inf` and `nan`."""
    if isinstance(value, str):
        return _converts(float, value) and math.isfinite(float(value))
    return type(value) in (int, float)


def _converts(convert: Callable[[str], Any], text: str) -> bool:
    try:
        convert(text)
    except ValueError:
        return False
    return True


_SIMPLE_CHECKS: dict[Any, Callable[[Any], bool]] = {
    int: _is_integer,
    float: _is_number,
    bool: lambda value: isinstance(value, bool) or (isinstance(value, str) and value.lower() in ("true", "false")),
    str: lambda value: not isinstance(value, list | dict),
    Path: lambda value: isinstance(value, str),
    NoneType: lambda value: value is None,
}
_DESCRIPTIONS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    Path: "a path",
    NoneType: "null",
}
