"""Readers of CSV files with pyarrow, whole or in batches; errors name the line and the value."""

import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flatbayes.core.names import format_count, shorten
from flatbayes.core.optional import require_package
from flatbayes.data.csv_format import OPEN_QUOTE, CsvFormat, CsvLayout, detect_layout, explain_word, has_open_quote
from flatbayes.data.csv_text import explain_decoding_error, find_decoding_error, is_mark_of_missing, is_number
from flatbayes.data.parquet import ArrowTable, rebatch_rows, require_columns, require_file, wrap_read_errors
from flatbayes.data.size_limit import check_memory, get_memory_limit

CSV_SUFFIXES = (".csv", ".tsv")
COMPRESSION_SUFFIXES = (".gz", ".bz2", ".zst", ".lz4")
BLOCK_SIZE_BYTES = 2**20
"""Bytes that are read at a time; a line must fit into it."""
MAX_BATCH_BYTES = 2**26
"""Bytes of the blocks that are joined to a batch of rows."""
BYTES_PER_VALUE = 16
"""Bytes of a value in memory: a number of 8 bytes and a copy of it. In the file it may be a single byte."""
BYTES_PER_COLUMN = 10_000
"""Bytes that pyarrow takes for a column of a CSV file, whatever the number of rows."""
MAX_EXPLAINED_BYTES = 2**27
"""Bytes of a file in another encoding in which an error of decoding is located."""


def get_table_suffix(path: Path) -> str:
    """The suffix in small letters, without that of a compressed CSV file: `.csv` for `a.CSV.gz`."""
    inner = Path(path.stem).suffix.lower()
    if path.suffix.lower() in COMPRESSION_SUFFIXES and inner in CSV_SUFFIXES:
        return inner
    return path.suffix.lower()


def read_csv_layout(path: Path, given: CsvFormat, expected: CsvFormat | None = None) -> CsvLayout:
    """Detect the layout of a CSV file; arguments as those of `detect_layout`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is empty or damaged, its text is not certain, or its columns do not fit into memory.
    """
    require_file(path)
    with wrap_read_errors(path), open_stream(path) as stream:
        sample = stream.read(BLOCK_SIZE_BYTES)
        is_complete = not stream.read(1)
    layout = detect_layout(sample, is_complete=is_complete, name=str(path), given=given, expected=expected)
    num_columns = len(layout.column_names)
    check_memory(BYTES_PER_COLUMN * num_columns, f"The reader of {format_count(num_columns, 'column')} in {path}")
    return layout


def read_csv(path: Path, layout: CsvLayout) -> ArrowTable:
    """Read a whole CSV file; the types of its columns are inferred.

    Raises:
        ValueError: It is damaged; the message names the line.
    """
    with require_package("data"):
        from pyarrow import csv as arrow_csv
        from pyarrow import types
    with explain_csv_errors(path, layout):
        check_table_size(path, len(layout.column_names))
        table = arrow_csv.read_csv(path, **_make_options(layout, {}))
    if any(types.is_binary(column_type) for column_type in table.schema.types):  # words that are not UTF-8
        raise ValueError(_explain_bytes(path, layout))
    last_row = table.slice(max(0, len(table) - 1)).to_pylist()
    if any(isinstance(value, str) and "\n" in value for row in last_row for value in row.values()):
        with open_stream(path) as stream, io.TextIOWrapper(stream, layout.encoding, newline="") as text:
            if has_open_quote(text, layout.separator):
                raise ValueError(OPEN_QUOTE.format(path))
    return table


def check_table_size(path: Path, num_columns: int) -> None:
    """Refuse a CSV file that would take more memory than the bound of `size_limit`, before it is parsed.

    Compressed files, and those that may be too large, are read once to count their lines.

    Raises:
        ValueError: The file is too large, or a line is longer than a block.
    """
    limit = get_memory_limit()
    is_compressed = path.suffix.lower() in COMPRESSION_SUFFIXES
    if not is_compressed and BYTES_PER_VALUE * path.stat().st_size <= limit:
        return
    num_bytes, num_lines, line_bytes = 0, 0, 0
    with open_stream(path) as stream:
        while block := stream.read(BLOCK_SIZE_BYTES):
            num_bytes += len(block)
            num_lines += max(block.count(b"\n"), block.count(b"\r"))
            last_end = max(block.rfind(b"\n"), block.rfind(b"\r"))
            line_bytes = len(block) - last_end - 1 + (line_bytes if last_end < 0 else 0)
            if line_bytes > 2 * BLOCK_SIZE_BYTES:
                raise ValueError(_explain_long_line(path))
            size = num_bytes + BYTES_PER_VALUE * num_lines * num_columns
            if size > limit:
                check_memory(size, f"The table in {path}, as far as it was read (line {num_lines}),")


def _explain_long_line(path: Path) -> str:
    return (
        f"{path} has a line of more than {BLOCK_SIZE_BYTES} bytes, which is no row of a table. Check that it is a "
        "CSV file whose lines end in a line feed."
    )


def iter_csv_batches(
    path: Path, layout: CsvLayout, names: Sequence[str], text_columns: Sequence[str], size: int
) -> Iterator[ArrowTable]:
    """Read columns of a CSV file in record batches.

    Columns of numbers are read as float64, or as booleans if the first block holds booleans. The types that pyarrow
    infers from the first block alone could turn out wrong later in the file (whole numbers, then fractions).

    `text_columns` are read unchanged as text, also those in `names`.

    Raises:
        ValueError: The file is damaged, lacks a column, or a feature is not numeric.
    """
    with require_package("data"):
        import pyarrow as pa
        from pyarrow import csv as arrow_csv
    require_columns(path, [*names, *text_columns], layout.column_names)
    with explain_csv_errors(path, layout, [name for name in names if name not in text_columns]):
        with arrow_csv.open_csv(path, **_make_options(layout, {})) as first_block:
            schema = first_block.schema
        types = {name: pa.string() for name in text_columns}
        for name in set(names) - set(text_columns):
            types[name] = pa.bool_() if pa.types.is_boolean(schema.field(name).type) else pa.float64()
        with arrow_csv.open_csv(path, **_make_options(layout, types)) as stream:
            yield from rebatch_rows(stream, size, MAX_BATCH_BYTES)


def _make_options(layout: CsvLayout, column_types: dict[str, Any]) -> dict[str, Any]:
    """Arguments of pyarrow's readers: all columns with inferred types, or those of `column_types`."""
    from pyarrow import csv as arrow_csv

    selection = {"column_types": column_types, "include_columns": list(column_types)} if column_types else {}
    return {
        "read_options": arrow_csv.ReadOptions(
            block_size=BLOCK_SIZE_BYTES,
            encoding=layout.encoding,
            column_names=layout.column_names,
            skip_rows=layout.num_header_lines,
        ),
        "parse_options": arrow_csv.ParseOptions(
            delimiter=layout.separator, newlines_in_values=layout.has_multiline_values
        ),
        "convert_options": arrow_csv.ConvertOptions(
            decimal_point=layout.decimal, strings_can_be_null=False, **selection
        ),
    }


@contextmanager
def open_stream(path: Path) -> Iterator[Any]:
    """Open a file for reading, decompressed according to its suffix."""
    with require_package("data"):
        import pyarrow as pa
    with pa.input_stream(str(path)) as stream:
        yield stream


@contextmanager
def explain_csv_errors(path: Path, layout: CsvLayout, number_columns: Sequence[str] = ()) -> Iterator[None]:
    """Context that turns errors of pyarrow into a ValueError with line and value, in columns that must be numeric."""
    with require_package("data"):
        import pyarrow as pa
    try:
        with wrap_read_errors(path):
            yield
    except ValueError as error:
        if not isinstance(error.__cause__, pa.ArrowException | UnicodeError):
            raise
        explanation = (
            _explain_bytes(path, layout)
            or _explain_widths(path, layout)
            or next((text for name in number_columns if (text := explain_words(path, layout, name))), None)
        )
        if explanation is None:
            raise
        raise ValueError(explanation) from error


def iter_records(path: Path, layout: CsvLayout) -> Iterator[tuple[int, list[str]]]:
    """Read the rows of a file with the numbers of their lines, from 1 on, as an editor shows them."""
    with open_stream(path) as stream, io.TextIOWrapper(stream, layout.encoding, "replace", newline="") as text:
        lines = _iter_lines(text, path)
        for _ in range(layout.num_header_lines):
            next(lines, "")
        reader, end = csv.reader(lines, delimiter=layout.separator), layout.num_header_lines
        try:
            for record in reader:
                line, end = end + 1, layout.num_header_lines + reader.line_num
                if record:
                    yield line, record
        except csv.Error as error:
            raise ValueError(
                f"{path} cannot be read after line {end}: {error}. Check the quotes there, and leave out columns of "
                "long texts."
            ) from error


def _iter_lines(text: io.TextIOWrapper, path: Path) -> Iterator[str]:
    while line := text.readline(BLOCK_SIZE_BYTES + 1):
        if len(line) > BLOCK_SIZE_BYTES:
            raise ValueError(_explain_long_line(path))
        yield line


def locate_row(path: Path, layout: CsvLayout, row: int, name: str) -> tuple[int, str]:
    """Line number and text of the value of a column in a row, counted from 0."""
    column = layout.column_names.index(name)
    for index, (line, record) in enumerate(iter_records(path, layout)):
        if index == row:
            return line, record[column]
    raise ValueError(f"{path} has changed while it was read. Read it again.")


def explain_words(path: Path, layout: CsvLayout, name: str) -> str | None:
    """Message on the first value of a column that is no number; None if there is none."""
    column = layout.column_names.index(name)
    total, words, first_line, first_word = 0, 0, 0, ""
    for line, record in iter_records(path, layout):
        total += 1
        if not is_number(record[column], layout.decimal):
            first_line, first_word = (first_line, first_word) if words else (line, record[column])
            words += 1
    if not words:
        return None
    other = (
        " If it marks a missing value, leave the field empty."
        if is_mark_of_missing(first_word)
        else " Encode it as numbers."
    )
    advice = explain_word(first_word, layout.decimal) or other
    return (
        f"Column {name!r} of {path} must hold numbers, and {words} of its {total} values are not numbers; the first "
        f"is {shorten(first_word)!r} in line {first_line}.{advice}"
    )


def _explain_bytes(path: Path, layout: CsvLayout) -> str | None:
    first_line = 1
    with open_stream(path) as stream:
        if layout.encoding != "utf-8":
            content = stream.read(MAX_EXPLAINED_BYTES)
            invalid = find_decoding_error(content, True, layout.encoding)
            return explain_decoding_error(content, layout.encoding, str(path)) if invalid else None
        rest = b""
        while block := stream.read(BLOCK_SIZE_BYTES):
            if len(rest) > BLOCK_SIZE_BYTES:
                return _explain_long_line(path)
            block = rest + block
            cut = block.rfind(b"\n") + 1
            if find_decoding_error(block[:cut], True, "utf-8"):
                return explain_decoding_error(block[:cut], "utf-8", str(path), first_line)
            first_line, rest = first_line + block.count(b"\n", 0, cut), block[cut:]
        if find_decoding_error(rest, True, "utf-8"):
            return explain_decoding_error(rest, "utf-8", str(path), first_line)
    return None


def _explain_widths(path: Path, layout: CsvLayout) -> str | None:
    width = len(layout.column_names)
    for line, record in iter_records(path, layout):
        if len(record) != width:
            excerpt = layout.separator.join(record)[:80]
            return (
                f"Line {line} of {path} has {format_count(len(record), 'value')}, and the header has {width} "
                f"({excerpt!r}, separated by {layout.separator!r}). Correct the line, quote values that hold a "
                "separator, or say another separator."
            )
    return None
