"""Findings of the self-checks of a fitted posterior, and the report that collects them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Self

from flatbayes.core.display import format_entries, format_html_table, format_number, make_data_frame
from flatbayes.core.files import replace_nonfinite
from flatbayes.core.names import format_count

if TYPE_CHECKING:
    import pandas as pd  # an optional package

SIGNIFICANCE = 0.01
"""Probability that any of the tests of a report fails by chance, at most."""


@dataclass(frozen=True)
class Finding:
    """Result of one check.

    Attributes:
        name: Name of the check.
        passed: Whether the value is within the threshold, or its difference from the threshold may be chance.
        problem: What is wrong where the check fails, as the beginning of a sentence.
        measurement: What was measured, with the number, as its end.
        value: The measured number.
        threshold: What the value should be, as text.
        remedy: What to try next where the check fails.
        p_value: Probability of such a value by chance, times the number of tests in the report; None for no test.

    Examples:
        >>> finding = Finding(
        ...     "coverage", False, "Intervals are too narrow", "95 % intervals cover 72 %", 0.72, "93 %"
        ... )
        >>> finding.message
        'Intervals are too narrow: 95 % intervals cover 72 %'
    """

    name: str
    passed: bool
    problem: str
    measurement: str
    value: float
    threshold: str
    remedy: str = ""
    p_value: float | None = None

    @property
    def message(self) -> str:
        """What was measured, and where the check fails what is wrong, as one sentence."""
        if not self.passed:
            return f"{self.problem}: {self.measurement}"
        return self.measurement[:1].upper() + self.measurement[1:]

    def format(self) -> str:
        """The message with threshold and p-value, on one line."""
        chance = "" if self.p_value is None else f", p = {self.p_value:.2g}"
        return f"{self.message} (limit: {self.threshold}{chance})"


@dataclass(frozen=True)
class CheckReport:
    """Results of all checks that apply to a posterior.

    Attributes:
        findings: A result for each check, the failed ones first.
        skipped: Why the other checks do not apply, by name.
        num_examples: Number of labelled examples.
        num_networks: Number of networks that were averaged.
        notes: What else the evidence says, as sentences: nothing that fails.

    Examples:
        >>> report = check(fitted, data.val, num_draws=10)
        >>> len(report.findings) + len(report.skipped) == len(CHECKS)
        True
        >>> text = report.summary()
    """

    findings: tuple[Finding, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)
    num_examples: int = 0
    num_networks: int = 0
    notes: tuple[str, ...] = ()

    @property
    def failed(self) -> tuple[Finding, ...]:
        """Findings of the checks that failed."""
        return tuple(finding for finding in self.findings if not finding.passed)

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not self.failed

    def __getitem__(self, name: str) -> Finding:
        """The finding of a check.

        Raises:
            KeyError: There is no such check, or it does not apply; the message says why.
        """
        for finding in self.findings:
            if finding.name == name:
                return finding
        raise KeyError(f"{name}: {self.skipped.get(name, 'there is no such check')}")

    def __repr__(self) -> str:
        return f"<CheckReport: {self.describe()}>"

    def _repr_html_(self) -> str:
        rows = [
            (
                finding.name,
                "passed" if finding.passed else "**failed**",
                finding.message,
                finding.threshold,
                "" if finding.p_value is None else f"{finding.p_value:.2g}",
                "" if finding.passed else finding.remedy,
            )
            for finding in self.findings
        ]
        header = ("check", "result", "finding", "limit", "p", "next")
        notes = [*self.notes, *(f"{name} does not apply: {reason}" for name, reason in self.skipped.items())]
        return format_html_table(self._title, header, rows, notes, num_label_columns=6)

    @property
    def _title(self) -> str:
        return f"Checks on {format_count(self.num_examples, 'example')}, networks averaged: {self.num_networks}"

    def describe(self) -> str:
        """Number of checks that passed, and the names of those that failed."""
        count = f"{len(self.findings) - len(self.failed)} of {format_count(len(self.findings), 'check')} passed"
        return f"{count}; failed: {', '.join(f.name for f in self.failed)}" if self.failed else count

    def format_failures(self) -> list[str]:
        """A line for each check that failed, with what to try next."""
        return [f"{finding.name}: {finding.format()}. Next: {finding.remedy}" for finding in self.failed]

    def summary(self) -> str:
        """All findings, what to try next, and the checks that do not apply, as text."""
        entries = dict[str, str]()
        for finding in self.findings:
            verdict = "passed" if finding.passed else "FAILED"
            remedy = "" if finding.passed else f" Next: {finding.remedy}"
            entries[finding.name] = f"{verdict}  {finding.format()}.{remedy}"
        entries |= {name: f"–       {reason}" for name, reason in self.skipped.items()}
        return "\n".join([format_entries(self._title, entries), *self.notes])

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with None for numbers that are not finite."""
        data: dict[str, Any] = replace_nonfinite(asdict(self))
        return data

    def to_pandas(self) -> "pd.DataFrame":
        """One row for each finding.

        Raises:
            ImportError: pandas is not installed.
        """
        columns = ("name", "passed", "message", "value", "threshold", "p_value", "remedy")
        return make_data_frame({name: [getattr(f, name) for f in self.findings] for name in columns})

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """Read what `to_dict` returned.

        Raises:
            ValueError: The data are not those of a report.
        """
        if not is_report(data):
            raise ValueError(f"Expected a report written by CheckReport.to_dict, got {str(data)[:80]}.")
        findings = tuple(Finding(**{**entry, "value": _to_float(entry["value"])}) for entry in data["findings"])
        return cls(findings, dict(data["skipped"]), data["num_examples"], data["num_networks"], tuple(data["notes"]))


def is_report(data: Any) -> bool:
    """Whether plain data are those of `CheckReport.to_dict`.

    Examples:
        >>> is_report({"findings": 3})
        False
    """
    if not isinstance(data, dict) or set(data) != set(CheckReport.__dataclass_fields__):
        return False
    counts = (data["num_examples"], data["num_networks"])
    return (
        all(type(count) is int for count in counts)
        and isinstance(data["skipped"], dict)
        and all(isinstance(text, str) for text in data["skipped"].values())
        and isinstance(data["findings"], list | tuple)
        and isinstance(data["notes"], list | tuple)
        and all(isinstance(text, str) for text in data["notes"])
        and all(map(_is_finding, data["findings"]))
    )


def _is_finding(data: Any) -> bool:
    texts, numbers = ("name", "problem", "measurement", "threshold", "remedy"), ("value", "p_value")
    return (
        isinstance(data, dict)
        and set(data) == set(Finding.__dataclass_fields__)
        and all(isinstance(data[name], str) for name in texts)
        and all(data[name] is None or type(data[name]) in (int, float) for name in numbers)
        and type(data["passed"]) is bool
    )


def _to_float(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def format_percent(fraction: float) -> str:
    """A fraction in percent with three significant digits.

    >>> format_percent(0.0123), format_percent(1.0)
    ('1.23 %', '100 %')
    """
    return f"{format_number(float(f'{100 * fraction:.3g}'))} %"
