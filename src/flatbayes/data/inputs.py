"""Reader of new inputs for prediction, in chunks of bounded memory, from a file or a folder."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flatbayes.core.display import format_fields
from flatbayes.core.names import format_count, format_names
from flatbayes.data.arrays import to_inputs
from flatbayes.data.checks import check_finite
from flatbayes.data.columns import extract_features
from flatbayes.data.csv_files import CSV_SUFFIXES, get_table_suffix
from flatbayes.data.csv_format import CsvFormat
from flatbayes.data.image_folder import iter_file_contents, list_image_files, scan_folder, warn_of_other_files
from flatbayes.data.images import IMAGE_SUFFIXES, EncodedImage, ImageLayout, allocate_images, decode_image
from flatbayes.data.npz import iter_array_chunks, read_array_names, read_array_shape
from flatbayes.data.parquet import (
    ArrowTable,
    infer_image_column,
    iter_encoded_images,
    iter_record_batches,
    list_row_groups,
    read_schema,
    rebatch_rows,
    require_columns,
    require_file,
)
from flatbayes.data.prediction_writer import Columns
from flatbayes.data.table_file import TableFile

InputChunks = Iterator[tuple[Columns, Tensor]]
"""Pairs of kept columns and raw inputs, as in `DataSplits`."""


@dataclass(frozen=True, kw_only=True)
class InputReader:
    """Where inputs are, and the shape that the model takes.

    Attributes:
        path: A .npz, .parquet, .csv or .tsv file, an image, or a folder of images at any depth, which are read in the
            order of their paths; the column `name` then holds these paths.
        input_shape: (channels, height, width), (features,), or both axes of a sequence, as in training.
        feature_names: Columns of a table that are the features, in order; other columns are ignored.
        keep_columns: Columns, or arrays, to pass on.
        labels: Array among these that has several labels, or a label for each position, of each input.
        image: Column of a parquet file that holds the images; None for `img`, or else the only column of images.
        resize: Resize images of another size, instead of refusing them.
        crop: Keep the aspect ratio of resized images, and crop the center.
        csv_format: Format of a CSV file, where it is not to be detected.
        expected_csv_format: Format of a CSV file whose text is not certain: that of the training data.
        chunk_size: Maximal number of inputs in a chunk.

    Examples:
        >>> with PredictionWriter("new.csv") as writer:
        ...     writer.write(
        ...         {"id": np.arange(2), "width": np.array([1.5, 0.5]), "height": np.ones(2)}
        ...     )
        >>> reader = InputReader(
        ...     path=Path("new.csv"),
        ...     input_shape=(2,),
        ...     feature_names=("height", "width"),
        ...     keep_columns=("id",),
        ... )
        >>> [inputs for kept_columns, inputs in reader.iter_chunks()]
        [tensor([[1.0000, 1.5000],
                [1.0000, 0.5000]], dtype=torch.float64)]
    """

    path: Path
    input_shape: tuple[int, ...]
    feature_names: tuple[str, ...] = ()
    keep_columns: tuple[str, ...] = ()
    labels: str | None = None
    image: str | None = None
    resize: bool = False
    crop: bool = False
    csv_format: CsvFormat = CsvFormat()
    expected_csv_format: CsvFormat = CsvFormat()
    chunk_size: int = 1024

    __repr__ = format_fields

    def __post_init__(self) -> None:
        if self.chunk_size < 1:
            raise ValueError(f"chunk_size is a number of inputs, 1 or more, got {self.chunk_size}.")
        if not self.path.exists():
            raise FileNotFoundError(f"There is no file or folder {self.path}. Check the path.")
        if not self.path.is_dir():
            require_file(self.path)
        file_types = (*(["folder", "image"] if self._expects_images else CSV_SUFFIXES), ".parquet", ".npz")
        if self.file_type not in file_types:
            shape = self.input_shape
            expected = f"images of the shape {shape}" if self._expects_images else format_count(shape[0], "feature")
            raise ValueError(
                f"The model takes {expected}, which are read from {', '.join(file_types)}, got {self.path}. Convert "
                "it."
            )
        if self.keep_columns and self.file_type in ("folder", "image"):
            raise ValueError(
                f"A folder of images, or an image, has no columns to keep, got {list(self.keep_columns)}; names are "
                "kept."
            )

    @property
    def file_type(self) -> str:
        """The suffix of the file, or `folder`, or `image`."""
        if self.path.suffix.lower() in IMAGE_SUFFIXES and self.path.is_file():
            return "image"
        return "folder" if self.path.is_dir() else get_table_suffix(self.path)

    def count_inputs(self) -> int | None:
        """Count the inputs; None for a CSV file, which would have to be read."""
        if self.file_type == "image":
            return 1
        if self.file_type == "folder":
            return len(list_image_files(self.path))
        if self.file_type == ".npz":
            return read_array_shape(self.path, self._find_input_array())[0]
        return sum(list_row_groups(self.path)) if self.file_type == ".parquet" else None

    def iter_chunks(self) -> InputChunks:
        """Read inputs in the order of the file, with the columns to keep.

        Raises:
            ValueError: Inputs have another format than those of the training, or are damaged, missing or not finite.
        """
        if self.file_type == ".npz":
            chunks = self._read_npz_chunks()
        elif self.file_type in ("folder", "image"):
            chunks = self._read_folder_chunks()
        else:
            chunks = self._read_parquet_image_chunks() if self._expects_images else self._read_feature_chunks()
        return self._check_finite_chunks(chunks)

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
        names = self.feature_names
        file = TableFile.open(self.path, self.csv_format, self.expected_csv_format)
        first_row, noted_columns = 0, set[str]()
        for table in file.iter_batches(names, self.keep_columns, self.chunk_size):
            yield (
                _select_columns(table, self.keep_columns),
                extract_features(table, names, file, first_row, noted_columns),
            )
            first_row += len(table)

    def _read_parquet_image_chunks(self) -> InputChunks:
        path = self.path
        image = infer_image_column(path) if self.image is None else self.image
        require_columns(path, self.keep_columns, read_schema(path).names)
        images = self._decode_chunks(iter_encoded_images([path], image))
        if not self.keep_columns:
            return (({}, chunk) for chunk in images)
        tables = rebatch_rows(iter_record_batches(path, self.keep_columns, self.chunk_size), self.chunk_size)
        return (
            (_select_columns(table, self.keep_columns), chunk) for table, chunk in zip(tables, images, strict=True)
        )

    def _find_input_array(self) -> str:
        names = [name for name in read_array_names(self.path) if name not in self.keep_columns]
        if "x" not in names and len(names) != 1:
            raise ValueError(
                f"{self.path} needs an array 'x' of inputs, or only one array; it has {format_names(names)}. Rename "
                "it."
            )
        return "x" if "x" in names else names[0]

    def _read_npz_chunks(self) -> InputChunks:
        path, name = self.path, self._find_input_array()
        require_columns(path, self.keep_columns, read_array_names(path))
        kept_chunks = [iter_array_chunks(path, column, self.chunk_size) for column in self.keep_columns]
        shapes = {column: read_array_shape(path, column) for column in self.keep_columns}
        num_rows = read_array_shape(path, name)[0]
        if any(shape[:1] != (num_rows,) or (shape[1:] and name != self.labels) for name, shape in shapes.items()):
            raise ValueError(
                f"Arrays to keep have one value for each of {format_count(num_rows, 'input')}, got {shapes} in "
                f"{path}."
            )
        for chunk, *values in zip(iter_array_chunks(path, name, self.chunk_size), *kept_chunks, strict=True):
            inputs = to_inputs(chunk, f"{name!r} of {path}")
            if inputs.shape[1:] == (1, *self.input_shape):  # sequences, as gray images
                inputs = inputs[:, 0]
            if inputs.shape[1:] != self.input_shape:
                raise ValueError(
                    f"The model takes inputs of the shape {self.input_shape}, and those in {path} have "
                    f"{tuple(inputs.shape[1:])}. Give inputs like those of the training."
                )
            yield dict(zip(self.keep_columns, values, strict=True)), inputs

    def _read_folder_chunks(self) -> InputChunks:
        root = self.path if self.file_type == "folder" else self.path.parent
        files, others = scan_folder(root) if self.file_type == "folder" else ([self.path], [])
        if not files:
            raise ValueError(f"There are no images in {self.path}. Check the path.")
        warn_of_other_files(self.path, others, "hidden, or no suffix of an image")
        names = [file.relative_to(root).as_posix() for file in files]
        chunks = self._decode_chunks(iter_file_contents(files))
        size = self.chunk_size
        return (({"name": names[k * size : (k + 1) * size]}, chunk) for k, chunk in enumerate(chunks))

    def _decode_chunks(self, images: Iterator[EncodedImage]) -> Iterator[Tensor]:
        channels, height, width = self.input_shape
        layout = ImageLayout(channels=channels, height=height, width=width, resize=self.resize, crop=self.crop)
        while chunk := list(islice(images, self.chunk_size)):
            pixels = allocate_images(len(chunk), layout)
            for position, image in enumerate(chunk):
                pixels[position] = decode_image(image, layout)
            yield torch.from_numpy(pixels)


def read_inputs(
    path: str | Path, input_shape: Sequence[int], feature_names: Sequence[str], chunk_size: int = 1024, **options: Any
) -> InputChunks:
    """Read inputs in the order of the file: pairs of the kept columns and of a tensor, as in `DataSplits`.

    Args:
        path: A file or a folder, as for `InputReader`.
        input_shape: (channels, height, width), (features,), or both axes of a sequence.
        feature_names: Columns of the features, in order.
        chunk_size: Maximal number of inputs in a chunk.
        options: Other attributes of `InputReader`.

    Raises:
        FileNotFoundError: There is nothing at the path.
        ValueError: Inputs have another format than those of the training, or are damaged, missing or not finite.

    Examples:
        >>> with PredictionWriter("new.csv") as writer:
        ...     writer.write({"width": np.array([1.5, 0.5]), "height": np.ones(2)})
        >>> [inputs for _, inputs in read_inputs("new.csv", (2,), ["height", "width"])]
        [tensor([[1.0000, 1.5000],
                [1.0000, 0.5000]], dtype=torch.float64)]
    """
    return InputReader(
        path=Path(path),
        input_shape=tuple(input_shape),
        feature_names=tuple(feature_names),
        chunk_size=chunk_size,
        **options,
    ).iter_chunks()


def _select_columns(table: ArrowTable, names: Sequence[str]) -> Columns:
    return {name: table.column(name) for name in names}
