"""Typed access to the fields of a JSON object, with messages that name the place; and the upgrade of files of 0.1."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NoReturn, TypeVar

from flatbayes.core.console import replace_controls
from flatbayes.core.files import JsonValue

TextT = TypeVar("TextT", bound=str)
_RENAMED_CONFIG_KEYS = {"recipe": "config", "seeds": "num_seeds", "part": "split", "measures": "evaluations"}
_RENAMED_RUN_KEYS = {"part": "split", "curves": "history"}
_RENAMED_DETAIL_KEYS = {"temperature": "calibration_temperature", "slice": "loss_slice"}
_RENAMED_SLICE_KEYS = {"distance": "distances", "loss": "losses"}
_RENAMED_ROW_KEYS = {
    "n": "num_seeds",
    "bootstrap": "bootstrap_interval",
    "effect": "effect_size",
    "flat_better": "num_flat_better",
    "plain_better": "num_plain_better",
    "wins": "winner",
}
_RENAMED_FAMILIES = {"Foreign inputs": "Out-of-distribution detection"}
_RENAMED_TRIAL_KEYS = {"twin": "variant", "chosen": "is_best"}


class ObjectReader:
    """Reads the fields of a JSON object; fields that are null count as missing.

    Error messages call the object by its `place`, such as `runs[3]`.

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


def upgrade_results(data: JsonValue) -> JsonValue:
    """Rename the keys of a `results.json` of flatbayes 0.1; other data are returned as they are."""
    if not isinstance(data, dict) or "schema" in data:
        return data
    return {
        **data,
        "config": _rename_keys(data.get("config"), _RENAMED_CONFIG_KEYS),
        "runs": _map_list(data.get("runs"), _upgrade_run),
        "summary": _map_list(data.get("summary"), _upgrade_row),
    }


def upgrade_selection(data: JsonValue) -> JsonValue:
    """Rename the keys of a `selection.json` of flatbayes 0.1; other data are returned as they are."""
    if not isinstance(data, dict) or "schema" in data:
        return data
    trials = _map_list(data.get("trials"), partial(_rename_keys, names=_RENAMED_TRIAL_KEYS))
    return {**data, "trials": trials, "selected_methods": data.get("chosen")}


def _upgrade_run(run: JsonValue) -> JsonValue:
    run = _rename_keys(run, _RENAMED_RUN_KEYS)
    if isinstance(run, dict) and isinstance(run.get("details"), dict):
        details = _rename_keys(run["details"], _RENAMED_DETAIL_KEYS)
        if isinstance(details, dict):
            loss_slice = _rename_keys(details.get("loss_slice"), _RENAMED_SLICE_KEYS)
            return {**run, "details": {**details, "loss_slice": loss_slice}}
    return run


def _upgrade_row(row: JsonValue) -> JsonValue:
    row = _rename_keys(row, _RENAMED_ROW_KEYS)
    if isinstance(row, dict) and isinstance(family := row.get("family"), str):
        return {**row, "family": _RENAMED_FAMILIES.get(family, family)}
    return row


def _map_list(value: JsonValue, function: Callable[[JsonValue], JsonValue]) -> JsonValue:
    """Apply a function to the entries of a list; a value that is no list is returned as it is."""
    return [function(entry) for entry in value] if isinstance(value, list) else value


def _rename_keys(data: JsonValue, names: Mapping[str, str]) -> JsonValue:
    """An object with some of its keys renamed; a value that is no object is returned as it is."""
    return {names.get(key, key): value for key, value in data.items()} if isinstance(data, dict) else data
