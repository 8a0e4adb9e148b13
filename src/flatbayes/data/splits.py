"""What training and evaluation see: three parts of examples, in memory or as images that are decoded when needed."""

from dataclasses import dataclass

import torch
from torch import Tensor

from flatbayes.data.augment import Augment
from flatbayes.data.lazy_images import LazyImages


@dataclass(frozen=True, kw_only=True)
class Split:
    """Some examples with their targets.

    Attributes:
        inputs: Images, [n, channels, height, width] (uint8, or float32 where they were stored so), or
            features, [n, features] (float32); raw, before any standardisation. Images that are streamed are not in
            memory, and stand in for their tensor.
        targets: The class of each example, [n] (int64), counted from 0; or the numbers to predict, [n] or
            [n, targets] (float32), in their own unit.
    """

    inputs: Tensor | LazyImages
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def input_tensor(self) -> Tensor:
        """The inputs, where they are in memory.

        Raises:
            ValueError: They are streamed.
        """
        if isinstance(self.inputs, LazyImages):
            raise ValueError(
                f"This needs all {len(self)} images in memory, and they are streamed. Take some of them "
                "(`split.subsample(1000)`; --max_examples on the command line), or read them without stream."
            )
        return self.inputs

    def take(self, rows: Tensor) -> "Split":
        """The examples with these numbers, in this order."""
        inputs = self.inputs
        chosen = inputs.subset(rows) if isinstance(inputs, LazyImages) else inputs[rows]
        return Split(inputs=chosen, targets=self.targets[rows])

    def subsample(self, count: int, seed: int = 0) -> "Split":
        """At most so many examples, chosen at random, in the order that they have; the same for the same seed.

        The first ones would not do: a folder of images is read class by class. They are in memory.
        """
        if len(self) <= count and isinstance(self.inputs, Tensor):
            return self
        rows = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:count].sort().values
        return Split(inputs=self.inputs[rows], targets=self.targets[rows])


@dataclass(frozen=True, kw_only=True)
class DataSplits:
    """A task: classification where there are names of classes, else regression.

    Attributes:
        train: The examples to fit.
        val: The examples to choose by.
        test: The examples to report on, and for nothing else.
        class_names: One per class, in the order of the labels; empty for a regression.
        feature_names: One per feature; empty for images.
        augment: Random changes for batches of training images; None for none.
        target_names: One per number to predict; empty for a classification.

    Raises:
        ValueError: Targets and their names do not go together.
    """

    train: Split
    val: Split
    test: Split
    class_names: tuple[str, ...]
    feature_names: tuple[str, ...]
    augment: Augment | None
    target_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if bool(self.class_names) == bool(self.target_names):
            raise ValueError(
                "A data set has either class_names (classification) or target_names (regression), got "
                f"{len(self.class_names)} and {len(self.target_names)} of them."
            )
        for name in ("train", "val", "test"):
            targets = getattr(self, name).targets
            if targets.is_floating_point() != self.is_regression:
                wanted = "numbers (float32)" if self.is_regression else "classes (int64)"
                raise ValueError(f"Targets of the {name} part must be {wanted}, got {targets.dtype}. Convert them.")
            if self.is_regression and targets.shape[1:].numel() != len(self.target_names):
                raise ValueError(
                    f"The {name} part has targets of the shape {tuple(targets.shape)}, and {len(self.target_names)} "
                    "target_names. Give one name for each column."
                )

    @property
    def is_regression(self) -> bool:
        """Whether the targets are numbers."""
        return bool(self.target_names)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(channels, height, width) of an image, or (features,)."""
        return tuple(self.train.inputs.shape[1:])

    @property
    def num_classes(self) -> int:
        """How many classes there are, whether or not each part has all of them."""
        return len(self.class_names)
