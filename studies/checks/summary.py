"""Counts of alarms: right, false, and of unknown truth."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from flatbayes.checks import CHECKS
from flatbayes.checks.reliability import MAX_SCALE

MIN_GAIN = 0.01
"""Decrease of the test NLL by more steps, or by fewer, that confirms an alarm."""
NULL_CHECKS = ("confidence", "coverage")
"""Checks that are right by construction for targets from the predictive distribution."""
Row = Mapping[str, Any]


def count_alarms(rows: Sequence[Row]) -> dict[str, dict[str, int]]:
    """Numbers of fits, alarms, those confirmed, refuted and missed, and alarms under the null, for every check."""
    counts = {
        entry.name: dict.fromkeys(("fits", "alarms", "confirmed", "refuted", "missed", "null"), 0) for entry in CHECKS
    }
    by_fit = {(row["task"], row["posterior"], row["steps"]): row for row in rows if "checks" in row}
    for row in by_fit.values():
        for name, entry in row["checks"].items():
            count = counts[name]
            count["fits"] += 1
            count["null"] += name in NULL_CHECKS and not row["null"][name]["passed"]
            truth = confirm_alarm(name, row, by_fit)
            if entry["passed"]:
                count["missed"] += name in ("too_few_steps", "too_many_steps") and truth is True
                continue
            count["alarms"] += 1
            count["confirmed"] += truth is True
            count["refuted"] += truth is False
    return {name: count for name, count in counts.items() if count["fits"]}


def confirm_alarm(name: str, row: Row, by_fit: Mapping[tuple[str, str, int], Row]) -> bool | None:
    """Whether test rows confirm an alarm; None where they cannot."""
    lengths = sorted(
        steps for task, posterior, steps in by_fit if (task, posterior) == (row["task"], row["posterior"])
    )
    position = lengths.index(row["steps"])
    if name in ("too_few_steps", "too_many_steps"):
        other = position + 1 if name == "too_few_steps" else position - 1
        if not 0 <= other < len(lengths):
            return None
        alternative = by_fit[row["task"], row["posterior"], lengths[other]]
        return bool(row["test_nll"] - alternative["test_nll"] > MIN_GAIN)
    entry = row["test"].get(name)
    if name == "confidence":  # beyond the same limit, without a test: the test rows are few
        value, other = row["checks"][name]["value"] or math.inf, entry["value"] or math.inf
        return (other > MAX_SCALE) if value > 1 else (other < 1 / MAX_SCALE)
    return None if entry is None or name in ("diverged", "mixing", "collapse") else not entry["passed"]


def format_counts(rows: Sequence[Row]) -> str:
    """The counts as a table of markdown."""
    lines = [
        "| check | fits | alarms | confirmed by test rows | refuted | missed | alarms where right by construction |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, count in count_alarms(rows).items():
        null = count["null"] if name in NULL_CHECKS else "–"
        missed = count["missed"] if name in ("too_few_steps", "too_many_steps") else "–"
        cells = (f"`{name}`", *(count[key] for key in ("fits", "alarms", "confirmed", "refuted")), missed, null)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)
