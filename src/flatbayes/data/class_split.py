"""Some classes to learn, the others to be surprised by: the split-class protocol of Maddox et al. (NeurIPS 2019).

A network is trained on some of the classes only. At test time the examples of the others are from outside, although
they look like the rest: nothing but the class tells them apart.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import overload

import numpy as np
import torch
from torch import Tensor

from flatbayes.data.digits import Digits
from flatbayes.data.encoded_images import EncodedSplit
from flatbayes.data.images import EncodedImage
from flatbayes.data.source import DataSource, RawSplits, take_all
from flatbayes.data.splits import Split
from flatbayes.data.stratified_split import stratified_split

CIFAR10_HALF_CLASSES = (0, 1, 2, 8, 9)
"""The classes that the paper trains on: airplane, automobile, bird, ship, truck."""


@dataclass(frozen=True, kw_only=True)
class ClassSplit(DataSource):
    """Some classes of a source; the test examples of the others are kept apart, as examples from outside.

    Attributes:
        source: Where the examples come from; all its options hold but for `train_size`.
        classes: The classes to learn, by their numbers, in the order of their new labels; empty for the first half.
        train_size: Training examples to keep, drawn in proportion to these classes; None keeps all.
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
        object.__setattr__(self, "classes", tuple(self.classes))  # a list, where it comes from JSON
        for name in ("val_size", "test_size", "split_seed", "flip", "pad", "cutout"):
            object.__setattr__(self, name, getattr(self.source, name))

    def read(self) -> RawSplits:
        """The examples of the classes to learn, with new labels."""
        raw = self.source.read()
        inside = _resolve_classes(self.classes, raw)
        parts = {name: part for name in ("unsplit", "test", "val") if (part := getattr(raw, name)) is not None}
        kept = {name: _select_classes(part, inside, relabel=True) for name, part in parts.items()}
        return replace(raw, class_names=tuple(raw.class_names[label] for label in inside), **kept)

    def read_ood(self) -> Split:
        """Test examples of all other classes, with the labels that the source gives them.

        Where the source has no test part, as large a share of these examples as `test_size` asks for.

        Raises:
            ValueError: The classes are not those of the source, or no class is left outside.
        """
        raw = self.source.read()
        inside = _resolve_classes(self.classes, raw)
        others = tuple(label for label in range(len(raw.class_names)) if label not in inside)
        if raw.test is not None:
            return take_all(_select_classes(raw.test, others, relabel=False))
        found = _select_classes(raw.unsplit, others, relabel=False)
        size = self.test_size
        if size >= 1:  # a count of examples inside; outside, the same share
            size = min(size / len(_select_classes(raw.unsplit, inside, relabel=False)), 1 - 1e-9)
        rows = stratified_split(
            found.targets, train_size=None, val_size=0, test_size=size, split_seed=self.split_seed, seed=0
        )[2]
        return found.take(rows)


def _resolve_classes(classes: tuple[int, ...], raw: RawSplits) -> tuple[int, ...]:
    total = len(raw.class_names)
    if not total:
        raise ValueError("Only classes can be split, and the targets of this source are numbers.")
    chosen = classes or tuple(range((total + 1) // 2))
    if len(set(chosen)) < len(chosen) or not set(chosen) <= set(range(total)) or not 2 <= len(chosen) < total:
        raise ValueError(
            f"classes must name at least 2 of the {total} classes, once each and by numbers from 0 to {total - 1}, "
            f"and leave at least 1 outside; got {list(chosen)}."
        )
    return chosen


@overload
def _select_classes(part: Split, labels: tuple[int, ...], *, relabel: bool) -> Split: ...
@overload
def _select_classes(part: EncodedSplit, labels: tuple[int, ...], *, relabel: bool) -> EncodedSplit: ...
def _select_classes(part: Split | EncodedSplit, labels: tuple[int, ...], *, relabel: bool) -> Split | EncodedSplit:
    """The examples of these classes; images that are encoded stay so."""
    matches = part.targets[:, None] == torch.tensor(labels)
    rows = matches.any(1).nonzero().squeeze(1)
    targets = matches[rows].int().argmax(1) if relabel else part.targets[rows]
    if isinstance(part, Split):
        return Split(inputs=part.inputs[rows], targets=targets)
    return replace(part, read_encoded=partial(_read_encoded_subset, part.read_encoded, rows), targets=targets)


def _read_encoded_subset(
    read_encoded: Callable[[np.ndarray], Iterator[EncodedImage]], rows: Tensor, positions: np.ndarray
) -> Iterator[EncodedImage]:
    return read_encoded(rows.numpy()[positions])
