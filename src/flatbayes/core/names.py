"""Names and nouns in messages: similar names, classes by their bare names, choices, and numbers with their nouns."""

from collections.abc import Iterable
from difflib import SequenceMatcher
from types import ModuleType
from typing import Any, TypeVar, get_args

MIN_SIMILARITY = 0.64
"""Least similarity of a suggestion, from 0 to 1: twice the number of matching letters over the number of letters."""

MAX_LISTED_NAMES, MAX_NAME_CHARS, MAX_SIMILAR_NAMES = 30, 80, 3
"""Largest number of names in a message, of characters of a name, and of suggestions."""

BaseT = TypeVar("BaseT")


def find_similar(name: str, candidates: Iterable[str]) -> list[str]:
    """The candidates most similar to a name, the best first; letter case and the characters - and _ do not count."""
    similarities = {candidate: _measure_similarity(name, candidate) for candidate in candidates}
    best = max(similarities.values(), default=0.0)
    close = [candidate for candidate, value in similarities.items() if value >= max(MIN_SIMILARITY, 0.9 * best)]
    return sorted(close, key=lambda candidate: -similarities[candidate])[:MAX_SIMILAR_NAMES]


def format_suggestion(name: str, candidates: Iterable[str], prefix: str = "") -> str:
    """`Did you mean --epochs? ` with a space at its end, or nothing if no candidate is similar."""
    similar = find_similar(name, candidates)
    return f"Did you mean {' or '.join(prefix + candidate for candidate in similar)}? " if similar else ""


def match_name(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate that equals a name in any letter case, or None."""
    return next((candidate for candidate in candidates if candidate.lower() == name.lower()), None)


def format_names(names: Iterable[str], limit: int = MAX_LISTED_NAMES) -> str:
    """A list of names for a message, shortened where there are very many or very long ones.

    >>> format_names(["a", "b"]), format_names(map(str, range(200)))[-18:]
    ("['a', 'b']", "'29'] and 170 more")
    """
    listed = list(names)
    num_hidden = len(listed) - limit
    return f"{[shorten(name) for name in listed[:limit]]}{f' and {num_hidden} more' if num_hidden > 0 else ''}"


def format_count(count: int | float, noun: str, plural: str = "", spec: str = "") -> str:
    """A number and a noun that agrees with it.

    By default `plural` is the noun and an s.

    >>> format_count(1, "seed"), format_count(5, "seed"), format_count(1200, "class is", "classes are", spec=",")
    ('1 seed', '5 seeds', '1,200 classes are')
    """
    return f"{count:{spec}} {noun if count == 1 else plural or noun + 's'}"


def shorten(text: str) -> str:
    """The first characters of a text from a file, for a message."""
    return text if len(text) <= MAX_NAME_CHARS else f"{text[:MAX_NAME_CHARS]}..."


def check_choice(name: str, value: object, choices: Any) -> None:
    """Refuse a value of an option that is none of those of a `Literal`."""
    if value not in get_args(choices):
        raise ValueError(f"{name} must be {' or '.join(get_args(choices))}, got {value!r}.")


def list_classes(module: ModuleType, base: type[BaseT]) -> dict[str, type[BaseT]]:
    """The classes that a module exports by name, without their base class, in alphabetical order."""
    exported = {name: getattr(module, name) for name in getattr(module, "__all__", None) or dir(module)}
    return {
        name: value
        for name, value in sorted(exported.items())
        if isinstance(value, type) and issubclass(value, base) and value is not base
    }


def _measure_similarity(name: str, candidate: str) -> float:
    first, second = (text.lower().replace("-", "_") for text in (name, candidate))
    matcher = SequenceMatcher(None, first, second)
    shared_start = len(first) > 2 and (second.startswith(first) or first.startswith(second))
    same_letters = sorted(first) == sorted(second)  # two letters exchanged, as in SWGA
    return max(matcher.ratio(), 0.85 * shared_start, 0.95 * same_letters)
