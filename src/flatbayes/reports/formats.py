"""Numbers and labels as a reader wants them: aligned, rounded, and an en dash where there is none."""

import re
from collections.abc import Mapping
from typing import Any

from flatbayes.reports.results import finite, interval

NOTHING = "–"
ROUNDING = 1e-12
"""What is smaller is a difference of equal numbers."""


def number(value: Any) -> str:
    """Four decimals for metrics of order one, fewer for larger numbers, an exponent for tiny ones, or a dash."""
    if isinstance(value, (int, float)) and value in (float("inf"), float("-inf")):
        return "∞" if value > 0 else "−∞"
    if not finite(value):
        return NOTHING
    size = abs(value)
    if size < ROUNDING:
        value, size = 0.0, 0.0
    if 0 < size < 5e-5:
        text = f"{value:.1e}"
    else:
        decimals = 4 if size < 10 else 2 if size < 100 else 1 if size < 1000 else 0
        text = f"{value:,.{decimals}f}"
    return text.replace("-", "−")


def signed(value: Any) -> str:
    """A difference, with its sign."""
    text = number(value)
    return f"+{text}" if finite(value) and value > ROUNDING else text


def probability(value: Any) -> str:
    """A p-value: three decimals, and no more zeros than that."""
    if not finite(value):
        return NOTHING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def effect_size(value: Any) -> str:
    """An effect in standard deviations, with its sign."""
    return f"{value:+.1f}".replace("-", "−") if finite(value) else NOTHING


def amount(value: Any) -> str:
    """A cost: three digits are enough."""
    if not finite(value):
        return NOTHING
    if float(value).is_integer() or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def ratio(over: Any, under: Any) -> str:
    """How many times more."""
    return f"{over / under:.2f}×" if finite(over) and finite(under) and under else NOTHING


def plus_minus(mean: Any, sd: Any) -> str:
    """Mean ± standard deviation, the mean alone where there is no deviation."""
    return f"{number(mean)} ± {number(sd)}" if finite(mean) and finite(sd) else number(mean)


def spread(row: Mapping[str, Any], side: str) -> str:
    """Mean ± standard deviation of one side of a summary row."""
    return plus_minus(row[side], row.get(f"{side}_sd"))


def bracket(row: Mapping[str, Any]) -> str:
    """The interval of a difference as [low, high]."""
    ends = interval(row)
    return f"[{signed(ends[0])}, {signed(ends[1])}]" if ends else NOTHING


def shorten(label: str, width: int = 46) -> str:
    """A label that fits a figure: the middle gives way."""
    if len(label) <= width:
        return label
    tail = width // 3
    return f"{label[: width - tail - 1]}…{label[-tail:]}"


def wrapped(label: str, width: int) -> list[str]:
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
