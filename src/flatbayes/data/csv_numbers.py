"""Which texts of a CSV file are numbers, as pyarrow reads them."""

from typing import Any

from flatbayes.core.optional import require_package

MISSING_NUMBERS = frozenset(
    (
        *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN"),
        *("N/A", "NA", "NULL", "NaN", "n/a", "nan", "null"),
    )
)
"""Texts that pyarrow reads as a missing number."""
BOOLEANS = {"true": 1.0, "True": 1.0, "TRUE": 1.0, "false": 0.0, "False": 0.0, "FALSE": 0.0}
"""Texts that pyarrow reads as a boolean, beside 1 and 0."""

MARKS_OF_MISSING = ("?", "-", "--", ".", "*", "none", "missing", "unknown")
"""Words in small letters that often mark a missing number, and that may mean something else."""


def parse_number(text: str, decimal: str = ".") -> float | None:
    """The number that pyarrow reads from a text; NaN for a missing one, 1 or 0 for a boolean, None for no number.

    >>> parse_number(" 1.5 "), parse_number("NA"), parse_number("True"), parse_number("?")
    (1.5, nan, 1.0, None)

    Args:
        text: The text, with or without spaces around it.
        decimal: Decimal mark.
    """
    text = text.strip()
    if text in MISSING_NUMBERS:
        return float("nan")
    if text in BOOLEANS:
        return BOOLEANS[text]
    if "_" in text or (decimal == "," and "." in text):
        return None
    try:
        return float(text.replace(",", ".") if decimal == "," else text)
    except ValueError:
        return None


def is_mark_of_missing(text: str) -> bool:
    """Whether a text that is no number may mark a missing one."""
    return text.strip().lower() in MARKS_OF_MISSING


def is_number(text: str, decimal: str) -> bool:
    """Whether pyarrow reads a text as a number, a boolean, or a missing number."""
    return parse_number(text, decimal) is not None


def parse_numbers(column: Any, decimal: str) -> Any | None:
    """Float64 numbers of a column of texts, as pyarrow reads them from the file; None if others are among them."""
    with require_package("data"):
        import pyarrow as pa
        import pyarrow.compute as pc
        from pyarrow import csv as arrow_csv
    options = arrow_csv.ConvertOptions()
    texts = pc.utf8_trim_whitespace(column)
    for words, value in ((options.null_values, None), (options.true_values, "1"), (options.false_values, "0")):
        texts = pc.if_else(pc.is_in(texts, pa.array(words)), pa.scalar(value, pa.string()), texts)
    if decimal == ",":
        if pc.any(pc.match_substring(texts, ".")).as_py():
            return None
        texts = pc.replace_substring(texts, ",", ".")
    try:
        return texts.cast(pa.float64())
    except pa.ArrowInvalid:
        return None
