"""Observed coverage and size of prediction regions."""

from dataclasses import dataclass
from textwrap import fill
from typing import Any

from flatbayes.core.display import format_entries, format_fields
from flatbayes.core.names import format_count


@dataclass(frozen=True)
class CoverageEstimate:
    """Observed coverage of the examples of a group, class or target.

    Attributes:
        name: Name of the group.
        num_examples: Number of examples.
        coverage: Fraction of the examples whose target is in the region.
        mean_size: Mean number of classes, or mean width.
        expected_range: Central 95 % range of the coverage if the assumptions hold; None where nothing is guaranteed,
            such as for a class without thresholds of its own.

    Examples:
        >>> CoverageEstimate("all", 200, 0.91, 1.4, (0.85, 0.95)).is_as_guaranteed
        True
    """

    name: str
    num_examples: int
    coverage: float
    mean_size: float
    expected_range: tuple[float, float] | None

    __repr__ = format_fields

    @property
    def is_as_guaranteed(self) -> bool | None:
        """Whether the coverage reaches the expected range; above it is possible where scores tie."""
        return None if self.expected_range is None else self.coverage >= self.expected_range[0]


@dataclass(frozen=True)
class ConformalEvaluation:
    """Coverage and size of prediction regions on labelled examples.

    Attributes:
        level: The wanted coverage.
        estimates: Coverage of all examples first, then of each group, class or target.
        empty_fraction: Fraction of the regions that are empty.
        guarantee: The guarantee and its assumptions.

    Examples:
        >>> predictor = fit_conformal(fitted.predict(data.val.inputs), data.val.targets)
        >>> evaluation = predictor.evaluate(fitted.predict(inputs), labels)
        >>> len(evaluation.estimates), evaluation.coverage == evaluation.estimates[0].coverage
        (11, True)
    """

    level: float
    estimates: tuple[CoverageEstimate, ...]
    empty_fraction: float
    guarantee: str

    @property
    def coverage(self) -> float:
        """Fraction of all targets that are in their region."""
        return self.estimates[0].coverage

    @property
    def mean_size(self) -> float:
        """Mean number of classes in a set, or mean width of an interval."""
        return self.estimates[0].mean_size

    def __repr__(self) -> str:
        return (
            f"<ConformalEvaluation at level {self.level:g}: coverage {self.coverage:.4g}, mean size "
            f"{self.mean_size:.4g}, {format_count(self.estimates[0].num_examples, 'example')}>"
        )

    def summary(self) -> str:
        """Coverage and size of every group with the expected range, and the guarantee, as text."""
        lines = {row.name: _format_estimate(row) for row in self.estimates}
        lines["empty"] = f"{100 * self.empty_fraction:.1f} % of the regions"
        return (
            f"{format_entries(f'Conformal prediction at level {self.level:g}', lines)}\n{fill(self.guarantee, 100)}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "level": self.level,
            "estimates": [vars(row) | {"is_as_guaranteed": row.is_as_guaranteed} for row in self.estimates],
            "empty_fraction": self.empty_fraction,
            "guarantee": self.guarantee,
        }


def _format_estimate(row: CoverageEstimate) -> str:
    text = f"coverage {row.coverage:.4f}, mean size {row.mean_size:.4g}, {format_count(row.num_examples, 'example')}"
    if row.expected_range is None:
        return text
    low, high = row.expected_range
    verdict = "" if row.is_as_guaranteed else "; BELOW: the assumptions do not hold"
    return f"{text}; expected {low:.4f} to {high:.4f}{verdict}"
