"""Training, validation and test splits as tensors, trees of tensors, lazy images, or encoded images."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flatbayes.core.console import track_progress
from flatbayes.core.display import format_html_table
from flatbayes.core.input_trees import holds_several_labels, is_input_tree, list_tensors, make_inputs, slice_examples
from flatbayes.core.names import format_count
from flatbayes.core.randomness import Stream, make_generator
from flatbayes.data.augment import Augment
from flatbayes.data.csv_format import CsvFormat
from flatbayes.data.images import EncodedImage, ImageLayout, allocate_images, decode_image, infer_layout
from flatbayes.data.lazy_images import LazyImages

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
"""Names of folders, and first words of the names of parquet files, with the splits that they mean."""
InputTree = Any
"""Inputs that are several tensors, a dictionary or a tuple of them: see `flatbayes.core.input_trees`."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """Examples with their targets.

    Attributes:
        inputs: Raw inputs before standardization: images, [n, channels, height, width] (uint8, or float32 if they are
            stored so), or features, [n, features] (float32, or float64 until they are standardized). Streamed images
            are `LazyImages`. Or a dictionary or tuple of tensors, such as those of a tokenizer, with one row for each
            example in every tensor, or a batch of graphs; `fit` and predictions take them as they are.
        targets: Class of each example, [n] (int64), counted from 0; or regression targets in their own unit, [n] or
            [n, targets] (float32 or float64); or several labels of each example, [n, labels] (int64), each 0 or 1,
            and -100 where it is not known; or the class of each position of an example, [n, *positions] (int64), and
            -100 at positions without a label.

    Examples:
        >>> split = Split(inputs=torch.randn(20, 2), targets=torch.arange(20) % 2)
        >>> len(split.subsample(5, seed=0)), split.take(torch.tensor([0, 2])).targets
        (5, tensor([0, 0]))
    """

    inputs: Tensor | LazyImages | InputTree
    targets: Tensor

    def __post_init__(self) -> None:
        if is_input_tree(self.inputs):
            object.__setattr__(self, "inputs", make_inputs(self.inputs))

    def __repr__(self) -> str:
        return f"<Split: {format_count(len(self), 'example')} {self.describe_inputs()}>"

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def has_input_tree(self) -> bool:
        """Whether the inputs are a dictionary or tuple of tensors, or a batch of graphs."""
        return is_input_tree(self.inputs)

    def describe_inputs(self) -> str:
        """The shape of an input, or of each of several inputs, as text."""
        if not self.has_input_tree:
            return f"of shape {tuple(self.inputs.shape[1:])}"
        texts = [
            f"{name} of shape {tuple(tensor.shape[1:])}" if len(tensor) == len(self) else name  # of nodes or edges
            for name, tensor in list_tensors(self.inputs).items()
        ]
        return "with " + ", ".join(texts)

    def check_one_input(self) -> None:
        """Check that the inputs are one array.

        Raises:
            ValueError: They are a dictionary or tuple of tensors.
        """
        if self.has_input_tree:
            raise ValueError(
                f"This needs inputs that are one array, and these are several tensors: "
                f"{', '.join(list_tensors(self.inputs))}. Give one array that the network takes apart; `fit`, "
                "`evaluate`, `compare` and `tune` take several."
            )

    @property
    def input_tensor(self) -> Tensor:
        """The inputs as a tensor.

        Raises:
            ValueError: The images are streamed, or the inputs are a dictionary or tuple of tensors.
        """
        self.check_one_input()
        if isinstance(self.inputs, LazyImages):
            raise ValueError(
                f"This needs all {format_count(len(self), 'image')} in memory, and they are streamed. Take some of "
                "them (`split.subsample(1000)`; --max_examples on the command line), or read them without stream."
            )
        return self.inputs

    def take(self, rows: Tensor) -> "Split":
        """Select examples by row number, in the given order."""
        if isinstance(self.inputs, LazyImages):
            return Split(inputs=self.inputs.subset(rows), targets=self.targets[rows])
        return Split(inputs=slice_examples(self.inputs, rows), targets=self.targets[rows])

    def subsample(self, count: int, seed: int = 0) -> "Split":
        """Draw at most `count` random examples into memory; they keep their order.

        The first rows are no random sample: a folder of images is read class by class.
        """
        if len(self) <= count and not isinstance(self.inputs, LazyImages):
            return self
        rows = torch.randperm(len(self), generator=make_generator(Stream.SUBSAMPLE, seed))[:count].sort().values
        if isinstance(self.inputs, LazyImages):
            return Split(inputs=self.inputs[rows], targets=self.targets[rows])
        return self.take(rows)


@dataclass(frozen=True, kw_only=True)
class EncodedSplit:
    """Examples whose images are still encoded; only the rows that are used are decoded.

    Attributes:
        read_encoded: Yields the images with the given row numbers. Row numbers ascend unless images are streamed.
        targets: Class of each example, [n] (int64).
        size: Height and width to resize to; None keeps the size of the images.
        crop: Keep the aspect ratio of resized images, and crop the center.
        stream: Leave images encoded until a batch needs them.
        layout: Shape of the decoded images; None infers it from the rows that are taken.
    """

    read_encoded: Callable[[np.ndarray], Iterator[EncodedImage]]
    targets: Tensor
    size: int | None = None
    crop: bool = False
    stream: bool = False
    layout: ImageLayout | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, rows: Tensor) -> Split:
        """Select examples by row number, in the given order; decode them unless they are streamed."""
        layout = self.layout or infer_common_layout([(self, rows)])
        if self.stream:
            lazy_images = LazyImages(read_encoded=self.read_encoded, layout=layout, rows=rows)
            return Split(inputs=lazy_images, targets=self.targets[rows])
        ascending, positions = rows.sort()
        inputs = allocate_images(len(rows), layout)
        images = track_progress(self.read_encoded(ascending.numpy()), "reading images", len(rows))
        for position, image in zip(positions.tolist(), images, strict=True):
            inputs[position] = decode_image(image, layout)
        return Split(inputs=torch.from_numpy(inputs), targets=self.targets[rows])


def infer_common_layout(selections: Sequence[tuple[EncodedSplit, Tensor]]) -> ImageLayout:
    """Infer one layout for the images of several splits, from the headers of the rows that are used."""
    split, _ = selections[0]
    images = chain.from_iterable(s.read_encoded(rows.sort().values.numpy()) for s, rows in selections)
    return infer_layout(images, split.size, split.crop)


@dataclass(frozen=True, kw_only=True)
class DataSplits:
    """Training, validation and test split of a task.

    It is a classification if it has class names. With target names it is a regression if the targets are
    floating-point numbers, and multi-label if they are rows of whole numbers. A classification whose targets have
    several axes, [n, *positions], has a class for each position, such as a pixel or a token.

    Attributes:
        train: Examples for training.
        val: Examples for model selection.
        test: Examples for the final evaluation only.
        class_names: One name per class, in the order of the labels; empty for a regression.
        feature_names: One name per feature; empty for images.
        augment: Random augmentation of batches of training images; None for none.
        target_names: One name per regression target or label; empty for a classification.
        csv_format: Format of the CSV file that the examples come from, if any.

    Raises:
        ValueError: Targets and their names do not match.

    Examples:
        >>> splits = Digits(train_size=200).load(seed=0)
        >>> splits.input_shape, splits.num_classes, splits.is_regression
        ((1, 8, 8), 10, False)
        >>> len(splits.train), len(splits.val), len(splits.test)
        (200, 360, 898)
    """

    train: Split
    val: Split
    test: Split
    class_names: tuple[str, ...]
    feature_names: tuple[str, ...]
    augment: Augment | None
    target_names: tuple[str, ...] = ()
    csv_format: CsvFormat | None = None

    def __post_init__(self) -> None:
        if bool(self.class_names) == bool(self.target_names):
            raise ValueError(
                "A data set has either class_names (classification) or target_names (regression, multi-label), got "
                f"{len(self.class_names)} and {len(self.target_names)} of them."
            )
        if self.augment is not None and self.is_dense:
            pixels, positions = self.input_shape[1:], tuple(self.train.targets.shape[1:])
            if pixels != positions or not isinstance(self.augment, Augment):
                raise ValueError(
                    f"augment (flip, pad and cutout) moves a class with its pixel, and images of {pixels} pixels "
                    f"have classes of {positions} positions: leave it out, and change images and targets together "
                    "in a torch Dataset that a DataLoader reads."
                )
        for name in ("train", "val", "test"):
            targets = getattr(self, name).targets
            if targets.is_floating_point() != self.is_regression:
                expected = "labels (int64)" if self.is_multi_label else "classes (int64)"
                expected = "numbers (float32 or float64)" if self.is_regression else expected
                raise ValueError(
                    f"Targets of the {name} split must be {expected}, got {targets.dtype}. Convert them."
                )
            if self.class_names and holds_several_labels(targets) and targets.shape[1] == len(self.class_names):
                raise ValueError(
                    f"Targets of the {name} split are rows of 0 and 1, and class_names are those of one class for "
                    "each example or position. For several labels give target_names, their names, not class_names."
                )
            if self.class_names and targets.ndim != self.train.targets.ndim:
                raise ValueError(
                    f"Targets of the {name} split have the shape {tuple(targets.shape)}, and those of the training "
                    f"split {tuple(self.train.targets.shape)}: give one class for each example, or for each position."
                )
            if self.target_names and targets.shape[1:].numel() != len(self.target_names):
                raise ValueError(
                    f"The {name} split has targets of the shape {tuple(targets.shape)}, and {len(self.target_names)} "
                    "target_names. Give one name for each column."
                )

    def __repr__(self) -> str:
        sizes = ", ".join(f"{len(getattr(self, name))} {name}" for name in ("train", "val", "test"))
        names = self.target_names or self.class_names
        kinds = {self.is_regression: ("target", "targets"), self.is_multi_label: ("label", "labels")}
        count = format_count(len(names), *kinds.get(True, ("class", "classes")))
        return f"<DataSplits: {sizes} examples {self.train.describe_inputs()}, {count}>"

    def _repr_html_(self) -> str:
        names = self.target_names or self.class_names
        shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
        rows = [(name, f"{len(getattr(self, name)):,}") for name in ("train", "val", "test")]
        return format_html_table(repr(self), ("split", "examples"), rows, [shown])

    @property
    def is_regression(self) -> bool:
        """Whether the targets are numbers to predict."""
        return bool(self.target_names) and not self.is_multi_label

    @property
    def is_multi_label(self) -> bool:
        """Whether the targets are several labels of each example, each 0 or 1."""
        targets = self.train.targets
        return bool(self.target_names) and targets.ndim == 2 and not targets.is_floating_point()

    @property
    def is_dense(self) -> bool:
        """Whether the targets are a class for each position of an example."""
        return bool(self.class_names) and self.train.targets.ndim > 1

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(channels, height, width) of an image, or (features,).

        Raises:
            ValueError: The inputs are a dictionary or tuple of tensors.
        """
        self.train.check_one_input()
        return tuple(self.train.inputs.shape[1:])

    @property
    def num_classes(self) -> int:
        """Number of classes, whether or not each split has examples of all of them."""
        return len(self.class_names)
