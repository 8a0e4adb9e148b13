"""Number and label formats: fixed decimals, a true minus sign, and an en dash where there is no number."""

import re
from typing import Literal

from flatbayes.experiments.results import SummaryRow
from flatbayes.reporting.queries import is_finite_number

MISSING = "–"
ZERO_TOLERANCE = 1e-12
"""Smaller differences are rounding errors of equal numbers."""

Side = Literal["plain", "flat"]


def format_number(value: float | None) -> str:
    """Four decimals for metrics of order one, fewer for larger numbers, an exponent for tiny ones, or a dash."""
    if value in (float("inf"), float("-inf")):
        return "∞" if value == float("inf") else "−∞"
    if not is_finite_number(value):
        return MISSING
    size = abs(value)
    if size < ZERO_TOLERANCE:
        value, size = 0.0, 0.0
    if 0 < size < 5e-5:
        text = f"{value:.1e}"
    else:
        decimals = 4 if size < 10 else 2 if size < 100 else 1 if size < 1000 else 0
        text = f"{value:,.{decimals}f}"
    return text.replace("-", "−")


def format_signed(value: float | None) -> str:
    """A difference, with its sign."""
    text = format_number(value)
    return f"+{text}" if is_finite_number(value) and value > ZERO_TOLERANCE else text


def format_p_value(value: float | None) -> str:
    """A p-value with three decimals."""
    if not is_finite_number(value):
        return MISSING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def format_effect_size(value: float | None) -> str:
    """An effect in standard deviations, with its sign."""
    return f"{value:+.1f}".replace("-", "−") if is_finite_number(value) else MISSING


def format_cost(value: float | None) -> str:
    """A cost with three significant digits."""
    if not is_finite_number(value):
        return MISSING
    if float(value).is_integer() or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def format_ratio(numerator: float | None, denominator: float | None) -> str:
    """A ratio with two decimals."""
    if is_finite_number(numerator) and is_finite_number(denominator) and denominator:
        return f"{numerator / denominator:.2f}×"
    return MISSING


def format_mean_sd(mean: float | None, sd: float | None) -> str:
    """Mean ± standard deviation, the mean alone where there is no deviation."""
    if is_finite_number(mean) and is_finite_number(sd):
        return f"{format_number(mean)} ± {format_number(sd)}"
    return format_number(mean)


def format_side(row: SummaryRow, side: Side) -> str:
    """Mean ± standard deviation of the plain or the flat runs of a summary row."""
    pair = row.comparison
    return format_mean_sd(pair.plain, pair.plain_sd) if side == "plain" else format_mean_sd(pair.flat, pair.flat_sd)


def format_interval(row: SummaryRow) -> str:
    """The interval of the difference as [low, high]."""
    ends = row.comparison.interval
    return f"[{format_signed(ends[0])}, {format_signed(ends[1])}]" if ends else MISSING


def shorten_label(label: str, width: int = 46) -> str:
    """A label of at most `width` characters, shortened in the middle."""
    if len(label) <= width:
        return label
    tail = width // 3
    return f"{label[: width - tail - 1]}…{label[-tail:]}"


def wrap_label(label: str, width: int) -> list[str]:
    """Lines of at most `width` characters, broken after commas and opening brackets where possible."""
    lines = [""]
    for piece in re.findall(r"[^(,]*(?:\(|,\s*|$)", label):
        while len(piece) > width:
            lines, piece = [*lines, piece[:width]], piece[width:]
        if len(lines[-1]) + len(piece.rstrip()) <= width:
            lines[-1] += piece
        else:
            lines.append(piece)
    return [line.rstrip() for line in lines if line.strip()] or [""]
