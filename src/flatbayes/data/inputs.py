"""New inputs to predict on, read from a file or a folder some at a time: nothing is ever held whole."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flatbayes.data.checks import check_finite
from flatbayes.data.csv_stream import iter_csv_batches
from flatbayes.data.image_folder import iter_file_contents, list_image_files
from flatbayes.data.images import EncodedImage, ImageLayout, allocate_images, decode_image
from flatbayes.data.npz import iter_array_chunks, read_array_names, read_array_shape, to_inputs
from flatbayes.data.parquet import (
    count_rows,
    find_image_columns,
    iter_encoded_images,
    iter_record_batches,
    read_schema,
    require_columns,
)
from flatbayes.data.table import extract_features

Columns = Mapping[str, Any]
"""One value for each input, by the column's name: lists, arrays, or columns of pyarrow."""

InputChunks = Iterator[tuple[Columns, Tensor]]


@dataclass(frozen=True, kw_only=True)
class InputReader:
    """Where inputs are, and what they must be like.

    Attributes:
        path: A .npz, .parquet or .csv file, or a folder of images at any depth, which are read by name and whose
            names come with them.
        input_shape: (channels, height, width) or (features,), as in training.
        feature_names: Columns of a table that are the features, in order; others are ignored.
        keep_columns: Columns, or arrays, to pass on.
        image: Column of a parquet file that holds the images; None for `img`, or else the only one that may.
        resize: Scale images of another size, instead of refusing them.
        crop: Keep proportions where images are scaled, and cut the middle out.
        chunk_size: Inputs in a chunk, at most.
    """

    path: Path
    input_shape: tuple[int, ...]
    feature_names: tuple[str, ...] = ()
    keep_columns: tuple[str, ...] = ()
    image: str | None = None
    resize: bool = False
    crop: bool = False
    chunk_size: int = 1024

    def __post_init__(self) -> None:
        if self.chunk_size < 1:
            raise ValueError(f"chunk_size is a number of inputs, 1 or more, got {self.chunk_size}.")
        if not self.path.exists():
            raise FileNotFoundError(f"There is no file or folder {self.path}. Check the path.")
        kinds = ("folder", ".parquet", ".npz") if self._expects_images else (".csv", ".parquet", ".npz")
        if self.file_type not in kinds:
            shape = self.input_shape
            wanted = f"images of the shape {shape}" if self._expects_images else f"{shape[0]} features"
            raise ValueError(
                f"The model takes {wanted}, which are read from {', '.join(kinds)}, got {self.path}. Convert it."
            )
        if self.keep_columns and self.file_type == "folder":
            raise ValueError(
                f"A folder of images has no columns to keep, got {list(self.keep_columns)}; names are kept."
            )

    @property
    def file_type(self) -> str:
        """The suffix of the file, or `folder`."""
        return "folder" if self.path.is_dir() else self.path.suffix.lower()

    def count_inputs(self) -> int | None:
        """How many inputs there are, where that shows without reading them."""
        if self.file_type == "folder":
            return len(list_image_files(self.path))
        if self.file_type == ".npz":
            return read_array_shape(self.path, self._find_input_array())[0]
        return count_rows(self.path) if self.file_type == ".parquet" else None

    def iter_chunks(self) -> InputChunks:
        """Inputs in the order of the file, with the columns that are kept, and tensors as a dataset has them.

        Raises:
            ValueError: The inputs are not like those of the training, damaged, missing or not finite.
        """
        if self.file_type == ".npz":
            found = self._read_npz_chunks()
        elif self.file_type == "folder":
            found = self._read_folder_chunks()
        else:
            found = self._read_parquet_image_chunks() if self._expects_images else self._read_feature_chunks()
        return self._check_finite_chunks(found)

    @property
    def _expects_images(self) -> bool:
        return len(self.input_shape) == 3

    def _check_finite_chunks(self, chunks: InputChunks) -> InputChunks:
        start = 0
        for columns, inputs in chunks:
            check_finite(inputs, f"inputs in {self.path}", self.feature_names, start)
            start += len(inputs)
            yield columns, inputs

    def _read_feature_chunks(self) -> InputChunks:
        path, names = self.path, self.feature_names
        if self.file_type == ".csv":
            tables = iter_csv_batches(path, names, self.keep_columns, self.chunk_size)
        else:
            require_columns(path, [*names, *self.keep_columns], read_schema(path).names)
            tables = iter_record_batches(path, list(dict.fromkeys([*names, *self.keep_columns])), self.chunk_size)
        return ((_select_columns(table, self.keep_columns), extract_features(table, names, path)) for table in tables)

    def _read_parquet_image_chunks(self) -> InputChunks:
        path, image, found = self.path, self.image, find_image_columns(self.path)
        if image is None:
            image = found[0] if len(found) == 1 else "img"
        require_columns(path, self.keep_columns, read_schema(path).names)
        images = self._decode_chunks(iter_encoded_images([path], image))
        if not self.keep_columns:
            return (({}, chunk) for chunk in images)
        beside = _rebatch_rows(iter_record_batches(path, self.keep_columns, self.chunk_size), self.chunk_size)
        return (
            (_select_columns(table, self.keep_columns), chunk) for table, chunk in zip(beside, images, strict=True)
        )

    def _find_input_array(self) -> str:
        names = [name for name in read_array_names(self.path) if name not in self.keep_columns]
        if "x" not in names and len(names) != 1:
            raise ValueError(
                f"{self.path} needs an array 'x' of inputs, or only one array; it has {names}. Rename it."
            )
        return "x" if "x" in names else names[0]

    def _read_npz_chunks(self) -> InputChunks:
        path, name = self.path, self._find_input_array()
        require_columns(path, self.keep_columns, read_array_names(path))
        beside = [iter_array_chunks(path, kept, self.chunk_size) for kept in self.keep_columns]
        sizes = {kept: read_array_shape(path, kept) for kept in self.keep_columns}
        rows = read_array_shape(path, name)[:1]
        if any(size != rows for size in sizes.values()):
            raise ValueError(f"Arrays to keep have one value for each of {rows[0]} inputs, got {sizes} in {path}.")
        for piece, *values in zip(iter_array_chunks(path, name, self.chunk_size), *beside, strict=True):
            inputs = to_inputs(piece, f"{name!r} of {path}")
            if inputs.shape[1:] != self.input_shape:
                raise ValueError(
                    f"The model takes inputs of the shape {self.input_shape}, and those in {path} have "
                    f"{tuple(inputs.shape[1:])}. Give inputs like those of the training."
                )
            yield dict(zip(self.keep_columns, values, strict=True)), inputs

    def _read_folder_chunks(self) -> InputChunks:
        files = list_image_files(self.path)
        if not files:
            raise ValueError(f"There are no images in {self.path}. Check the path.")
        names = [file.relative_to(self.path).as_posix() for file in files]
        chunks = self._decode_chunks(iter_file_contents(files))
        size = self.chunk_size
        return (({"name": names[k * size : (k + 1) * size]}, chunk) for k, chunk in enumerate(chunks))

    def _decode_chunks(self, images: Iterator[EncodedImage]) -> Iterator[Tensor]:
        channels, height, width = self.input_shape
        layout = ImageLayout(channels=channels, height=height, width=width, resize=self.resize, crop=self.crop)
        while chunk := list(islice(images, self.chunk_size)):
            pixels = allocate_images(len(chunk), layout)
            for place, image in enumerate(chunk):
                pixels[place] = decode_image(image, layout)
            yield torch.from_numpy(pixels)


def read_inputs(
    path: str | Path, input_shape: Sequence[int], feature_names: Sequence[str], chunk_size: int = 1024, **options: Any
) -> InputChunks:
    """Inputs in the order of the file, in chunks of the columns that are kept and of a tensor as a dataset has it.

    Args:
        path: A file or a folder, see `InputReader`, as for all of these.
        input_shape: (channels, height, width) or (features,).
        feature_names: Columns that are the features.
        chunk_size: Inputs in a chunk, at most.
        options: Other attributes of `InputReader`.

    Raises:
        FileNotFoundError: There is nothing at the path.
        ValueError: The inputs are not like those of the training, damaged, missing or not finite.
    """
    return InputReader(
        path=Path(path),
        input_shape=tuple(input_shape),
        feature_names=tuple(feature_names),
        chunk_size=chunk_size,
        **options,
    ).iter_chunks()


def _select_columns(table: Any, names: Sequence[str]) -> Columns:
    return {name: table.column(name) for name in names}


def _rebatch_rows(tables: Iterable[Any], size: int) -> Iterator[Any]:
    """The same rows in tables of this size, but for the last."""
    import pyarrow as pa

    held: Any = None
    for batch in tables:
        table = pa.Table.from_batches([batch])
        held = table if held is None else pa.concat_tables([held, table])
        while len(held) >= size:
            yield held.slice(0, size)
            held = held.slice(size)
    if held is not None and len(held):
        yield held
