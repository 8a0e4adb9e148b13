"""What training and evaluation see: three parts of examples, in memory."""

from dataclasses import dataclass

from torch import Tensor

from flatbayes.data.augment import Augment


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some examples with their labels.

    Attributes:
        inputs: Images, [n, channels, height, width] (uint8, or float32 where they were stored so), or
            features, [n, features] (float32); raw, before any standardisation.
        targets: The class of each example, [n] (int64), counted from 0.
    """

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, rows: Tensor) -> "Part":
        """The examples with these numbers, in this order."""
        return Part(inputs=self.inputs[rows], targets=self.targets[rows])


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A classification task.

    Attributes:
        train: The examples to fit.
        val: The examples to choose by.
        test: The examples to report on, and for nothing else.
        class_names: One per class, in the order of the labels.
        feature_names: One per feature; empty for images.
        augment: Random changes for batches of training images; None for none.
    """

    train: Part
    val: Part
    test: Part
    class_names: tuple[str, ...]
    feature_names: tuple[str, ...]
    augment: Augment | None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(channels, height, width) of an image, or (features,)."""
        return tuple(self.train.inputs.shape[1:])

    @property
    def num_classes(self) -> int:
        """How many classes there are, whether or not each part has all of them."""
        return len(self.class_names)
