"""Atomic file writes, by a temporary file that is renamed, and JSON."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

JsonValue: TypeAlias = "bool | int | float | str | list[JsonValue] | dict[str, JsonValue] | None"
"""Parsed JSON."""


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary path to write to; it is renamed to `path` at the end, or removed after an exception."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> Path:
    """Write UTF-8 text with Unix line ends, and return the path."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return path


def write_json(path: Path, data: Any) -> None:
    """Write indented JSON. Numbers that are not finite become null, since JSON has no name for them."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(replace_nonfinite(data), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, or has numbers that JSON has no name for.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_reject_constant)
    except (ValueError, RecursionError) as error:  # also of numbers with too many digits
        raise ValueError(f"{path} is damaged: it is not JSON ({error}).") from error


def replace_nonfinite(data: Any) -> Any:
    """Plain data with None for numbers that are not finite, lists for tuples, and strings as keys."""
    if isinstance(data, dict):
        return {str(key): replace_nonfinite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [replace_nonfinite(value) for value in data]
    if isinstance(data, float) and (data != data or abs(data) == float("inf")):
        return None
    return data


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")
