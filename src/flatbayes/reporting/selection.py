"""How hyperparameters were chosen: what each twin was tried with on validation data, and what was kept."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flatbayes.reporting import queries, text
from flatbayes.reporting.formats import MISSING, format_number
from flatbayes.reporting.markup import Html, breakable, details, row, table, tag

Selection = Mapping[str, Any]
"""The parsed `selection.json` of `flatbayes.experiments.select`."""

SELECTION_FILE = "selection.json"
TRIAL_KEYS: Mapping[str, Any] = {
    "method": str,
    "setting": str,
    "variant": str,
    "score": (int, float, type(None)),
    "is_best": bool,
}
TWINS = ("plain", "flat")


def read_selection(folder: Path) -> Selection | None:
    """Read and check `folder/selection.json`, None where there is no such file.

    Raises:
        ValueError: The file is not JSON, or not the record of a selection.
    """
    path = folder / SELECTION_FILE
    if not path.is_file():
        return None
    try:
        return validate_selection(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged, or not a selection's ({error}); choose the hyperparameters again with "
            "flatbayes.experiments.select, or move the file away for a report without it."
        ) from error


def validate_selection(record: Any) -> Selection:
    """The same record, if nothing of a selection is missing; else a ValueError that names it."""
    if not isinstance(record, Mapping):
        raise ValueError(f"expected an object, got {type(record).__name__}")
    if not isinstance(record.get("metric"), str):
        raise ValueError("'metric' should be the name of a metric")
    for part in ("seeds", "trials"):
        if not isinstance(record.get(part), list) or not record[part]:
            raise ValueError(f"'{part}' should be a list with at least one entry")
    for place, trial in enumerate(record["trials"]):
        for key, kind in TRIAL_KEYS.items():
            if not isinstance(trial, Mapping) or key not in trial:
                raise ValueError(f"trials[{place}] lacks '{key}'")
            if not isinstance(trial[key], kind):
                raise ValueError(f"'{key}' of trials[{place}] should not be {trial[key]!r}")
        if trial["variant"] not in TWINS:
            raise ValueError(f"'variant' of trials[{place}] should be plain or flat, got {trial['variant']!r}")
    return record


def selection_section(record: Selection) -> list[Html]:
    """What was chosen for each method, and all trials, closed until asked for."""
    trials, metric = record["trials"], record["metric"]
    counts = {twin: sum(trial["variant"] == twin for trial in trials) for twin in TWINS}
    return [
        tag("p", text.describe_selection(metric, len(record["seeds"]), counts["plain"], counts["flat"])),
        chosen_trials_table(record),
        details(f"All {len(trials)} trials", trials_table(record)),
    ]


def chosen_trials_table(record: Selection) -> Html:
    """A row for each method: how often each twin was tried, and what came out best."""
    score = score_label(record)
    rows = []
    for method in queries.unique_values(trial["method"] for trial in record["trials"]):
        tried = {twin: select_trials(record, method, twin) for twin in TWINS}
        plain, flat = (find_chosen_trial(tried[twin]) for twin in TWINS)
        rows.append(
            row(
                breakable(method),
                format_trial_count(tried["plain"]),
                tag("td", breakable(format_setting(plain)), class_="long"),
                format_number(plain["score"]) if plain else MISSING,
                format_trial_count(tried["flat"]),
                tag("td", breakable(format_flat_setting(flat, plain)), class_="wrap"),
                format_number(flat["score"]) if flat else MISSING,
            )
        )
    return table(
        "What was chosen for each method; the scores are means over seeds on the validation part",
        tag(
            "thead",
            tag(
                "tr",
                *(
                    tag("th", name, scope="col", class_=kind)
                    for name, kind in (
                        ("Method", None),
                        ("Plain trials", "num"),
                        ("Chosen setting", None),
                        (score, "num"),
                        ("Flat trials", "num"),
                        ("Chosen flatness", None),
                        (score, "num"),
                    )
                ),
            ),
        ),
        tag("tbody", *rows),
        class_="selection",
    )


def trials_table(record: Selection) -> Html:
    """Every trial in the order of trying."""
    rows = [
        row(
            breakable(trial["method"]),
            tag("td", trial["variant"]),
            tag("td", breakable(trial["setting"]), class_="long"),
            format_number(trial["score"]),
            tag("td", "best" if trial["is_best"] else ""),
            class_="best" if trial["is_best"] else None,
        )
        for trial in record["trials"]
    ]
    names = ("Method", "Twin", "Setting")
    head = (
        *(tag("th", name, scope="col") for name in names),
        tag("th", score_label(record), scope="col", class_="num"),
    )
    return table(
        f"All {len(rows)} trials; a dash is a trial of which a run came to nothing",
        tag("thead", tag("tr", *head, tag("td"))),
        tag("tbody", *rows),
    )


def score_label(record: Selection) -> str:
    """What the scores are."""
    return f"Validation {record['metric']}"


def select_trials(record: Selection, method: str, twin: str) -> list[Mapping[str, Any]]:
    """Trials of one method and one twin, in the order of trying."""
    return [trial for trial in record["trials"] if (trial["method"], trial["variant"]) == (method, twin)]


def find_chosen_trial(trials: list[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The trial that was kept."""
    return next((trial for trial in trials if trial["is_best"]), None)


def format_trial_count(trials: list[Mapping[str, Any]]) -> str:
    """How many trials there were, and how many of them came to nothing."""
    failed = sum(trial["score"] is None for trial in trials)
    return f"{len(trials)} ({failed} failed)" if failed else f"{len(trials)}"


def format_setting(trial: Mapping[str, Any] | None) -> str:
    """What the twins share: the setting of a plain trial without its flatness."""
    return str(trial["setting"]).removesuffix(", Plain") if trial else MISSING


def format_flat_setting(flat: Mapping[str, Any] | None, plain: Mapping[str, Any] | None) -> str:
    """What the flat twin has of its own: its setting without what the twins share."""
    return str(flat["setting"]).removeprefix(f"{format_setting(plain)}, ") if flat else MISSING
