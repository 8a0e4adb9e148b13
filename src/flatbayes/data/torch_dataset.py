"""Any map-style `torch.utils.data.Dataset` as a data source, by instance or by the dotted path of its class."""

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import Dataset, IterableDataset, Subset

from flatbayes.core.batch_targets import split_batch, split_labels
from flatbayes.core.console import track_progress
from flatbayes.core.display import format_fields
from flatbayes.core.graph_batches import is_graph, is_graph_list
from flatbayes.core.input_trees import make_inputs
from flatbayes.core.randomness import preserve_rng
from flatbayes.core.signatures import read_signature
from flatbayes.core.spec import class_path, import_object
from flatbayes.data.arrays import NamedArrays, make_raw_splits
from flatbayes.data.checks import DataWarning, TaskType, make_class_names
from flatbayes.data.images import GRAY_MODES, HIGH_BIT_DEPTH_MODES, read_orientation, turn_upright
from flatbayes.data.in_memory import encode_texts
from flatbayes.data.pairs import collate_examples, is_tree_item
from flatbayes.data.source import DataSource, RawSplits


@dataclass(frozen=True, kw_only=True)
class TorchDataset(DataSource):
    """A map-style torch dataset of (input, target) pairs, such as those of torchvision, or of labelled inputs.

    These are dictionaries with an entry `labels`, or graphs of PyTorch Geometric with an entry `y`.

    All examples are read into memory once, so a random `transform` of the dataset is applied once and then fixed. Use
    `flip`, `pad` and `cutout` for random augmentation.

    A dotted path is called once per split. If its signature has a parameter `train`, it is called with train=True for
    training and validation, and with train=False for the test split; else, if it has a parameter `split`, with
    `train_split`, `test_split` and `val_split`. Otherwise it is called once, and `test_size` splits the examples.

    Attributes:
        dataset: Dotted path of a class or function that makes the dataset (`torchvision.datasets.CIFAR10`); or the
            dataset itself, or a list of graphs.
        test: Dataset of the test split, if `dataset` is an instance; None draws `test_size` examples.
        val: Dataset of the validation split, if `dataset` is an instance; None draws `val_size` examples.
        options: Arguments of the class or function at the dotted path.
        train_split: Value of its parameter `split` for training examples.
        test_split: Value of its parameter `split` for test examples.
        val_split: Value of its parameter `split` for validation examples; None draws `val_size` training examples.
        task: classification, regression, multi_label or dense; None infers it from the targets: integers and texts
            are classes, fractions are regression targets, rows of 0 and 1 are several labels, unless each has a
            single 1, and other integers of several axes are a class for each position.

    Examples:
        >>> from torch.utils.data import TensorDataset
        >>> dataset = TensorDataset(torch.randn(60, 4), torch.arange(60) % 3)
        >>> splits = TorchDataset(dataset, test_size=12).load(seed=0)
        >>> len(splits.test), splits.num_classes
        (12, 3)
    """

    import_path_fields: ClassVar[tuple[str, ...]] = ("dataset",)
    content_fields: ClassVar[tuple[str, ...]] = ("dataset", "test", "val")

    dataset: str | Dataset[Any] = field(kw_only=False)
    test: Dataset[Any] | None = None
    val: Dataset[Any] | None = None
    options: dict[str, Any] = field(default_factory=dict, hash=False)  # experiments cache splits by source
    train_split: str = "train"
    test_split: str = "test"
    val_split: str | None = None
    task: TaskType = None

    __repr__ = format_fields

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.content_fields:
            graphs = getattr(self, name)
            if is_graph_list(graphs):
                object.__setattr__(self, name, Subset(graphs, range(len(graphs))))
        if isinstance(self.dataset, str):
            if self.test is not None or self.val is not None:
                raise ValueError(
                    f"test and val are datasets that go with a dataset, got the dotted path {self.dataset!r}. "
                    "Use test_split and val_split."
                )
        elif self.options:
            raise ValueError("options are arguments for a dotted path, and dataset is an instance. Leave them out.")

    def read(self) -> RawSplits:
        """Read all examples of all splits."""
        name = self.dataset if isinstance(self.dataset, str) else type(self.dataset).__name__
        datasets = self._make_datasets()
        arrays = {
            "unsplit" if split == "train" else split: read_examples(dataset, f"{split} of {name}")
            for split, dataset in datasets.items()
        }
        if not any(array.targets.dtype.kind in "OUS" for array in arrays.values()):
            return make_raw_splits(arrays, self.task, name_classes=partial(find_class_names, datasets["train"]))
        texts = {f"The {array.targets_description}": array.targets for array in arrays.values()}
        class_names, labels = encode_texts(texts)
        numbered = {
            split: array._replace(targets=targets)
            for (split, array), targets in zip(arrays.items(), labels, strict=True)
        }
        return make_raw_splits(numbered, "classification", name_classes=lambda _: class_names)

    def _make_datasets(self) -> dict[str, Dataset[Any]]:
        """Datasets of the splits that exist, by "train", "val" and "test"."""
        if not isinstance(self.dataset, str):
            datasets = {"train": self.dataset, "val": self.val, "test": self.test}
            return {split: dataset for split, dataset in datasets.items() if dataset is not None}
        factory = import_object(self.dataset)
        parameters = list_parameters(factory)
        selections: dict[str, dict[str, Any]] = {"train": {}}
        if "train" in parameters:
            selections = {"train": {"train": True}, "test": {"train": False}}
        elif "split" in parameters:
            values = {"train": self.train_split, "val": self.val_split, "test": self.test_split}
            selections = {split: {"split": value} for split, value in values.items() if value is not None}
        selector = next(iter(selections["train"]), None)
        if selector in self.options:
            raise ValueError(
                f"{self.dataset} is called once per split with its own value of {selector!r}: leave it out of the "
                "options (for `split`, set train_split, test_split and val_split)."
            )
        return {split: self._call(factory, selection) for split, selection in selections.items()}

    def _call(self, factory: Callable[..., Any], selection: dict[str, Any]) -> Dataset[Any]:
        arguments = self.options | selection
        try:
            dataset: Dataset[Any] = factory(**arguments)
        except (OSError, RuntimeError, TypeError, ValueError) as error:
            call = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
            raise ValueError(
                f"{self.dataset}({call}) failed: {str(error).rstrip('.')}. Its parameters are "
                f"{list_parameters(factory)}; give them as options (on the command line, --data.OPTION)."
            ) from error
        return dataset


NUM_REREAD_ITEMS = 4
"""Items that are read twice, to find random augmentation."""
MASK_IS_LEFT = (
    " Its target, an array, is the same: if inputs are flipped, turned, shifted or cropped, the target must be so "
    "too, as torchvision.transforms.v2 does with tv_tensors.Mask."
)


def list_parameters(factory: Callable[..., Any]) -> list[str]:
    """List the parameters of a class or function, with those that a class passes to its bases through **kwargs."""
    constructors: list[Callable[..., Any]] = [factory]
    if isinstance(factory, type):
        constructors = [vars(base)["__init__"] for base in factory.__mro__[:-1] if "__init__" in vars(base)]
    names: list[str] = []
    for constructor in constructors:
        parameters = read_signature(constructor).parameters.values()
        kinds = {parameter.kind for parameter in parameters}
        names += [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            break
    return [name for name in dict.fromkeys(names) if name != "self"]


def read_examples(dataset: Dataset[Any], description: str) -> NamedArrays:
    """Read all items of a dataset in order.

    Args:
        dataset: A map-style dataset of (input, target) pairs. Inputs are PIL images, tensors or arrays of one shape,
            or dictionaries or tuples of tensors; targets are numbers, arrays of them, or texts. Items may also be
            dictionaries with an entry `labels`, or graphs with an entry `y`.
        description: What the dataset is, for messages.

    Raises:
        ValueError: The dataset is iterable-style or empty, an item is no pair and no dictionary, or shapes differ.
    """
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise ValueError(
            f"{description} is a {type(dataset).__name__} without a length. Give a map-style dataset, with __len__ "
            "and __getitem__."
        )
    size = len(dataset)
    items = [dataset[index] for index in track_progress(range(size), f"reading {description}", size)]
    if not items:
        raise ValueError(f"{description} has no examples.")
    warn_of_random_items(dataset, items, description)
    names = (f"inputs of {description}", f"targets of {description}")
    if is_graph(items[0]):
        graphs, graph_targets = split_batch(collate_examples(items))
        return NamedArrays(graphs, _to_array(graph_targets), *names)
    if is_tree_item(items[0]):
        pairs = [split_labels(item) if isinstance(item, Mapping) else item for item in items]
        tree = make_inputs(collate_examples([pair[0] for pair in pairs]), names[0])
        return NamedArrays(tree, _stack([_to_array(pair[1]) for pair in pairs], names[1]), *names)
    for index, item in enumerate(items):
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise ValueError(
                f"Item {index} of {description} is a {type(item).__name__}, and a pair (input, target) was expected. "
                "Wrap the dataset in one that returns pairs."
            )
        check_orientation(item[0], item[1], f"Item {index} of {description}")
    inputs, targets = (
        _stack([convert(value) for value in values], name)
        for values, convert, name in zip(zip(*items, strict=True), (_to_array, _to_target), names, strict=True)
    )
    return NamedArrays(inputs, targets, *names)


def check_orientation(image: Any, target: Any, name: str) -> None:
    """Refuse a photo whose EXIF entry says how to turn it, and whose target is an array, which has no such entry.

    Raises:
        ValueError: The classes of the pixels may be those of the photo as it is stored, or as viewers show it.
    """
    is_image, is_mask = (type(value).__module__.startswith("PIL.") for value in (image, target))
    if not is_image or not (is_mask or np.ndim(target) > 1) or read_orientation(image) == 1:
        return
    raise ValueError(
        f"{name} is a photo that viewers turn (EXIF orientation {read_orientation(image)}), and its target may "
        "belong to the photo as it is stored or as it is shown. Return np.asarray(image).transpose(2, 0, 1) for "
        "the stored one, or PIL.ImageOps.exif_transpose(image) for the one that is shown."
    )


def warn_of_random_items(dataset: Dataset[Any], items: Sequence[Any], description: str) -> None:
    """Warn of inputs that differ when they are read again, as with random augmentation; no random state changes."""
    with preserve_rng(None):
        for index, item in enumerate(items[:NUM_REREAD_ITEMS]):
            first, again = (tree_leaves(value) for value in (item, dataset[index]))
            are_same = list(map(_is_same, first, again))
            if len(first) == len(again) and all(are_same):
                continue
            is_left = are_same == [False, True] and np.ndim(first[1]) > 1
            warnings.warn(
                f"Item {index} of {description} is another one when it is read again, as with random augmentation, "
                "and each item is read once, so that all epochs have the same inputs. For new ones in every epoch "
                "pass a DataLoader(dataset, batch_size=..., shuffle=True) of inputs that are ready for the network, "
                "or TorchDataset(dataset, flip=True, pad=4)."
                f"{MASK_IS_LEFT if is_left else ''}",
                category=DataWarning,
                stacklevel=2,
            )
            return


def _is_same(first: Any, again: Any) -> bool:
    if isinstance(first, Tensor) and isinstance(again, Tensor):
        return first.shape == again.shape and bool(torch.equal(first.nan_to_num(), again.nan_to_num()))
    if hasattr(first, "__array_interface__"):
        return np.array_equal(np.asarray(first), np.asarray(again))
    return True


def find_class_names(dataset: Dataset[Any], targets: Sequence[Tensor]) -> tuple[str, ...]:
    """Read class names from the attribute `classes` of a dataset; else use the numbers of the classes."""
    numbers = make_class_names(targets)
    classes = getattr(dataset, "classes", None)
    if not isinstance(classes, list | tuple) or len(classes) < len(numbers):
        return numbers
    return tuple(", ".join(name) if isinstance(name, tuple | list) else str(name) for name in classes)


def _to_array(value: Any) -> np.ndarray:
    """Convert a PIL image to [channels, height, width] (uint8), upright, and anything else as NumPy does."""
    if isinstance(value, Tensor):
        return np.asarray(value.detach().cpu())
    if not type(value).__module__.startswith("PIL."):
        return np.asarray(value)
    if value.mode in HIGH_BIT_DEPTH_MODES:
        raise ValueError(f"An image has more than 8 bits per pixel (mode {value.mode}). Convert it in a transform.")
    orientation = read_orientation(value)
    if value.mode in GRAY_MODES:
        return np.asarray(turn_upright(value.convert("L"), orientation))[None]
    return np.asarray(turn_upright(value.convert("RGB"), orientation)).transpose(2, 0, 1)


def _to_target(value: Any) -> np.ndarray:
    """Convert a target as `_to_array` does, and a PIL image of classes, [height, width], without its colors."""
    return np.asarray(value) if type(value).__module__.startswith("PIL.") else _to_array(value)


def _stack(arrays: Sequence[np.ndarray], description: str) -> np.ndarray:
    """Stack arrays of one shape; grayscale images are repeated for three channels if other images have color."""
    shapes = {array.shape for array in arrays}
    if {len(shape) for shape in shapes} == {3} and {shape[0] for shape in shapes} == {1, 3}:
        arrays = [array.repeat(3, axis=0) if array.shape[0] == 1 else array for array in arrays]
        shapes = {array.shape for array in arrays}
    if len(shapes) > 1:
        first, second = sorted(shapes)[:2]
        raise ValueError(
            f"The {description} have several shapes, such as {first} and {second}. Give the dataset a transform that "
            "makes them the same, such as a resize or a crop."
        )
    return np.stack(arrays)


def to_source_spec(spec: dict[str, Any]) -> dict[str, Any]:
    """Rewrite the spec of a torch dataset as the spec of a `TorchDataset`; other specs are returned unchanged.

    Args:
        spec: `class_path` of a data source, or of a class or function that makes a torch dataset, which is imported;
            and `init_args`. Arguments that `TorchDataset` does not have become its `options`.

    Raises:
        ValueError: The class path does not lead to a class or function.
    """
    path, arguments = spec["class_path"], dict(spec.get("init_args") or {})
    if path.startswith("flatbayes."):
        return spec
    target = import_object(path)
    if isinstance(target, type) and issubclass(target, DataSource):
        return spec
    own = {f.name for f in fields(TorchDataset)}
    options = {name: arguments.pop(name) for name in [*arguments] if name not in own}
    options |= arguments.pop("options", {})
    return {
        "class_path": class_path(TorchDataset),
        "init_args": {"dataset": path, **arguments, "options": options},
    }
