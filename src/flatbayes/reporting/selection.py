"""Section of the report on hyperparameter selection: trials of both variants, and the selected settings."""

from collections.abc import Sequence
from dataclasses import dataclass

from flatbayes.experiments.selection import SelectionRecord, SelectionTrial
from flatbayes.reporting import queries, text
from flatbayes.reporting.formats import MISSING, format_number


@dataclass(frozen=True)
class MethodRow:
    """Number of trials, selected setting and its score, for the plain and the flat variant of a method."""

    method: str
    plain_trials: str
    plain_setting: str
    plain_score: str
    flat_trials: str
    flat_setting: str
    flat_score: str


@dataclass(frozen=True)
class SelectionSummary:
    """Contents of the section."""

    text: str
    score_label: str
    methods: list[MethodRow]
    trials: tuple[SelectionTrial, ...]


def summarize_selection(record: SelectionRecord) -> SelectionSummary:
    """Text and tables of the section."""
    num_plain, num_flat = (sum(trial.variant == variant for trial in record.trials) for variant in ("plain", "flat"))
    return SelectionSummary(
        text.describe_selection(record.metric, len(record.seeds), num_plain, num_flat, record.list_unpaid()),
        f"Validation {record.metric}",
        [_make_method_row(record, name) for name in queries.unique_values(trial.method for trial in record.trials)],
        record.trials,
    )


def _make_method_row(record: SelectionRecord, method: str) -> MethodRow:
    trials = [trial for trial in record.trials if trial.method == method]
    plain_trials, flat_trials = ([t for t in trials if t.variant == variant] for variant in ("plain", "flat"))
    plain, flat = (next((t for t in group if t.is_best), None) for group in (plain_trials, flat_trials))
    plain_setting = plain.setting.removesuffix(", Plain") if plain else MISSING
    return MethodRow(
        method,
        _format_trial_count(plain_trials),
        plain_setting,
        format_number(plain.score) if plain else MISSING,
        _format_trial_count(flat_trials),
        flat.setting.removeprefix(f"{plain_setting}, ") if flat else MISSING,
        format_number(flat.score) if flat else MISSING,
    )


def _format_trial_count(trials: Sequence[SelectionTrial]) -> str:
    """Number of trials, and how many of them failed."""
    failed = sum(trial.score is None for trial in trials)
    return f"{len(trials)} ({failed} failed)" if failed else f"{len(trials)}"
