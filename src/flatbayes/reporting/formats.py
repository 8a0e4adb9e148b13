"""Numbers and labels as a reader wants them: aligned, rounded, and an en dash where there is none."""

import re
from collections.abc import Mapping
from typing import Any

from flatbayes.reporting.queries import get_interval, is_finite_number

MISSING = "–"
ZERO_TOLERANCE = 1e-12
"""What is smaller is a difference of equal numbers."""


def format_number(value: Any) -> str:
    """Four decimals for metrics of order one, fewer for larger numbers, an exponent for tiny ones, or a dash."""
    if isinstance(value, (int, float)) and value in (float("inf"), float("-inf")):
        return "∞" if value > 0 else "−∞"
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


def format_signed(value: Any) -> str:
    """A difference, with its sign."""
    text = format_number(value)
    return f"+{text}" if is_finite_number(value) and value > ZERO_TOLERANCE else text


def format_p_value(value: Any) -> str:
    """A p-value: three decimals, and no more zeros than that."""
    if not is_finite_number(value):
        return MISSING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def format_effect_size(value: Any) -> str:
    """An effect in standard deviations, with its sign."""
    return f"{value:+.1f}".replace("-", "−") if is_finite_number(value) else MISSING


def format_cost(value: Any) -> str:
    """A cost: three digits are enough."""
    if not is_finite_number(value):
        return MISSING
    if float(value).is_integer() or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def format_ratio(numerator: Any, denominator: Any) -> str:
    """How many times more."""
    return (
        f"{numerator / denominator:.2f}×"
        if is_finite_number(numerator) and is_finite_number(denominator) and denominator
        else MISSING
    )


def format_mean_sd(mean: Any, sd: Any) -> str:
    """Mean ± standard deviation, the mean alone where there is no deviation."""
    return (
        f"{format_number(mean)} ± {format_number(sd)}"
        if is_finite_number(mean) and is_finite_number(sd)
        else format_number(mean)
    )


def format_side(row: Mapping[str, Any], side: str) -> str:
    """Mean ± standard deviation of one side of a summary row."""
    return format_mean_sd(row[side], row.get(f"{side}_sd"))


def format_interval(row: Mapping[str, Any]) -> str:
    """The interval of a difference as [low, high]."""
    ends = get_interval(row)
    return f"[{format_signed(ends[0])}, {format_signed(ends[1])}]" if ends else MISSING


def shorten_label(label: str, width: int = 46) -> str:
    """A label that fits a figure: the middle gives way."""
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
