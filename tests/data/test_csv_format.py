"""CSV files of other encodings, separators and decimal marks: for training and for prediction."""

import bz2
import gzip

import numpy as np
import pyarrow as pa
import pytest
import torch

from flatbayes.data import InputReader, Table, make_source
from flatbayes.data.csv_format import CsvFormat, detect_decimal, detect_layout, detect_separator
from flatbayes.data.csv_text import detect_encoding

NUM_ROWS = 60
VALUES = np.round(np.random.default_rng(0).uniform(0, 9, NUM_ROWS), 3)
WORDS = np.where(np.arange(NUM_ROWS) % 2, "häufig", "selten")


def make_text(separator=",", decimal=".", header=("größe", "b", "y"), end="\n", top="", quote=""):
    rows = (
        (f"{quote}{value:.3f}{quote}".replace(".", decimal), str(row % 5), word)
        for row, (value, word) in enumerate(zip(VALUES, WORDS, strict=True))
    )
    return top + end.join(separator.join(row) for row in (header, *rows)) + end


def read_table(path, **options):
    raw = Table(path=str(path), target="y", **options).read()
    assert raw.class_names == ("häufig", "selten")
    assert raw.unsplit.targets.tolist() == [int(word == "selten") for word in WORDS]
    return raw.unsplit.inputs[:, 0]


def read_stream(path, **options):
    chunks = InputReader(
        path=path,
        input_shape=(2,),
        feature_names=("größe", "b"),
        keep_columns=("y",),
        csv_format=CsvFormat(**options),
        chunk_size=7,
    ).iter_chunks()
    inputs, kept = [], []
    for columns, tensor in chunks:
        inputs.append(tensor)
        kept += columns["y"].to_pylist()
    assert kept == WORDS.tolist()
    return torch.cat(inputs)[:, 0]


READERS = pytest.mark.parametrize("read", [read_table, read_stream])
LAYOUTS = {
    "commas": make_text(),
    "semicolons": make_text(";"),
    "semicolons and decimal commas": make_text(";", ","),
    "tabs": make_text("\t"),
    "tabs and decimal commas": make_text("\t", ","),
    "bars": make_text("|"),
    "spaces": make_text(" "),
    "quoted decimal commas": make_text(",", ",", quote='"'),
    "windows": make_text(end="\r\n"),
    "old mac": make_text(end="\r"),
    "comments": make_text(top="# measured by A; B, C\n#\n"),
    "comments and semicolons": make_text(";", ",", top="# a, b\n"),
    "commented header": make_text(top="# "),
    "separator line": make_text(";", top="sep=;\n"),
    "blank lines": make_text(top="\n\n", end="\n\n"),
}


@READERS
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_are_detected(tmp_path, read, layout):
    path = tmp_path / "t.csv"
    path.write_bytes(LAYOUTS[layout].encode())
    assert np.allclose(read(path), VALUES)


@READERS
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_certain_encodings_are_detected(tmp_path, read, encoding):
    path = tmp_path / "t.csv"
    path.write_bytes(make_text(";", ",").encode(encoding))
    assert np.allclose(read(path), VALUES)


@READERS
@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "mac-roman"])
def test_other_encodings_are_options(tmp_path, read, encoding):
    path = tmp_path / "t.csv"
    path.write_bytes(make_text().encode(encoding))
    assert np.allclose(read(path, encoding=encoding), VALUES)
    with pytest.raises(ValueError, match=r"t.csv is not UTF-8: line 1 has the bytes .* encoding=cp1252"):
        read(path)
    with pytest.raises(ValueError, match=r"is not ASCII: line 1"):
        read(path, encoding="ascii")


@READERS
@pytest.mark.parametrize(("suffix", "compress"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".zst", None)])
def test_compressed_files(tmp_path, read, suffix, compress):
    compress = compress or (lambda content: pa.compress(content, "zstd", asbytes=True))
    path = tmp_path / f"t.csv{suffix}"
    path.write_bytes(compress(make_text(";", ",").encode()))
    assert np.allclose(read(path), VALUES)
    assert make_source(str(path), target="y") == Table(path=str(path), target="y")


@READERS
def test_options_replace_detection(tmp_path, read):
    path = tmp_path / "t.tsv"
    path.write_text(make_text(";", ","), encoding="utf-8")
    assert np.allclose(read(path, separator="semicolon", decimal=","), VALUES)
    with pytest.raises(
        ValueError, match=r"of .*t.tsv must hold numbers, and 60 of its 60 .* If it has a decimal comma, say decimal"
    ):
        read(path, decimal=".")


def test_options_are_checked():
    for options, message in {
        "separator": ("ab", "one character, or one of comma"),
        "decimal": ("x", "a point or a comma"),
        "encoding": ("utf-7000", "no encoding 'utf-7000'"),
    }.items():
        with pytest.raises(ValueError, match=message[1]):
            Table(path="t.csv", target="y", **{options: message[0]})


def test_the_format_of_the_training_decides_where_the_text_does_not(tmp_path):
    (tmp_path / "train.csv").write_text(make_text(";", ","), encoding="utf-8")
    trained = Table(path=str(tmp_path / "train.csv"), target="y").load(0).csv_format
    assert trained == CsvFormat(encoding="utf-8", separator=";", decimal=",")
    path = tmp_path / "new.csv"
    path.write_text("größe;b\n1,234;3\n", encoding="cp1252")
    reader = {"path": path, "input_shape": (2,), "feature_names": ("größe", "b")}
    with pytest.raises(ValueError, match="is not UTF-8"):
        list(InputReader(**reader).iter_chunks())
    with pytest.raises(ValueError, match=r"'1,234', in which the comma may be .* say decimal|Say decimal"):
        list(InputReader(**reader, csv_format=CsvFormat(encoding="cp1252")).iter_chunks())
    [(_, inputs)] = InputReader(
        **reader, expected_csv_format=CsvFormat(encoding="cp1252", separator=";", decimal=",")
    ).iter_chunks()
    assert inputs.tolist() == [[1.234, 3]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b;c\n1,2;3\n", "can be separated by ',' or ';'"),
        ("a   b  y\n1   2  x\n10  2  z\n", "aligned by several spaces"),
    ],
)
def test_uncertain_separators_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        detect_separator(text, "t.csv")


def test_separators_and_decimals():
    assert detect_separator("a;b\n1,5;2,5\n", "t") == ";"
    assert detect_separator("a,b;c\n1,2;3\n", "t", expected=";") == ";"
    assert detect_separator("one\n1\n2\n", "t") == ","
    assert detect_separator("a,y\n1,2\n3,4,5\n", "t") == ","
    assert detect_separator('a,y\n"1;2",2\n"3;4",4\n', "t") == ","
    assert detect_decimal([["0,5", "x"]], ";", "t") == ","
    assert detect_decimal([["0,123"]], ";", "t") == ","
    assert detect_decimal([["1,234"], ["1,5"]], ";", "t") == ","
    assert detect_decimal([["1,5"], ["1.5"]], ";", "t") == "."
    assert detect_decimal([["1"]], ";", "t", expected=",") == ","
    assert detect_decimal([["1"]], ",", "t", expected=",") == "."


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b"a,y\n", "has no rows"),
        (b"PK\x03\x04" + bytes(50), "Excel workbook"),
        (b"PAR1" + bytes(50), "parquet file"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (bytes(range(256)), "not text: it has zero bytes"),
        (b'a,y\n1,"x\n', "is not closed"),
    ],
)
def test_files_that_are_no_table(content, message):
    with pytest.raises(ValueError, match=message):
        detect_layout(content, is_complete=True, name="t.csv", given=CsvFormat())


def test_a_character_at_the_end_of_the_sample_may_be_incomplete():
    assert detect_encoding("a,ä".encode()[:-1], is_complete=False, name="t") == "utf-8"


@READERS
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1.5,2\n", r"Line 62 of .*t.csv has 2 values, and the header has 3 \('1.5,2'"),
        ("red,2,häufig\n", r"Column 'größe' .*; the first is 'red' in line 62"),
        ('"1,234.5",2,häufig\n', r"'1,234.5' in line 62. It has thousands separators"),
        ("1 €,2,häufig\n", r"in line 62. It has a unit"),
        ("-inf,2,häufig\n", r"has -inf, which is not finite as float32, \('-inf' in line 62\)"),
        ("1e300,2,häufig\n", r"has 1e\+300, which is not finite"),
    ],
)
def test_errors_name_line_and_value(tmp_path, read, line, message):
    path = tmp_path / "t.csv"
    path.write_text(make_text() + line, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read(path)


@pytest.mark.parametrize("word", ["", "NA"])
def test_missing_numbers_that_training_data_have_not_are_located(tmp_path, word):
    path = tmp_path / "t.csv"
    path.write_text(make_text() + f"{word},2,häufig\n", encoding="utf-8")
    with pytest.raises(ValueError, match=rf"Column 'größe' of .*t.csv has a missing value \('{word}' in line 62\)"):
        read_stream(path)


def test_lines_are_counted_as_an_editor_does(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('# note\na,text,y\n1,"two\nlines",x\n\ninf,b,z\n')
    with pytest.raises(ValueError, match=r"has inf, .* \('inf' in line 6\)"):
        Table(path=str(path), target="y", ignore=("text",)).read()


def test_bytes_that_are_wrong_late_in_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr("flatbayes.data.csv_files.BLOCK_SIZE_BYTES", 2**10)
    path = tmp_path / "t.csv"
    path.write_bytes(b"a,y\n" + b"1,x\n2,z\n" * 300 + "3,ä\n".encode("cp1252"))
    with pytest.raises(ValueError, match=r"is not UTF-8: line 602 has the bytes"):
        Table(path=str(path), target="y").read()


@pytest.mark.parametrize("text", ["x,y\n1,0\n{},1\n", "x,y\n{},1\n", "x,{}\n1,2\n"], ids=["last", "only", "header"])
def test_values_that_are_too_long_are_refused(tmp_path, text):
    path = tmp_path / "a.csv"
    path.write_text(text.format("a" * 200_000))
    with pytest.raises(
        ValueError, match="a value of more than 131,072 characters|cannot be read after line 2"
    ) as caught:
        make_source(str(path), target="y").load(0)
    assert len(str(caught.value)) < 500


def test_long_lists_of_columns_and_long_values_are_shortened(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(",".join(f"c{number}" for number in range(2000)) + "\n" + "1," * 1999 + "1\n")
    with pytest.raises(ValueError, match=r"'c29'\] and 19\d\d more") as caught:
        make_source(str(path), target="y").load(0)
    assert len(str(caught.value)) < 600
    path.write_text("x,y\n" + "".join(f"{row},{row % 2}\n" for row in range(20)) + "a" * 10_000 + ",1\n")
    with pytest.raises(ValueError, match=r"the first is 'a{80}\.\.\.' in line 22") as caught:
        make_source(str(path), target="y").load(0)
    assert len(str(caught.value)) < 500
