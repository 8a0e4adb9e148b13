"""Small files that stand for very large data are refused before memory is allocated, in a child with little of it."""

import gzip
import io
import pickle
import resource
import struct
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from flatbayes.data import make_source, read_inputs
from flatbayes.data.csv_files import BLOCK_SIZE_BYTES
from flatbayes.data.size_limit import VARIABLE, check_memory, get_memory_limit
from flatbayes.training.weight_files import read_weights

sys.path.insert(0, str(Path(__file__).parents[1] / "reliability"))
from forked import run

MEMORY, BOUND_GB = 2**28, 0.03
"""Bytes that a child may take beside what it has when it begins, and the bound for data."""


def write_repeated_rows(folder):
    """Six million equal rows in two columns."""
    path = folder / "a.parquet"
    with pq.ParquetWriter(path, pa.schema([("x", pa.int8()), ("y", pa.int8())]), compression="zstd") as writer:
        block = pa.array(np.zeros(6 * 10**6, np.int8))
        writer.write_table(pa.table({"x": block, "y": block}), row_group_size=10**7)
    assert path.stat().st_size < 10**5
    return path


def write_dictionary(folder, dtype=pa.string()):
    """One long value in each of many rows."""
    path = folder / "a.parquet"
    values = pa.DictionaryArray.from_arrays(np.zeros(2000, np.int32), pa.array(["a" * 30_000], dtype))
    table = pa.table({"x": np.arange(2000.0), "y": values.cast(dtype)})
    pq.write_table(table.replace_schema_metadata(), path, dictionary_pagesize_limit=10**8, compression="zstd")
    assert path.stat().st_size < 10**5
    return path


def write_lists(folder):
    path = folder / "a.parquet"
    offsets = np.array([0, 3 * 10**6, 6 * 10**6], np.int32)
    column = pa.ListArray.from_arrays(offsets, pa.array(np.zeros(6 * 10**6, np.int8)))
    pq.write_table(pa.table({"x": column, "y": [0, 1]}), path, compression="zstd")
    return path


def write_csv(folder, text, suffix=".csv.gz"):
    path = folder / f"a{suffix}"
    with gzip.open(path, "wb", compresslevel=1) as stream:
        stream.write(b"x,y\n0.5,1\n")
        for _ in range(8):
            stream.write(text)
    return path


def write_npz(folder, shape=(4 * 10**7,), num_bytes=4 * 10**7, dtype="|u1"):
    """Zeros that deflate packs a thousandfold; the header and the size may differ."""
    path = folder / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name in ("x.npy", "y.npy"):
            header = io.BytesIO()
            np.lib.format.write_array_header_1_0(header, {"descr": dtype, "fortran_order": False, "shape": shape})
            with archive.open(name, "w") as stream:
                stream.write(header.getvalue())
                for _ in range(num_bytes // 10**6):
                    stream.write(bytes(10**6))
    return path


def write_npz_header(folder):
    """A header of zeros."""
    path = folder / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name in ("x.npy", "y.npy"):
            with archive.open(name, "w") as stream:
                stream.write(b"\x93NUMPY\x02\x00" + struct.pack("<I", 2 * 10**8))
                for _ in range(200 if name == "x.npy" else 1):
                    stream.write(bytes(10**6))
    return path


def write_columns(folder):
    path = folder / "a.csv"
    path.write_text(",".join(f"c{number}" for number in range(10**5)) + "\n" + "0," * (10**5 - 1) + "0\n")
    return path


def write_tiff(folder):
    """Images of 8,000 x 8,000 pixels, four bytes each once read."""
    stream = io.BytesIO()
    Image.new("RGBA", (8000, 8000)).save(stream, "TIFF", compression="tiff_deflate")
    for label in ("a", "b"):
        (folder / label).mkdir()
        for number in range(8):
            (folder / label / f"{number}.tif").write_bytes(stream.getvalue())
    return folder


def encode_png(width, height):
    """A white image, of a few bytes for each row."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    compressor = zlib.compressobj(1)
    rows = b"".join(compressor.compress(bytes(width + 1)) for _ in range(height)) + compressor.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def write_images(folder, width=2000, height=2000, count=40):
    content = encode_png(width, height)
    for label in ("a", "b"):
        (folder / label).mkdir()
        for number in range(count // 2):
            (folder / label / f"{number}.png").write_bytes(content)
    return folder


def write_image_column(folder):
    """One image of many megabytes in each row."""
    path = folder / "a.parquet"
    stream = io.BytesIO()
    Image.new("L", (8, 8)).save(stream, "PNG")
    content = pa.array([stream.getvalue() + bytes(2 * 10**5)], pa.binary())
    images = pa.DictionaryArray.from_arrays(np.zeros(400, np.int32), content).cast(pa.binary())
    table = pa.table({"img": images, "label": np.arange(400) % 2})
    pq.write_table(table, path, dictionary_pagesize_limit=10**8, compression="zstd")
    assert path.stat().st_size < 10**5
    return path


def train(path, **options):
    make_source(str(path), **options).load(0)


def predict(path, shape=(1,), names=("x",), **options):
    for _ in read_inputs(path, shape, names, **options):
        pass


TOO_LARGE = rf"of memory once read, and at most .* are allowed .*{VARIABLE}"
REFUSED = {
    "rows that repeat": (write_repeated_rows, lambda path: train(path, target="y"), TOO_LARGE),
    "a dictionary of words": (write_dictionary, lambda path: train(path, target="y"), TOO_LARGE),
    "lists": (write_lists, lambda path: predict(path), TOO_LARGE),
    "compressed rows": (
        lambda folder: write_csv(folder, b"0,1\n" * 2**18),
        lambda path: train(path, target="y"),
        TOO_LARGE,
    ),
    "a compressed line": (
        lambda folder: write_csv(folder, b"a" * BLOCK_SIZE_BYTES),
        lambda path: train(path, target="y"),
        "has a line of more than",
    ),
    "a compressed line, to predict": (
        lambda folder: write_csv(folder, b"a" * BLOCK_SIZE_BYTES),
        predict,
        "has a line of more than",
    ),
    "a compressed array": (
        write_npz,
        train,
        TOO_LARGE,
    ),
    "one row": (lambda folder: write_npz(folder, (1, 4 * 10**7)), lambda path: predict(path), TOO_LARGE),
    "a header": (lambda folder: write_npz(folder, (10**15,)), train, "its content has another size"),
    "a long header": (write_npz_header, train, "'x' has a header of 200000000 bytes"),
    "a long header, to predict": (write_npz_header, predict, "'x' has a header of 200000000 bytes"),
    "many columns": (
        write_columns,
        lambda path: train(path, target="c1"),
        f"The reader of 100000 columns .*{TOO_LARGE}",
    ),
    "many columns, to predict": (write_columns, predict, f"The reader of 100000 columns .*{TOO_LARGE}"),
    "one large TIFF": (
        write_tiff,
        lambda path: train(path, size=8),
        TOO_LARGE,
    ),
    "objects": (lambda folder: write_npz(folder, (5 * 10**6,), dtype="|O"), train, "holds Python objects"),
    "many large images": (
        write_images,
        train,
        rf"images of 2000 x 2000 pixels would take .*{TOO_LARGE}.*stream=True",
    ),
    "one large image": (
        lambda folder: write_images(folder, 4000, 4000, 20),
        lambda path: train(path, size=8),
        TOO_LARGE,
    ),
}


def run_limited(action):
    """Call an action in a child with little memory; what it raised, as text, or `done`."""

    def call():
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        try:
            action()
        except Exception as error:
            sys.stdout.write(f"{type(error).__name__}: {error}\n")
        else:
            sys.stdout.write("done\n")
        return 0

    ended = run(call, Path.cwd())
    assert ended.code == 0, ended.err
    return ended.out


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", REFUSED)
def test_small_files_of_large_data_are_refused(tmp_path, kind, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(BOUND_GB))
    write, use, message = REFUSED[kind]
    path = write(tmp_path)
    with pytest.raises(ValueError, match=message):
        text = run_limited(lambda: use(path))
        assert text.startswith("ValueError: "), text
        raise ValueError(text)


READ = {
    "a column of images": (write_image_column, lambda path: train(path)),
    "a column of images, to predict": (
        write_image_column,
        lambda path: predict(path, (1, 8, 8), (), chunk_size=10),
    ),
    "a strip": (lambda folder: write_images(folder, 1, 60_000, 40), lambda path: train(path, size=224, crop=True)),
}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", READ)
def test_data_that_expand_are_read_a_piece_at_a_time(tmp_path, kind, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(BOUND_GB))
    write, use = READ[kind]
    path = write(tmp_path)
    assert run_limited(lambda: use(path)) == "done\n"


def test_weights_that_expand_are_refused(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"state_dict": {"a": torch.zeros(3)}}, path)
    assert read_weights(path)["a"].shape == (3,)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps([None] * 10**6))
        archive.writestr("archive/version", "3")
    with pytest.raises(ValueError, match="expands to more than 20 times its size"):
        read_weights(path)


def test_bound_is_that_of_the_variable(monkeypatch):
    monkeypatch.setenv(VARIABLE, "0.5")
    assert get_memory_limit() == 5e8
    check_memory(5e8, "x")
    with pytest.raises(ValueError, match=r"x would take 501 MB of memory once read, and at most 500 MB are allowed"):
        check_memory(5.01e8, "x")
    for text in ("0", "-1", "many", "nan"):
        monkeypatch.setenv(VARIABLE, text)
        with pytest.raises(ValueError, match="is a number of gigabytes above 0"):
            get_memory_limit()
    monkeypatch.delenv(VARIABLE)
    assert get_memory_limit() > 1e8
