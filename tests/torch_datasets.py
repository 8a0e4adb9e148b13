"""Torch datasets that tests name by dotted path."""

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset

from flatbayes.data import DataSource, RawSplits, Split


class Points(Dataset):
    """Four features and one of three classes for each example; no split of its own."""

    def __init__(self, num_examples=30, targets="class", seed=0):
        self.inputs = torch.randn(num_examples, 4, generator=torch.Generator().manual_seed(seed))
        rows = torch.arange(num_examples)
        self.targets = {
            "class": rows % 3,
            "number": self.inputs[:, 0],
            "numbers": self.inputs[:, :2],
            "word": ["cat"] * num_examples,
        }[targets]

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        return self.inputs[index], self.targets[index]


class PointsWithTrain(Points):
    """Told by `train=`, as torchvision's CIFAR10."""

    classes = ("a", "b", "c")

    def __init__(self, num_examples=30, train=True):
        super().__init__(num_examples if train else 12, seed=int(not train))


class PointsWithSplit(Points):
    """Told by `split=`, as torchvision's SVHN."""

    def __init__(self, split, num_examples=30):
        sizes = {"train": num_examples, "test": 12, "extra": 9}
        if split not in sizes:
            raise ValueError(f"Unknown split {split}.")
        super().__init__(sizes[split], seed=len(split))


class PointsWithKwargs(PointsWithTrain):
    """Passes `train=` through **kwargs, and has a `split=` of another meaning, as torchvision's EMNIST."""

    def __init__(self, split, **kwargs):
        super().__init__(**kwargs)
        self.split = split


class Images(Dataset):
    """PIL images, the even ones grayscale if `mixed`."""

    classes = ["cat", "mouse"]  # noqa: RUF012 - torchvision has lists

    def __init__(self, num_examples=20, mixed=False, mode="RGB", sizes=(6,)):
        random = np.random.default_rng(0)
        self.images = [
            Image.fromarray(random.integers(0, 256, (sizes[index % len(sizes)], 5, 3), dtype=np.uint8)).convert(
                "L" if mixed and index % 2 == 0 else mode
            )
            for index in range(num_examples)
        ]

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], index % 2


class Stream(IterableDataset):
    """Iterable-style."""

    def __iter__(self):
        return iter([(torch.zeros(2), 0)])


class Dictionaries(Points):
    """Items as Hugging Face's `datasets` has them."""

    def __getitem__(self, index):
        return {"image": self.inputs[index], "label": self.targets[index]}


def make_points(num_examples=30):
    """Function that makes a dataset."""
    return Points(num_examples)


class PointsSource(DataSource):
    """A data source, not a torch dataset."""

    def read(self):
        points = Points()
        return RawSplits(unsplit=Split(inputs=points.inputs, targets=points.targets), class_names=("a", "b", "c"))
