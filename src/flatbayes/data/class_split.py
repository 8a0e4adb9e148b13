"""Split-class out-of-distribution protocol of Maddox et al. (NeurIPS 2019): train on some classes only.

The test examples of the other classes are the OOD data. They differ from the in-distribution examples in nothing but
their class.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import overload

import numpy as np
import torch
from torch import Tensor

from flatbayes.data.images import EncodedImage
from flatbayes.data.sklearn_datasets import Digits
from flatbayes.data.source import DataSource, RawSplits, take_all
from flatbayes.data.splits import EncodedSplit, Split
from flatbayes.data.stratified_split import stratified_split


@dataclass(frozen=True, kw_only=True)
class ClassSplit(DataSource):
    """Some classes of another source; the test examples of its other classes are OOD data.

    Attributes:
        source: The other source; all its options apply except `train_size`.
        classes: Numbers of the in-distribution classes, in the order of their new labels; empty for the first half.
        train_size: Number of training examples of these classes, a stratified subset; None for all.

    Examples:
        >>> source = ClassSplit(source=Digits(), classes=(0, 1, 2))
        >>> splits = source.load(seed=0)
        >>> splits.class_names, sorted(set(source.read_ood().targets.tolist()))
        (('0', '1', '2'), [3, 4, 5, 6, 7, 8, 9])
    """

    source: DataSource = Digits()
    classes: tuple[int, ...] = ()
    train_size: int | None = None
    val_size: float = field(init=False)
    test_size: float = field(init=False)
    split_seed: int = field(init=False)
    flip: bool = field(init=False)
    pad: int = field(init=False)
    cutout: int = field(init=False)

    def __post_init__(self) -> None:
        if self.train_size is not None and self.train_size < 1:
            raise ValueError(f"train_size is a number of examples, 1 or more, or None; got {self.train_size}.")
        object.__setattr__(self, "classes", tuple(self.classes))  # JSON has lists
        for name in ("val_size", "test_size", "split_seed", "flip", "pad", "cutout"):
            object.__setattr__(self, name, getattr(self.source, name))

    def read(self) -> RawSplits:
        """Read the examples of the in-distribution classes, with new labels."""
        raw = self.source.read()
        classes = _resolve_classes(self.classes, raw)
        splits = {
            name: _select_classes(split, classes, relabel=True)
            for name in ("unsplit", "test", "val")
            if (split := getattr(raw, name)) is not None
        }
        return replace(raw, class_names=tuple(raw.class_names[label] for label in classes), **splits)

    def read_ood(self) -> Split:
        """Read the test examples of all other classes, with the labels of the source.

        If the source has no test split, the fraction of these examples that `test_size` gives is drawn.

        Raises:
            ValueError: `classes` are not classes of the source, or no other class remains.
        """
        raw = self.source.read()
        classes = _resolve_classes(self.classes, raw)
        ood_classes = tuple(label for label in range(len(raw.class_names)) if label not in classes)
        if raw.test is not None:
            return take_all(_select_classes(raw.test, ood_classes, relabel=False))
        ood = _select_classes(raw.unsplit, ood_classes, relabel=False)
        size = self.test_size
        if size >= 1:  # a number of in-distribution examples; the same fraction of OOD examples
            size = min(size / len(_select_classes(raw.unsplit, classes, relabel=False)), 1 - 1e-9)
        rows = stratified_split(
            ood.targets, train_size=None, val_size=0, test_size=size, split_seed=self.split_seed, seed=0
        )[2]
        return ood.take(rows)


def _resolve_classes(classes: tuple[int, ...], raw: RawSplits) -> tuple[int, ...]:
    total = len(raw.class_names)
    if not total or raw.unsplit.targets.ndim > 1:
        raise ValueError(
            "Only examples of one class each can be split by class, and those of this source are not: their targets "
            "are numbers, several labels, or a class for each position."
        )
    resolved = classes or tuple(range((total + 1) // 2))
    is_unique = len(set(resolved)) == len(resolved)
    if not is_unique or not set(resolved) <= set(range(total)) or not 2 <= len(resolved) < total:
        raise ValueError(
            f"classes must name at least 2 of the {total} classes, once each and by numbers from 0 to {total - 1}, "
            f"and leave at least 1 outside; got {list(resolved)}."
        )
    return resolved


@overload
def _select_classes(split: Split, labels: tuple[int, ...], *, relabel: bool) -> Split: ...
@overload
def _select_classes(split: EncodedSplit, labels: tuple[int, ...], *, relabel: bool) -> EncodedSplit: ...
def _select_classes(split: Split | EncodedSplit, labels: tuple[int, ...], *, relabel: bool) -> Split | EncodedSplit:
    """Select the examples of some classes, numbered by their position if `relabel`; encoded images stay encoded."""
    matches = split.targets[:, None] == torch.tensor(labels)
    rows = matches.any(1).nonzero().squeeze(1)
    targets = matches[rows].int().argmax(1) if relabel else split.targets[rows]
    if isinstance(split, Split):
        return replace(split.take(rows), targets=targets)
    return replace(split, read_encoded=partial(_read_encoded_subset, split.read_encoded, rows), targets=targets)


def _read_encoded_subset(
    read_encoded: Callable[[np.ndarray], Iterator[EncodedImage]], rows: Tensor, positions: np.ndarray
) -> Iterator[EncodedImage]:
    return read_encoded(rows.numpy()[positions])
