"""New inputs to predict on, read from a file or a folder some at a time."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from flatbayes.data.checks import check_finite
from flatbayes.data.columns import features, read_table
from flatbayes.data.image_folder import contents, image_files
from flatbayes.data.images import Encoded, Layout, decoded, empty
from flatbayes.data.npz import array_names, as_inputs, read_arrays
from flatbayes.data.parquet import batches, image_rows, require_columns, schema

Chunks = Iterator[tuple[list[str] | None, Tensor]]


def read_inputs(
    path: str | Path,
    input_shape: Sequence[int],
    feature_names: Sequence[str],
    chunk_size: int = 1024,
    image: str = "img",
) -> Chunks:
    """Inputs in the order of the file, in chunks of names (or None) and of a tensor as a dataset has it.

    Args:
        path: A .npz, .parquet or .csv file, or a folder of images at any depth, which are read by name and
            whose names come with them.
        input_shape: (channels, height, width) or (features,), as in training.
        feature_names: Columns of a table that are the features, in order; others are ignored.
        chunk_size: Inputs in a chunk, at most.
        image: Column of a parquet file that holds the images.

    Raises:
        FileNotFoundError: There is nothing at the path.
        ValueError: The inputs are not like those of the training, damaged, missing or not finite.
    """
    path, input_shape = Path(path), tuple(input_shape)
    if chunk_size < 1:
        raise ValueError(f"chunk_size is a number of inputs, 1 or more, got {chunk_size}.")
    if not path.exists():
        raise FileNotFoundError(f"There is no file or folder {path}. Check the path.")
    images = len(input_shape) == 3
    suffix = "folder" if path.is_dir() else path.suffix.lower()
    match suffix, images:
        case ".npz", _:
            chunks = _array(path, input_shape, chunk_size)
        case ".parquet", True:
            chunks = _unnamed(_decoded(image_rows([path], image), input_shape, chunk_size))
        case "folder", True:
            chunks = _folder(path, input_shape, chunk_size)
        case ".csv" | ".parquet", False:
            chunks = _rows(path, feature_names, chunk_size)
        case _:
            kinds = "a folder of images, .parquet or .npz" if images else ".csv, .parquet or .npz"
            wanted = f"images of the shape {input_shape}" if images else f"{input_shape[0]} features"
            raise ValueError(f"The model takes {wanted}, which are read from {kinds}, got {path}. Convert it.")
    return _finite(chunks, path, feature_names)


def _finite(chunks: Chunks, path: Path, feature_names: Sequence[str]) -> Chunks:
    start = 0
    for names, inputs in chunks:
        check_finite(inputs, f"inputs in {path}", tuple(feature_names), start)
        start += len(inputs)
        yield names, inputs


def _unnamed(chunks: Iterable[Tensor]) -> Chunks:
    return ((None, chunk) for chunk in chunks)


def _rows(path: Path, names: Sequence[str], chunk_size: int) -> Chunks:
    if path.suffix.lower() == ".parquet":
        require_columns(path, names, schema(path).names)
        tables = batches(path, names, chunk_size)
    else:
        table = read_table(path)  # whole, since the type of a column shows only at its end
        require_columns(path, names, table.column_names)
        tables = (table.slice(start, chunk_size) for start in range(0, len(table), chunk_size))
    return _unnamed(features(table, names, path) for table in tables)


def _array(path: Path, input_shape: tuple[int, ...], chunk_size: int) -> Chunks:
    names = array_names(path)
    if "x" not in names and len(names) != 1:
        raise ValueError(f"{path} needs an array 'x' of inputs, or only one array; it has {names}. Rename it.")
    name = "x" if "x" in names else names[0]
    inputs = as_inputs(read_arrays(path, [name])[name], f"{name!r} of {path}")
    found = tuple(inputs.shape[1:])
    if found != input_shape:
        raise ValueError(
            f"The model takes inputs of the shape {input_shape}, and those in {path} have {found}. "
            "Give inputs like those of the training."
        )
    return _unnamed(torch.split(inputs, chunk_size))


def _folder(path: Path, input_shape: tuple[int, ...], chunk_size: int) -> Chunks:
    files = image_files(path)
    if not files:
        raise ValueError(f"There are no images in {path}. Check the path.")
    names = [file.relative_to(path).as_posix() for file in files]
    chunks = _decoded(contents(files), input_shape, chunk_size)
    return ((names[index * chunk_size :][:chunk_size], chunk) for index, chunk in enumerate(chunks))


def _decoded(images: Iterator[Encoded], input_shape: tuple[int, ...], chunk_size: int) -> Iterator[Tensor]:
    channels, height, width = input_shape
    layout = Layout(channels=channels, height=height, width=width, resize=False)
    while chunk := list(islice(images, chunk_size)):
        pixels = empty(len(chunk), layout)
        for place, image in enumerate(chunk):
            pixels[place] = decoded(image, layout)
        yield torch.from_numpy(pixels)
