"""Selection of the data source for what users have: a path, by suffix or content, or examples in memory."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from flatbayes.core.graph_batches import is_graph_list
from flatbayes.data.checks import TaskType
from flatbayes.data.csv_files import get_table_suffix
from flatbayes.data.hub import is_hub_name
from flatbayes.data.image_folder import ImageFolder, list_image_files
from flatbayes.data.image_parquet import ImageParquet
from flatbayes.data.in_memory import Arrays, FixedSplits
from flatbayes.data.named_labels import wrap_rows
from flatbayes.data.npz import Npz
from flatbayes.data.pairs import is_array_pair
from flatbayes.data.parquet import find_image_columns, find_split_files, require_file
from flatbayes.data.source import DataSource, RawSplits, check_raw_splits, fill_missing_inputs, take_all
from flatbayes.data.splits import DataSplits
from flatbayes.data.table import Table
from flatbayes.data.torch_dataset import TorchDataset


def make_source(data: Any, **options: Any) -> DataSource:
    """Make a source from a path or from examples in memory.

    Args:
        data: A file, a folder, or the name of a dataset on the hub, as for `find_reader`; a pair `(inputs, targets)`
            of arrays, tensors or data frames, where inputs may be a dictionary or tuple of tensors; a map-style torch
            dataset of pairs, or of dictionaries with labels; a list of graphs; splits; or a source.
        options: Other options of the source; a table needs its `target`.

    Raises:
        FileNotFoundError: There is nothing at the path.
        ValueError: No source reads it, or it is a table without a target.
        TypeError: It is none of these.

    Examples:
        >>> source = make_source((torch.randn(30, 4), torch.arange(30) % 3), val_size=0.2)
        >>> type(source).__name__, len(source.load(seed=0).train)
        ('Arrays', 19)
    """
    if isinstance(data, type) and issubclass(data, DataSource):
        return data(**options)
    if isinstance(data, DataSource):
        return replace(data, **options)
    if isinstance(data, DataSplits):
        return FixedSplits(data, **options)
    if is_graph_list(data):
        return TorchDataset(data, **options)
    data = wrap_rows(data)
    if isinstance(data, tuple | list) and len(data) == 2 and not isinstance(data[1], Mapping):
        return Arrays(*data, **options)
    if isinstance(data, Dataset):
        return TorchDataset(data, **options)
    if not isinstance(data, str | Path):
        advice = " Give a map-style torch Dataset, whose examples can be split." if isinstance(data, Iterable) else ""
        raise TypeError(
            f"Data are a path, a pair (inputs, targets), a map-style torch dataset, splits or a source, got a "
            f"{type(data).__name__}.{advice}"
        )
    path = str(data)
    reader = find_reader(path)
    if reader.func is Table and "target" not in options:
        raise ValueError(
            f"{path} is a table, and which of its columns is the class cannot be told from the file. "
            "Say so: target=... (on the command line, --data.target ...)."
        )
    source: DataSource = reader(**options)
    return source


def set_task(source: DataSource, task: TaskType) -> DataSource:
    """The source with a task, if it has this option and leaves it open.

    Examples:
        >>> set_task(Arrays(torch.randn(30, 4), torch.arange(30) % 9), "regression").load(seed=0).is_regression
        True
    """
    is_open = task is not None and getattr(source, "task", task) is None
    return make_source(source, task=task) if is_open else source


def find_reader(path: str) -> "partial[Any]":
    """Find the class of the source that reads a path.

    Args:
        path: A .npz, .csv, .tsv or parquet file, a folder with images or parquet files, or the name of a dataset on
            the Hugging Face hub, `owner/name`.

    Returns:
        The class with its path bound; its other options are open.

    Raises:
        FileNotFoundError: There is nothing at the path.
        ValueError: No source reads it.

    Examples:
        >>> with PredictionWriter("task.csv") as writer:
        ...     writer.write({"age": np.array([30, 40]), "answer": np.array(["yes", "no"])})
        >>> reader = find_reader("task.csv")
        >>> reader.func.__name__, reader(target="answer").path
        ('Table', 'task.csv')
    """
    local_path = Path(path)
    if is_hub_name(path):
        return partial(ImageParquet, path=path)
    if not local_path.exists():
        raise FileNotFoundError(f"There is no file or folder {path}. Check the path.")
    if local_path.is_dir():
        if any(local_path.rglob("*.parquet")):
            return _find_parquet_reader(path, find_split_files(local_path)["train"][0])
        if list_image_files(local_path):
            return partial(ImageFolder, path=path)
        raise ValueError(f"There are neither parquet files nor images in {path}. Check the path.")
    require_file(local_path)
    match get_table_suffix(local_path):
        case ".npz":
            return partial(Npz, path=path)
        case ".parquet":
            return _find_parquet_reader(path, local_path)
        case ".csv" | ".tsv":
            return partial(Table, path=path)
        case suffix:
            raise ValueError(
                f"No reader is known for {path} (suffix {suffix!r}). Known are .npz, .parquet, .csv, .tsv, and "
                "folders of images or parquet files. Convert it to one of these."
            )


def _find_parquet_reader(path: str, file: Path) -> "partial[Any]":
    columns = find_image_columns(file)
    if not columns:
        return partial(Table, path=path)
    return partial(ImageParquet, path=path, image="img" if "img" in columns else columns[0])


def load_training_splits(
    data: Any, val: Any = None, task: TaskType = None, num_classes: int | None = None
) -> DataSplits:
    """Read examples in memory, all of them for training; there is no test split.

    Args:
        data: A pair `(inputs, targets)` of arrays, tensors or data frames, or a map-style dataset of such pairs.
        val: Validation examples of the same kind; None for an empty validation split.
        task: classification, regression, multi_label or dense; None infers it from the targets.
        num_classes: Number of classes, of which some may have no example; None for as many as the labels say.

    Raises:
        TypeError: Data and validation data are of different kinds.
        ValueError: The examples do not fit a task.

    Examples:
        >>> splits = load_training_splits((torch.randn(30, 4), torch.arange(30) % 3))
        >>> len(splits.train), len(splits.val)
        (30, 0)
        >>> load_training_splits((torch.randn(2, 4), torch.tensor([0, 2])), num_classes=4).num_classes
        4
    """
    if val is not None and is_array_pair(val) != is_array_pair(data):
        raise TypeError(
            "val must be of the same kind as the data: a pair (inputs, targets) beside a pair, a dataset beside a "
            f"dataset; got a {type(val).__name__} beside a {type(data).__name__}."
        )
    source = make_source(data, task=task) if val is None else make_source(data, task=task, val=val)
    raw = source.read()
    if num_classes is not None:
        raw = add_missing_classes(raw, num_classes)
    check_raw_splits(raw, allow_missing_classes=num_classes is not None)
    given = {"train": take_all(raw.unsplit)} | ({} if raw.val is None else {"val": take_all(raw.val)})
    splits = fill_missing_inputs(given, raw.feature_names)
    empty = splits["train"].take(torch.arange(0))
    return DataSplits(
        train=splits["train"],
        val=splits.get("val", empty),
        test=empty,
        class_names=raw.class_names,
        feature_names=raw.feature_names,
        augment=None,
        target_names=raw.target_names,
    )


def add_missing_classes(raw: RawSplits, num_classes: int) -> RawSplits:
    """Examples whose classes are numbered up to `num_classes`; others, with more or named classes, are unchanged."""
    numbers = tuple(map(str, range(num_classes)))
    is_numbered = len(raw.class_names) > 0 and raw.class_names == numbers[: len(raw.class_names)]
    return replace(raw, class_names=numbers) if is_numbered else raw
