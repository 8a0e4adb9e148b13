"""Encoding of the text of CSV files."""

import codecs

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


def detect_encoding(
    sample: bytes, is_complete: bool, name: str, given: str | None = None, expected: str | None = None
) -> str:
    """Find the encoding of text: by a byte order mark, by zero bytes (UTF-16), else UTF-8 if it is valid.

    Args:
        sample: The first bytes of a file.
        is_complete: Whether these are all bytes.
        name: The file, for messages.
        given: The encoding that the user gives; it is only checked.
        expected: The encoding of text that is not UTF-8.

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
