"""Upgrade of the JSON files of flatbayes 0.1 to the keys of schema 2."""

from collections.abc import Callable, Mapping
from functools import partial

from flatbayes.core.files import JsonValue

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
