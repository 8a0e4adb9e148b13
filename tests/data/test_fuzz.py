"""Damaged files of data and of trained weights, from seeds: read, or refused with an error of ours."""

import io
import struct
import zlib

import pytest
from PIL import Image

from damage import harness, refusals
from flatbayes.data import read_inputs

FUZZ = harness()
KINDS = [kind for kind in FUZZ.KINDS if not kind.startswith("artefact")]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("num_seeds", [16, pytest.param(40, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_read_or_refused(tmp_path, kind, num_seeds):
    refused = refusals(FUZZ, kind, tmp_path, num_seeds)
    assert len(refused) > num_seeds / 8


def bomb(width, height):
    """A PNG of a few bytes that says it has this many pixels."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(100)))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("resize", [False, True])
def test_decompression_bombs_are_refused(tmp_path, resize):
    (tmp_path / "a.png").write_bytes(bomb(100_000, 100_000))
    with pytest.raises(ValueError, match=r"a\.png is not an image that can be read.*decompression bomb"):
        list(read_inputs(tmp_path, (3, 8, 8), (), resize=resize))


def test_formats_that_start_programs_are_refused(tmp_path):
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "EPS")
    (tmp_path / "a.png").write_bytes(stream.getvalue())
    with pytest.raises(ValueError, match=r"a\.png is not an image that can be read: its content has no format"):
        list(read_inputs(tmp_path, (3, 8, 8), ()))
