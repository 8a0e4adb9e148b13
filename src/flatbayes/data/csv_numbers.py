"""Which texts of a CSV file are numbers, as pyarrow reads them."""

from functools import cache
from typing import Any

from flatbayes.core.optional import require_package


def is_number(text: str, decimal: str) -> bool:
    """Whether pyarrow reads a text as a number, a boolean, or a missing number."""
    text = text.strip()
    if text in list_number_words():
        return True
    if "_" in text or (decimal == "," and "." in text):
        return False
    try:
        float(text.replace(",", ".") if decimal == "," else text)
    except ValueError:
        return False
    return True


def parse_numbers(column: Any, decimal: str) -> Any | None:
    """Numbers of a column of their texts, float64 as pyarrow reads them from the file; None if others are among them.

    Args:
        column: Column of texts.
        decimal: Decimal mark.
    """
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


@cache
def list_number_words() -> frozenset[str]:
    """List the words that pyarrow reads as a missing number or a boolean."""
    from pyarrow import csv as arrow_csv

    options = arrow_csv.ConvertOptions()
    return frozenset((*options.null_values, *options.true_values, *options.false_values))
