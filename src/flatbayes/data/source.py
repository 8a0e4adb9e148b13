"""Data sources: an abstract `read` for each file format, one validation and one split for all."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, get_args

import torch
from torch import Tensor

from flatbayes.core.display import format_fields
from flatbayes.core.input_trees import count_examples
from flatbayes.core.names import format_count
from flatbayes.data.augment import Augment
from flatbayes.data.checks import Task, check_label_rows, check_labels, check_position_labels, check_targets
from flatbayes.data.column_names import fill_missing, find_optional_features
from flatbayes.data.csv_format import CsvFormat
from flatbayes.data.lazy_images import LazyImages
from flatbayes.data.split_checks import check_finite_inputs, check_same_structure
from flatbayes.data.splits import DataSplits, EncodedSplit, Split, infer_common_layout
from flatbayes.data.stratified_split import check_size, stratified_split


class TrainTestRows(NamedTuple):
    """Row numbers of one standard split."""

    train: Tensor
    test: Tensor


@dataclass(frozen=True, kw_only=True)
class RawSplits:
    """Examples as they are stored, before the library splits them.

    Attributes:
        unsplit: All examples outside `test` and `val`.
        test: The test split, if the source has one.
        val: The validation split, if the source has one.
        class_names: One name per class; empty for a regression.
        feature_names: One name per feature; empty for images.
        target_names: One name per regression target, or per label of several; empty for a classification.
        standard_splits: Published splits of `unsplit`; the seed selects one of them.
        csv_format: Format of the CSV file that the examples come from, if any.

    Examples:
        >>> points, labels = torch.randn(20, 2), torch.arange(20) % 2
        >>> raw = RawSplits(
        ...     unsplit=Split(inputs=points, targets=labels), class_names=("left", "right")
        ... )
        >>> raw.test is None  # the library splits off test examples
        True
    """

    unsplit: Split | EncodedSplit
    test: Split | EncodedSplit | None = None
    val: Split | EncodedSplit | None = None
    class_names: tuple[str, ...] = ()
    feature_names: tuple[str, ...] = ()
    target_names: tuple[str, ...] = ()
    standard_splits: tuple[TrainTestRows, ...] = ()
    csv_format: CsvFormat | None = None

    __repr__ = format_fields


@dataclass(frozen=True, kw_only=True)
class DataSource(ABC):
    """Where examples are stored, and how they are split and augmented.

    Attributes:
        train_size: Number of training examples, a stratified subset; None for all.
        val_size: Validation examples, as a fraction (below 1) of what the test split leaves, or as a number of
            examples; not used if the source has a validation split.
        test_size: Test examples, as a fraction (below 1) of all, or as a number of examples; not used if the source
            has a test split.
        split_seed: Seed of the test split, which no other seed changes.
        flip: Mirror training images left to right at random.
        pad: Shift training images at random by up to this many pixels; the border is filled with black.
        cutout: Side in pixels of a black square at a random position in each training image; 0 for none.

    Examples:
        >>> class TwoBlobs(DataSource):
        ...     def read(self):
        ...         labels = torch.arange(200) % 2
        ...         points = torch.randn(200, 2) + 3 * labels[:, None]
        ...         return RawSplits(
        ...             unsplit=Split(inputs=points, targets=labels), class_names=("left", "right")
        ...         )
        >>> fitted = fit(MLP, TwoBlobs(val_size=0.2), SWAG(rank=2), SAM(rho=0.05), config)
        >>> fitted.predict(torch.zeros(1, 2)).mean.shape
        torch.Size([1, 2])
    """

    content_fields: ClassVar[tuple[str, ...]] = ()
    """Fields with examples, which a fingerprint identifies."""

    train_size: int | None = None
    val_size: float = 0.1
    test_size: float = 0.2
    split_seed: int = 0
    flip: bool = False
    pad: int = 0
    cutout: int = 0

    def __post_init__(self) -> None:
        task = getattr(self, "task", None)
        if task not in (None, *get_args(Task)):
            raise ValueError(f"task must be {', '.join(get_args(Task))}, or None, got {task!r}.")
        check_size(self.val_size, "val_size")
        check_size(self.test_size, "test_size")
        if self.train_size is not None and self.train_size < 1:
            raise ValueError(f"train_size is a number of examples, 1 or more, or None; got {self.train_size}.")
        if not 0 <= self.split_seed < 2**32:  # a larger one is two words of entropy: that of another stream
            raise ValueError(f"split_seed must be from 0 to 2**32 - 1, got {self.split_seed}.")
        Augment(flip=self.flip, pad=self.pad, cutout=self.cutout)  # validates pad and cutout

    @abstractmethod
    def read(self) -> RawSplits:
        """Read all examples as they are stored."""

    def load(self, seed: int) -> DataSplits:
        """Read the examples and split them into training, validation and test split.

        Args:
            seed: Seed, together with `split_seed`, of the training and the validation split. The test split is the
                same for all seeds, except for data with standard splits: there the seed is the number of the split.

        Raises:
            ValueError: The examples do not fit a task, or they are too few.
            FileNotFoundError: There is nothing at the path.
            ImportError: A package that reads this kind of file is not installed.
        """
        if seed < 0:
            raise ValueError(f"The seed must be 0 or more, got {seed}.")
        raw = self.read()
        check_raw_splits(raw, allow_rare_classes=getattr(self, "task", None) == "classification")
        is_augmented = bool(self.flip or self.pad or self.cutout)
        has_input_tree = isinstance(raw.unsplit, Split) and raw.unsplit.has_input_tree
        if is_augmented and (raw.feature_names or has_input_tree):
            kind = "have several inputs" if has_input_tree else "are features"
            raise ValueError(f"flip, pad and cutout are for images, and these examples {kind}; leave them out.")
        train, val, test = self._split_rows(raw, seed)
        selections = {
            "training": (raw.unsplit, train),
            "validation": (raw.unsplit, val) if raw.val is None else (raw.val, torch.arange(len(raw.val))),
            "test": (raw.unsplit, test) if raw.test is None else (raw.test, torch.arange(len(raw.test))),
        }
        for name, (_, rows) in selections.items():
            if len(rows) == 0:
                raise ValueError(
                    f"The {name} split is empty: of {format_count(len(raw.unsplit), 'example')}, {len(train)} are "
                    f"for training, {len(selections['validation'][1])} for validation (val_size={self.val_size:g}) "
                    f"and {len(selections['test'][1])} for the test (test_size={self.test_size:g}). Change these "
                    "sizes, or give more examples."
                )
        splits = fill_missing_inputs(take_selections(selections), raw.feature_names)
        return DataSplits(
            train=splits["training"],
            val=splits["validation"],
            test=splits["test"],
            class_names=raw.class_names,
            feature_names=raw.feature_names,
            augment=Augment(flip=self.flip, pad=self.pad, cutout=self.cutout) if is_augmented else None,
            target_names=raw.target_names,
            csv_format=raw.csv_format,
        )

    def _split_rows(self, raw: RawSplits, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Row numbers of `raw.unsplit` for training, validation and test."""
        # Regression targets, several labels and labels of positions have no classes to stratify by.
        has_strata = not raw.target_names and raw.unsplit.targets.ndim == 1
        strata = raw.unsplit.targets if has_strata else torch.zeros(len(raw.unsplit), dtype=torch.int64)
        if not raw.standard_splits:
            return stratified_split(
                strata,
                train_size=self.train_size,
                val_size=0 if raw.val is not None else self.val_size,
                test_size=0 if raw.test is not None else self.test_size,
                split_seed=self.split_seed,
                seed=seed,
            )
        if seed >= len(raw.standard_splits):
            raise ValueError(
                f"These data come with {format_count(len(raw.standard_splits), 'split')}, and the seed is the number "
                f"of the split: 0 to {len(raw.standard_splits) - 1}, got {seed}. Use at most "
                f"{format_count(len(raw.standard_splits), 'seed')}."
            )
        rows = raw.standard_splits[seed]
        train, val, _ = stratified_split(
            strata[rows.train],
            train_size=self.train_size,
            val_size=self.val_size,
            test_size=0,
            split_seed=self.split_seed,
            seed=seed,
        )
        return rows.train[train], rows.train[val], rows.test


def take_selections(selections: Mapping[str, tuple[Split | EncodedSplit, Tensor]]) -> dict[str, Split]:
    """Select rows of splits by name; encoded images get one layout, that of the images that are selected."""
    encoded = [(split, rows) for split, rows in selections.values() if isinstance(split, EncodedSplit)]
    layout = infer_common_layout(encoded) if encoded else None
    return {
        name: (replace(split, layout=split.layout or layout) if isinstance(split, EncodedSplit) else split).take(rows)
        for name, (split, rows) in selections.items()
    }


def fill_missing_inputs(splits: dict[str, Split], feature_names: Sequence[str]) -> dict[str, Split]:
    """Replace missing numbers by the mean of those of the first split, the training split."""
    if not find_optional_features(feature_names):
        return splits
    means = next(iter(splits.values())).input_tensor.nanmean(0).nan_to_num()
    return {
        name: replace(split, inputs=fill_missing(split.input_tensor, feature_names, means))
        for name, split in splits.items()
    }


def take_all(split: Split | EncodedSplit) -> Split:
    """Select all examples of a split, in order."""
    return split.take(torch.arange(len(split)))


def check_raw_splits(
    raw: RawSplits, *, allow_rare_classes: bool = False, allow_missing_classes: bool = False
) -> None:
    """Check that examples have finite inputs of one shape and valid targets.

    Classes may be rare, or without an example, where this is allowed.
    """
    named_splits = {"given": raw.unsplit, "validation": raw.val, "test": raw.test}
    splits = {name: split for name, split in named_splits.items() if split is not None}
    for name, split in splits.items():
        if not isinstance(split, Split) or not isinstance(raw.unsplit, Split) or isinstance(split.inputs, LazyImages):
            continue  # encoded images have values from 0 to 255 and one layout
        num_inputs = count_examples(split.inputs)
        if num_inputs != len(split.targets):
            raise ValueError(
                f"The {name} examples have {format_count(num_inputs, 'input')} and "
                f"{format_count(len(split.targets), 'label')}; there must be one label for each input."
            )
        check_finite_inputs(split, f"{name} examples", raw.feature_names)
        check_same_structure(split, raw.unsplit, name)
    targets = {name: split.targets for name, split in splits.items()}
    if raw.target_names and not raw.unsplit.targets.is_floating_point():
        check_label_rows(targets, raw.target_names)
    elif raw.target_names:
        check_targets(targets, raw.target_names)
    elif raw.unsplit.targets.ndim > 1:
        check_position_labels(targets, raw.class_names)
    else:
        check_labels(targets, raw.class_names, allow_rare=allow_rare_classes, allow_missing=allow_missing_classes)
