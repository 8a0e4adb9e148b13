"""Text of CSV files: its encoding, and which texts are numbers, as pyarrow reads them."""

import codecs
from typing import Any

from flatbayes.core.optional import require_package

FILE_SIGNATURES = {
    b"PK\x03\x04": "an Excel workbook or a zip archive",
    b"\xd0\xcf\x11\xe0": "an Excel workbook",
    b"PAR1": "a parquet file",
    b"\x1f\x8b": "a gzip file (its name must end in .gz)",
    b"<!doctype": "a web page",
    b"<html": "a web page",
}
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
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


def detect_encoding(
    sample: bytes, is_complete: bool, name: str, given: str | None = None, expected: str | None = None
) -> str:
    """Find the encoding of text: by a byte order mark, by zero bytes (UTF-16), else UTF-8 if it is valid.

    A `given` encoding is only checked; `expected` is that of text that is not UTF-8.

    Raises:
        ValueError: The bytes are no text in this encoding, or no certain one; the message shows the first bytes.
    """
    kind = next(
        (kind for mark, kind in FILE_SIGNATURES.items() if sample[:20].lower().startswith(mark.lower())), None
    )
    if kind is not None:
        raise ValueError(f"{name} is {kind}, and not text as its suffix says. Save it as CSV.")
    mark = next((encoding for mark, encoding in BYTE_ORDER_MARKS.items() if sample.startswith(mark)), None)
    if given is None and mark is not None:
        return mark
    if given is None and b"\0" in sample:
        even, odd = (sample[offset::2].count(0) / max(1, len(sample) // 2) for offset in (0, 1))
        if min(even, odd) > 0.1 or max(even, odd) < 0.3:
            raise ValueError(f"{name} is not text: it has zero bytes. Check that it is a CSV file.")
        return "utf-16-le" if odd > even else "utf-16-be"
    for encoding in filter(None, (given, "utf-8", expected)):
        error = find_decoding_error(sample, is_complete, encoding)
        if error is None:
            return encoding
        if encoding in (given, expected):
            break
    raise ValueError(explain_decoding_error(sample, given or "utf-8", name))


def find_decoding_error(content: bytes, is_complete: bool, encoding: str) -> UnicodeError | None:
    """The error of decoding these bytes; None if they are valid, apart from an incomplete last character."""
    try:
        codecs.getincrementaldecoder(encoding)("strict").decode(content, is_complete)
    except UnicodeError as error:
        return error
    return None


def explain_decoding_error(content: bytes, encoding: str, name: str, first_line: int = 1) -> str:
    """Message with line and text of the first bytes that are not in this encoding."""
    error = find_decoding_error(content, True, encoding)
    position = error.start if isinstance(error, UnicodeDecodeError) else 0
    line = first_line + content.count(b"\n", 0, position)
    begin = content.rfind(b"\n", 0, position) + 1
    end = content.find(b"\n", position)
    excerpt = content[max(begin, position - 20) : end if end >= 0 else None][:40].rstrip(b"\r")
    reading = excerpt.decode("cp1252", "replace")
    return (
        f"{name} is not {encoding.upper()}: line {line} has the bytes {excerpt!r}, which are {reading!r} in cp1252, "
        "the encoding of Windows in Western Europe and America. Say its encoding, such as encoding=cp1252 (on the "
        "command line --data.encoding cp1252, for predict --encoding cp1252), or save it as UTF-8."
    )


def parse_number(text: str, decimal: str = ".") -> float | None:
    """The number that pyarrow reads from a text; NaN for a missing one, 1 or 0 for a boolean, None for no number.

    >>> parse_number(" 1.5 "), parse_number("NA"), parse_number("True"), parse_number("?")
    (1.5, nan, 1.0, None)
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
