"""Small files, written by the tests that read them."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image


def encode(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


@pytest.fixture
def png():
    """Pixels, [height, width] or [height, width, 3], to the content of a file."""
    return encode


@pytest.fixture
def pixels():
    """Different random pixels for each image, [n, height, width, 3]."""

    def make(count, height=4, width=4, seed=0):
        return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)

    return make


@pytest.fixture
def write_parquet():
    """Images and labels in the layout of the Hugging Face hub."""

    def write(path, images, labels, *, image="img", names=None, struct=True, rows_per_group=3):
        encoded = [item if item is None or isinstance(item, bytes) else encode(item) for item in images]
        column = [None if item is None else {"bytes": item, "path": None} for item in encoded]
        table = pa.table({image: column if struct else encoded, "label": labels})
        if names:
            info = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
            table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path, row_group_size=rows_per_group)
        return path

    return write


@pytest.fixture
def truncate():
    """Cut the end of a file off."""

    def cut(path, keep=0.6):
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * keep)])
        return path

    return cut
