"""What every source of data is: it reads examples, and they are then checked and split alike."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from flatbayes.data.augment import Augment
from flatbayes.data.checks import check_finite, check_labels, check_same_length
from flatbayes.data.encoded_images import EncodedSplit
from flatbayes.data.splits import DataSplits, Split
from flatbayes.data.stratified_split import check_size, stratified_split
from flatbayes.data.targets import check_targets


@dataclass(frozen=True, kw_only=True)
class RawSplits:
    """Examples as they are stored, before any split.

    Attributes:
        unsplit: All but those of the other two.
        test: The test part, where the source itself has one.
        val: The validation part, where the source itself has one.
        class_names: One per class; empty where the targets are numbers.
        feature_names: One per feature; empty for images.
        target_names: One per number to predict; empty where the targets are classes.
        standard_splits: Standard splits, each the rows of its training and of its test part; the seed says which is
            taken.
    """

    unsplit: Split | EncodedSplit
    test: Split | EncodedSplit | None = None
    val: Split | EncodedSplit | None = None
    class_names: tuple[str, ...] = ()
    feature_names: tuple[str, ...] = ()
    target_names: tuple[str, ...] = ()
    standard_splits: tuple[tuple[Tensor, Tensor], ...] = ()


@dataclass(frozen=True, kw_only=True)
class DataSource(ABC):
    """Where examples come from, and how they are split.

    Attributes:
        train_size: Training examples to keep, drawn in proportion to the classes if there are any; None keeps all.
        val_size: Validation examples, as a fraction (below 1) of what the test part leaves, or as a count;
            not used where the source has a validation part of its own.
        test_size: Test examples, as a fraction (below 1) of all, or as a count; not used where the source has
            a test part of its own.
        split_seed: Decides which examples are the test part, which no other seed moves.
        flip: Mirror training images left to right at random.
        pad: Shift training images at random by up to this many pixels, what enters being black.
        cutout: Side of a square, in pixels, that is made black at random in each training image; 0 for none.
    """

    train_size: int | None = None
    val_size: float = 0.1
    test_size: float = 0.2
    split_seed: int = 0
    flip: bool = False
    pad: int = 0
    cutout: int = 0

    def __post_init__(self) -> None:
        check_size(self.val_size, "val_size")
        check_size(self.test_size, "test_size")
        if self.train_size is not None and self.train_size < 1:
            raise ValueError(f"train_size is a number of examples, 1 or more, or None; got {self.train_size}.")
        if self.split_seed < 0:
            raise ValueError(f"split_seed must be 0 or more, got {self.split_seed}.")
        Augment(flip=self.flip, pad=self.pad, cutout=self.cutout)  # refuses negative ones

    @abstractmethod
    def read(self) -> RawSplits:
        """All examples, as they are stored."""

    def load(self, seed: int) -> DataSplits:
        """The examples in three parts.

        Args:
            seed: Decides, together with `split_seed`, which examples are for training and which for
                validation; the test part is the same for all seeds, unless the data come with standard splits,
                of which the seed is the number.

        Raises:
            ValueError: The examples are not fit for their task, or too few.
            FileNotFoundError: There is nothing at the path.
            ImportError: A package that reads this kind of file is not installed.
        """
        if seed < 0:
            raise ValueError(f"The seed must be 0 or more, got {seed}.")
        raw = self.read()
        check_raw_splits(raw)
        augmented = bool(self.flip or self.pad or self.cutout)
        if raw.feature_names and augmented:
            raise ValueError("flip, pad and cutout are for images, and these examples are features; leave them out.")
        train, val, test = self._split_rows(raw, seed)
        parts = {
            "training": raw.unsplit.take(train),
            "validation": raw.unsplit.take(val) if raw.val is None else take_all(raw.val),
            "test": raw.unsplit.take(test) if raw.test is None else take_all(raw.test),
        }
        for name, part in parts.items():
            if len(part) == 0:
                raise ValueError(
                    f"The {name} part is empty: of {len(raw.unsplit)} examples, {len(train)} are for training, "
                    f"{len(parts['validation'])} for validation (val_size={self.val_size:g}) and "
                    f"{len(parts['test'])} for the test (test_size={self.test_size:g}). "
                    "Change these sizes, or give more examples."
                )
        return DataSplits(
            train=parts["training"],
            val=parts["validation"],
            test=parts["test"],
            class_names=raw.class_names,
            feature_names=raw.feature_names,
            augment=Augment(flip=self.flip, pad=self.pad, cutout=self.cutout) if augmented else None,
            target_names=raw.target_names,
        )

    def _split_rows(self, raw: RawSplits, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        # Numbers have no classes to be dealt by: all examples are of one kind.
        kinds = torch.zeros(len(raw.unsplit), dtype=torch.int64) if raw.target_names else raw.unsplit.targets
        if not raw.standard_splits:
            return stratified_split(
                kinds,
                train_size=self.train_size,
                val_size=0 if raw.val is not None else self.val_size,
                test_size=0 if raw.test is not None else self.test_size,
                split_seed=self.split_seed,
                seed=seed,
            )
        if seed >= len(raw.standard_splits):
            raise ValueError(
                f"These data come with {len(raw.standard_splits)} splits, of which the seed is the number: 0 to "
                f"{len(raw.standard_splits) - 1}, got {seed}. Ask for at most {len(raw.standard_splits)} seeds."
            )
        rest, test = raw.standard_splits[seed]
        train, val, _ = stratified_split(
            kinds[rest],
            train_size=self.train_size,
            val_size=self.val_size,
            test_size=0,
            split_seed=self.split_seed,
            seed=seed,
        )
        return rest[train], rest[val], test


def take_all(split: Split | EncodedSplit) -> Split:
    """All examples of a part, in order."""
    return split.take(torch.arange(len(split)))


def check_raw_splits(raw: RawSplits) -> None:
    """Refuse examples that no network can be fitted to.

    Raises:
        ValueError: Says what is wrong, and where.
    """
    named = {"given": raw.unsplit, "validation": raw.val, "test": raw.test}
    parts = {name: part for name, part in named.items() if part is not None}
    for name, part in parts.items():
        if isinstance(part, Split):  # images that are still encoded have whole numbers and one shape
            check_same_length(name, len(part.inputs), len(part.targets))
            check_finite(part.input_tensor, f"{name} examples", raw.feature_names)
            shape, expected = part.inputs.shape[1:], raw.unsplit.take(torch.arange(0)).inputs.shape[1:]
            if shape != expected:
                raise ValueError(
                    f"The {name} examples have the shape {tuple(shape)}, and the others "
                    f"{tuple(expected)}. Give all parts the same shape."
                )
    targets = {name: part.targets for name, part in parts.items()}
    if raw.target_names:
        check_targets(targets, raw.target_names)
    else:
        check_labels(targets, raw.class_names)
