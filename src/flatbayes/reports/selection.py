"""How hyperparameters were chosen: what each twin was tried with on validation data, and what was kept."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flatbayes.reports import prose
from flatbayes.reports import results as ask
from flatbayes.reports.formats import NOTHING, number
from flatbayes.reports.markup import Html, breakable, details, row, table, tag

Selection = Mapping[str, Any]
"""The parsed `selection.json` of `flatbayes.comparison.select`."""

FILE = "selection.json"
TRIAL_KEYS: Mapping[str, Any] = {
    "method": str,
    "setting": str,
    "twin": str,
    "score": (int, float, type(None)),
    "chosen": bool,
}
TWINS = ("plain", "flat")


def read_selection(folder: Path) -> Selection | None:
    """Read and check `folder/selection.json`, None where there is no such file.

    Raises:
        ValueError: The file is not JSON, or not the record of a selection.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        return checked_selection(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged, or not a selection's ({error}); choose the hyperparameters again with "
            "flatbayes.comparison.select, or move the file away for a report without it."
        ) from error


def checked_selection(record: Any) -> Selection:
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
        if trial["twin"] not in TWINS:
            raise ValueError(f"'twin' of trials[{place}] should be plain or flat, got {trial['twin']!r}")
    return record


def selection_section(record: Selection) -> list[Html]:
    """What was chosen for each method, and all trials, closed until asked for."""
    trials, metric = record["trials"], record["metric"]
    counts = {twin: sum(trial["twin"] == twin for trial in trials) for twin in TWINS}
    return [
        tag("p", prose.selection(metric, len(record["seeds"]), counts["plain"], counts["flat"])),
        chosen_table(record),
        details(f"All {len(trials)} trials", trials_table(record)),
    ]


def chosen_table(record: Selection) -> Html:
    """A row for each method: how often each twin was tried, and what came out best."""
    score = score_of(record)
    rows = []
    for method in ask.unique(trial["method"] for trial in record["trials"]):
        tried = {twin: trials_of(record, method, twin) for twin in TWINS}
        plain, flat = (chosen(tried[twin]) for twin in TWINS)
        rows.append(
            row(
                breakable(method),
                tally(tried["plain"]),
                tag("td", breakable(setting(plain)), class_="long"),
                number(plain["score"]) if plain else NOTHING,
                tally(tried["flat"]),
                tag("td", breakable(flatness(flat, plain)), class_="wrap"),
                number(flat["score"]) if flat else NOTHING,
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
            tag("td", trial["twin"]),
            tag("td", breakable(trial["setting"]), class_="long"),
            number(trial["score"]),
            tag("td", "chosen" if trial["chosen"] else ""),
            class_="chosen" if trial["chosen"] else None,
        )
        for trial in record["trials"]
    ]
    names = ("Method", "Twin", "Setting")
    head = (*(tag("th", name, scope="col") for name in names), tag("th", score_of(record), scope="col", class_="num"))
    return table(
        f"All {len(rows)} trials; a dash is a trial of which a run came to nothing",
        tag("thead", tag("tr", *head, tag("td"))),
        tag("tbody", *rows),
    )


def score_of(record: Selection) -> str:
    """What the scores are."""
    return f"Validation {record['metric']}"


def trials_of(record: Selection, method: str, twin: str) -> list[Mapping[str, Any]]:
    """Trials of one method and one twin, in the order of trying."""
    return [trial for trial in record["trials"] if (trial["method"], trial["twin"]) == (method, twin)]


def chosen(trials: list[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The trial that was kept."""
    return next((trial for trial in trials if trial["chosen"]), None)


def tally(trials: list[Mapping[str, Any]]) -> str:
    """How many trials there were, and how many of them came to nothing."""
    failed = sum(trial["score"] is None for trial in trials)
    return f"{len(trials)} ({failed} failed)" if failed else f"{len(trials)}"


def setting(plain: Mapping[str, Any] | None) -> str:
    """What the twins share: the setting of a plain trial without its flatness."""
    return str(plain["setting"]).removesuffix(", Plain") if plain else NOTHING


def flatness(flat: Mapping[str, Any] | None, plain: Mapping[str, Any] | None) -> str:
    """What the flat twin has of its own: its setting without what the twins share."""
    return str(flat["setting"]).removeprefix(f"{setting(plain)}, ") if flat else NOTHING
