"""Typed access to the fields of a JSON object, with error messages that name the place."""

import math
from collections.abc import Iterator, Sequence
from typing import NoReturn, TypeVar

from flatbayes.core.console import replace_controls
from flatbayes.core.files import JsonValue

TextT = TypeVar("TextT", bound=str)


class ObjectReader:
    """Reads the fields of a JSON object; fields that are null count as missing.

    Args:
        data: The parsed JSON.
        place: What error messages call the object, such as `runs[3]`.

    Raises:
        ValueError: The data are not an object.
    """

    def __init__(self, data: JsonValue, place: str) -> None:
        if not isinstance(data, dict):
            raise ValueError(f"{place} should be an object, got {type(data).__name__}")
        self.data, self.place = data, place

    def __contains__(self, key: str) -> bool:
        return self.data.get(key) is not None

    def __bool__(self) -> bool:
        return bool(self.data)

    def read_object(self, key: str) -> "ObjectReader":
        """An object, empty where it is missing."""
        value = self.data.get(key)
        return ObjectReader({} if value is None else value, f"'{key}' of {self.place}")

    def read_text(self, key: str, default: str | None = None) -> str:
        """A string without control characters; the default where it is missing."""
        value = self._get(key, default)
        return replace_controls(value) if isinstance(value, str) else self._reject(key, value)

    def read_choice(self, key: str, choices: Sequence[TextT]) -> TextT:
        """One of several strings."""
        value = self._get(key)
        for choice in choices:
            if value == choice:
                return choice
        raise ValueError(f"'{key}' of {self.place} should be {' or '.join(choices)}, got {value!r}")

    def read_int(self, key: str, default: int | None = None) -> int:
        """A whole number; the default where it is missing."""
        value = self._get(key, default)
        return value if isinstance(value, int) and not isinstance(value, bool) else self._reject(key, value)

    def read_bool(self, key: str) -> bool:
        """True or false."""
        value = self._get(key)
        return value if isinstance(value, bool) else self._reject(key, value)

    def read_number(self, key: str, *, required: bool = False) -> float | None:
        """A number; None where it is null, not finite, or, unless `required`, missing."""
        if required and key not in self.data:
            raise ValueError(f"{self.place} lacks '{key}'")
        return self._to_number(key, self.data.get(key))

    def read_column(self, key: str) -> tuple[float | None, ...]:
        """A list of numbers, in which None stands for null; empty where it is missing."""
        return tuple(self._to_number(key, value) for value, _ in self.read_list(key, required=False))

    def read_numbers(self, key: str, *, min_length: int = 0) -> tuple[float, ...]:
        """A list of numbers."""
        values = [self._to_number(key, value) for value, _ in self.read_list(key, min_length=min_length)]
        return tuple(math.nan if value is None else value for value in values)

    def read_interval(self, key: str) -> tuple[float, float] | None:
        """Two finite numbers; None where they are missing."""
        ends = self.read_column(key)
        if len(ends) != 2 or ends[0] is None or ends[1] is None:
            return None
        return ends[0], ends[1]

    def read_metrics(self, key: str) -> dict[str, float | None]:
        """An object of numbers, in which None stands for null."""
        self._get(key)
        metrics = self.read_object(key)
        return {replace_controls(name): metrics.read_number(name) for name in metrics.data}

    def read_list(self, key: str, *, required: bool = True, min_length: int = 0) -> Iterator[tuple[JsonValue, str]]:
        """The entries of a list, each with its place."""
        value = self.data.get(key)
        if value is None and not required:
            return
        if not isinstance(value, list) or len(value) < min_length:
            entries = " with at least one entry" if min_length else ""
            raise ValueError(f"'{key}' should be a list{entries}")
        yield from ((entry, f"{key}[{index}]") for index, entry in enumerate(value))

    def _get(self, key: str, default: JsonValue = None) -> JsonValue:
        value = self.data.get(key)
        if value is None and default is None:
            raise ValueError(f"{self.place} lacks '{key}'")
        return default if value is None else value

    def _to_number(self, key: str, value: JsonValue) -> float | None:
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            self._reject(key, value)
        return value if math.isfinite(value) else None

    def _reject(self, key: str, value: JsonValue) -> NoReturn:
        raise ValueError(f"'{key}' of {self.place} should not be {value!r}")
