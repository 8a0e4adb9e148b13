"""Format of CSV files: encoding, separator and decimal mark, as the user says, or detected where they are certain."""

import codecs
import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

from flatbayes.data.csv_text import detect_encoding

SEPARATOR_NAMES = {"comma": ",", "semicolon": ";", "tab": "\t", "\\t": "\t", "pipe": "|", "space": " "}
SEPARATORS = (",", ";", "\t", "|")
DECIMALS = (".", ",")
NUM_SAMPLE_RECORDS = 200
COMMA_NUMBER = re.compile(r"[+-]?\d+,\d+([eE][+-]?\d+)?")
POINT_NUMBER = re.compile(r"[+-]?\d*\.\d+([eE][+-]?\d+)?")
POSSIBLE_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")
OPEN_QUOTE = (
    "A quotation mark of {} is not closed: the rest of the file would be one value. Close it, or write two marks for "
    "one that is part of a value."
)
GROUPED_NUMBER = re.compile(r"[+-]?\d{1,3}([ ,.'\u00a0\u202f])\d{3}(\1\d{3})*([.,]\d+)?")


@dataclass(frozen=True, kw_only=True)
class CsvFormat:
    """What a user says about the format of CSV files; None where it is detected.

    Attributes:
        encoding: Encoding of the text, by its name in Python: utf-8, cp1252 (Windows), latin-1, utf-16 ...
        separator: Character between values, or its name: comma, semicolon, tab, pipe, space.
        decimal: Decimal mark of numbers: a point or a comma.

    Raises:
        ValueError: There is no such encoding, or a mark is not one character.
    """

    encoding: str | None = None
    separator: str | None = None
    decimal: str | None = None

    def __post_init__(self) -> None:
        if self.separator is not None:
            separator = SEPARATOR_NAMES.get(self.separator.lower(), self.separator)
            object.__setattr__(self, "separator", separator)
            if len(separator) != 1 or separator in '"\r\n' or separator.isalnum():
                raise ValueError(
                    f"separator is one character, or one of {', '.join(SEPARATOR_NAMES)}, got {self.separator!r}."
                )
        if self.decimal is not None and self.decimal not in DECIMALS:
            raise ValueError(f"decimal is a point or a comma, '.' or ',', got {self.decimal!r}.")
        if self.encoding is not None:
            try:
                name = codecs.lookup(self.encoding).name
            except LookupError as error:
                raise ValueError(
                    f"There is no encoding {self.encoding!r}. Common ones: utf-8, cp1252 (Windows), latin-1, utf-16."
                ) from error
            object.__setattr__(self, "encoding", "utf-8" if name == "utf-8-sig" else name)

    def to_dict(self) -> dict[str, str]:
        """The entries that are not None, as plain data."""
        return {f.name: getattr(self, f.name) for f in fields(CsvFormat) if getattr(self, f.name) is not None}

    @staticmethod
    def from_dict(values: object) -> "CsvFormat":
        """The format that `to_dict` describes; entries of another kind are left out."""
        entries = values if isinstance(values, Mapping) else {}
        names = [f.name for f in fields(CsvFormat)]
        return CsvFormat(**{name: entries[name] for name in names if isinstance(entries.get(name), str)})


@dataclass(frozen=True, kw_only=True)
class CsvLayout:
    """Everything that is needed to read one CSV file.

    `num_header_lines` counts the lines before the first row: comments, and the header.
    """

    encoding: str
    separator: str
    decimal: str
    column_names: tuple[str, ...]
    num_header_lines: int = 1
    has_multiline_values: bool = False

    @property
    def format(self) -> CsvFormat:
        """The format without what is particular to one file."""
        return CsvFormat(encoding=self.encoding, separator=self.separator, decimal=self.decimal)


def detect_layout(
    sample: bytes, *, is_complete: bool, name: str, given: CsvFormat, expected: CsvFormat | None = None
) -> CsvLayout:
    """Detect the layout of a CSV file from its first bytes.

    What is `given` is not detected; `expected`, the format of the training data, holds where the text is not certain.

    Raises:
        ValueError: The file is empty or no text, or the text is not certain; the message says what to do.
    """
    expected = expected or CsvFormat()
    encoding = detect_encoding(sample, is_complete, name, given.encoding, expected.encoding)
    text = codecs.getincrementaldecoder(encoding)("strict").decode(sample, False).lstrip("\ufeff")
    lines = text.splitlines(keepends=True) if is_complete else text.splitlines(keepends=True)[:-1] or [text]
    if not any(line.strip() for line in lines):
        raise ValueError(f"{name} is empty. Give a table with a line of column names, and rows below it.")
    separator = given.separator
    first = next(index for index, line in enumerate(lines) if line.strip())
    mark = re.fullmatch(r"sep=(.)\s*", lines[first], re.IGNORECASE)
    start = first + 1 if mark else first  # the first line of some files of Excel
    separator = separator or (mark[1] if mark else None)
    comments = start
    while comments < len(lines) and lines[comments].startswith("#"):
        comments += 1
    body = "".join(lines[comments:])
    separator = separator or detect_separator(body, name, expected.separator)
    if comments > start:
        width = len(next(iter(parse_records(body, separator)), []))
        header = parse_records(lines[comments - 1], separator)[0]
        if width > 1 and len(header) == width:  # the last comment is the header, as numpy.savetxt writes it
            comments -= 1
    body = "".join(lines[comments:])
    records = parse_records(body, separator)
    if not records or (len(records) == 1 and is_complete):
        for line in lines[comments:]:
            check_value_length(line, separator, name)
        raise ValueError(f"{name} has no rows: give a line of column names, and a row below it for each example.")
    if is_complete and has_open_quote(io.StringIO(body, newline=""), separator):
        raise ValueError(OPEN_QUOTE.format(name))
    names = (re.sub(r"^# +(?=\S)", "", records[0][0]), *records[0][1:])
    decimal = given.decimal or detect_decimal(records[1:], separator, name, expected.decimal)
    return CsvLayout(
        encoding=encoding,
        separator=separator,
        decimal=decimal,
        column_names=names,
        num_header_lines=comments + count_header_lines(body, separator),
        has_multiline_values=any("\n" in value or "\r" in value for record in records for value in record),
    )


def parse_records(text: str, separator: str) -> list[list[str]]:
    """Split text into records of values, without empty lines; at most `NUM_SAMPLE_RECORDS` of them."""
    records: list[list[str]] = []
    try:
        for record in csv.reader(io.StringIO(text, newline=""), delimiter=separator):
            if record:
                records.append(record)
            if len(records) == NUM_SAMPLE_RECORDS:
                break
    except csv.Error:  # such as a value that is too long
        pass
    return records


def check_value_length(line: str, separator: str, name: str) -> None:
    """Refuse a line with a value that Python's `csv` does not read."""
    if len(line) > csv.field_size_limit() < max(map(len, line.split(separator))):
        raise ValueError(
            f"{name} has a value of more than {csv.field_size_limit():,} characters, which is no word and no number. "
            "Check its quotes and its separator, and leave out columns of long texts."
        )


def has_open_quote(lines: Iterable[str], separator: str) -> bool:
    """Whether the last value of some lines begins with a quotation mark and does not end with one."""
    try:
        for _ in csv.reader(lines, delimiter=separator, strict=True):
            pass
    except csv.Error as error:
        return "end of data" in str(error)
    return False


def count_header_lines(text: str, separator: str) -> int:
    """Number of lines up to the end of the first record, which may have quoted line breaks."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    next(record for record in reader if record)
    return reader.line_num


def detect_separator(text: str, name: str, expected: str | None = None) -> str:
    """Find the character that splits all records, the header too, into the same number of values, at least two.

    Raises:
        ValueError: Several characters do so, or values are aligned by several spaces.
    """
    widths = {mark: [len(record) for record in parse_records(text, mark)] for mark in (*SEPARATORS, " ")}
    exact = [mark for mark in SEPARATORS if widths[mark] and set(widths[mark]) == {widths[mark][0]} != {1}]
    if len(exact) == 1 or (exact and expected in exact):
        return exact[0] if len(exact) == 1 else str(expected)
    if exact:
        raise ValueError(
            f"{name} can be separated by {' or '.join(map(repr, exact))}: all lines have the same number of each. "
            f"Say which: separator={exact[-1]!r} (on the command line --data.separator, for predict --separator)."
        )
    # Lines of several lengths: the mark that most lines agree on; the reader names the first that does not.
    agreement = {m: sum(w == widths[m][0] for w in widths[m]) for m in SEPARATORS if widths[m] and widths[m][0] > 1}
    if agreement:
        return max(agreement, key=lambda mark: agreement[mark])
    lines = [line.split() for line in text.splitlines()[:NUM_SAMPLE_RECORDS] if line.strip()]
    if len(lines) > 1 and len(lines[0]) > 1 and {len(line) for line in lines} == {len(lines[0])}:
        if set(widths[" "]) == {len(lines[0])}:
            return " "
        raise ValueError(
            f"The columns of {name} are aligned by several spaces. Save it with one character between values, such "
            "as a comma or a tab."
        )
    return expected or ","


def detect_decimal(records: Sequence[Sequence[str]], separator: str, name: str, expected: str | None = None) -> str:
    """Find the decimal mark of numbers: a comma if there are numbers with a comma and none with a point.

    Raises:
        ValueError: The commas may be thousands separators.
    """
    values = [value.strip() for record in records for value in record]
    with_comma = [value for value in values if COMMA_NUMBER.fullmatch(value)]
    if not with_comma:
        has_points = any(POINT_NUMBER.fullmatch(value) for value in values)
        return expected if expected and not has_points and separator != expected else "."
    if any(POINT_NUMBER.fullmatch(value) for value in values):
        return "."
    if not all(POSSIBLE_THOUSANDS.fullmatch(value) for value in with_comma):
        return ","
    if expected is not None:
        return expected
    raise ValueError(
        f"{name} has numbers such as {with_comma[0]!r}, in which the comma may be a decimal comma or separate "
        "thousands. Say decimal=',' (on the command line --data.decimal ,) if it is one, or write the numbers "
        "without it."
    )


def explain_word(value: str, decimal: str) -> str:
    """What may be wrong with a value that is no number, as an ending of a sentence; empty if nothing is known."""
    text = value.strip()
    if "\u2212" in text and re.fullmatch(r"\u2212[\d.,]+", text):
        return " Its minus sign is that of typesetting (U+2212): write a hyphen."
    if decimal == "." and POSSIBLE_THOUSANDS.fullmatch(text):
        return (
            " If it has a decimal comma, say decimal=',' (on the command line --data.decimal ,); if it has a "
            "thousands separator, write the number without it."
        )
    if decimal == "." and COMMA_NUMBER.fullmatch(text):
        return " It has a decimal comma: say decimal=',' (on the command line --data.decimal ,)."
    if decimal == "," and POINT_NUMBER.fullmatch(text):
        return " It has a decimal point: say decimal='.' (on the command line --data.decimal .)."
    if GROUPED_NUMBER.fullmatch(text):
        return " It has thousands separators: write numbers without them."
    if re.fullmatch(r"[+-]?[\d.,]+ ?[%€$£]|[€$£] ?[\d.,]+", text):
        return " It has a unit: write the number alone."
    return ""
