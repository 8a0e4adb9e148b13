"""Labelled examples of an evaluation, in every form in which `fit` takes them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from flatbayes.core.batch_targets import split_batch
from flatbayes.core.graph_batches import is_graph_list, join_graphs
from flatbayes.core.input_trees import IGNORE_INDEX, slice_examples
from flatbayes.data import DataSource, DataSplits, Split, is_array_pair, load_training_splits
from flatbayes.data.arrays import to_inputs
from flatbayes.data.checks import AmbiguousTargetsError, Task, TaskType
from flatbayes.data.column_names import convert_target_frame
from flatbayes.data.frame_features import convert_inputs
from flatbayes.data.named_labels import has_named_labels, wrap_rows
from flatbayes.data.pairs import check_pair, has_tree_items, is_tree_pair, join_rows
from flatbayes.data.torch_dataset import read_examples
from flatbayes.likelihoods import (
    Bernoulli,
    Categorical,
    DenseCategorical,
    DistributionLikelihood,
    Gaussian,
    Likelihood,
)
from flatbayes.likelihoods.custom import unwrap_custom
from flatbayes.likelihoods.dense_categorical_predictive import pad_positions
from flatbayes.likelihoods.families import find_family
from flatbayes.likelihoods.labels import encode_labels
from flatbayes.prediction.example_batches import batch_examples, number_batch
from flatbayes.prediction.fitted import FittedPosterior
from flatbayes.prediction.inputs import Inputs, match_image_layout

TASKS: dict[type[Likelihood], Task] = {
    Gaussian: "regression",
    DistributionLikelihood: "regression",
    Bernoulli: "multi_label",
    DenseCategorical: "dense",
}
"""Tasks that a likelihood decides; for classes the targets tell."""
T = TypeVar("T")


def join_targets(batches: Sequence[Tensor]) -> Tensor:
    """Targets of several batches, in order; positions are padded with `IGNORE_INDEX` to the largest examples.

    >>> join_targets([torch.tensor([[1, 2]]), torch.tensor([[3]])])
    tensor([[   1,    2],
            [   3, -100]])
    """
    shapes = {batch.shape[1:] for batch in batches}
    if len(shapes) > 1 and len({len(shape) for shape in shapes}) == 1 and not batches[0].is_floating_point():
        largest = [max(sizes) for sizes in zip(*shapes, strict=True)]
        batches = [pad_positions(batch.long(), largest, IGNORE_INDEX) for batch in batches]
    return torch.cat(list(batches))


class LabelledBatches:
    """Inputs of `(inputs, targets)` batches; the targets of the batches that have been read are kept.

    Attributes:
        batches: The batches.
    """

    def __init__(self, batches: Iterable[Any], class_names: object = None) -> None:
        self.batches, self._class_names = batches, class_names
        self._targets: list[Tensor] = []

    def __iter__(self) -> Iterator[Any]:
        self._targets = []
        for batch in self.batches:
            inputs, targets = split_batch(number_batch(batch, self._class_names) if self._class_names else batch)
            self._targets.append(targets.cpu())
            yield inputs if not isinstance(inputs, tuple) else (inputs,)

    def pop_targets(self, count: int) -> Tensor:
        """Targets of the next batches, with `count` examples, which are not kept."""
        batches = list[Tensor]()
        while count > 0:
            batches.append(self._targets.pop(0))
            count -= len(batches[-1])
        return join_targets(batches)

    @property
    def targets(self) -> Tensor:
        """Targets of all batches that have been read, in order."""
        return join_targets(self._targets)


def select_examples(
    fitted: FittedPosterior, data: Any, targets: Any = None, batch_size: int = 256
) -> tuple[Inputs | LabelledBatches, Any]:
    """Inputs, and targets as given; None as targets where they are known once the inputs have been read.

    Without targets the data are a split, a pair, a dataset or a loader.

    Raises:
        TypeError: The data hold no targets, or are sparse.
        ValueError: Inputs and targets have the same row labels in another order.
    """
    data, class_names = wrap_rows(data), fitted.info.get("class_names")
    is_pair = targets is None and (is_array_pair(data) or is_tree_pair(data))
    if is_pair:
        data, targets = data
    if is_pair or targets is not None:
        check_pair(data, targets, "given examples")
        return join_rows(data, targets), targets
    if isinstance(data, Split):
        return data.inputs, data.targets
    if isinstance(data, DataSplits | DataSource):
        raise TypeError(
            f"Say which split is evaluated: evaluate(fitted, data.test), where data are the splits; got a "
            f"{type(data).__name__}."
        )
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset) and fitted.transform is not None:
        if has_named_labels(data):
            examples = read_examples(data, type(data).__name__)
            return to_inputs(examples.inputs, examples.inputs_description), examples.targets
        # converted as for the training
        num_classes = count_classes(fitted.likelihood)
        splits = read_as_task(
            lambda task: load_training_splits(data, task=task, num_classes=num_classes), fitted.likelihood
        )
        return splits.train.inputs, splits.train.targets
    if isinstance(data, Dataset) or has_tree_items(data):
        return LabelledBatches(batch_examples(data, batch_size), class_names), None
    is_plain = isinstance(data, Tensor | Mapping | str) or hasattr(data, "__array__")
    if is_plain or not isinstance(data, Iterable):
        raise TypeError(
            f"A {type(data).__name__} holds no targets: evaluate(fitted, inputs, targets), or pass a pair (inputs, "
            "targets), a split, a dataset or a loader."
        )
    return LabelledBatches(data, class_names), None


def make_labelled_tensors(fitted: FittedPosterior, data: Any, targets: Any = None) -> tuple[Any, Tensor]:
    """Inputs in the form of the training, and targets as a tensor, of examples that are needed all at once.

    Without targets the data are a split or a pair.

    Raises:
        TypeError: The data hold no targets, or are read in parts.
        ValueError: Inputs or targets are not those of the training.
    """
    if is_graph_list(data):
        data = join_graphs(data)
        data, targets = (data, targets) if targets is not None else split_batch(data)
    inputs, targets = select_examples(fitted, data, targets)
    if targets is None:
        raise TypeError(
            f"These examples are needed all at once, and a {type(data).__name__} is read in parts: pass a split, or "
            "a pair (inputs, targets) of as many examples as should be used."
        )
    info = fitted.info
    inputs = match_image_layout(convert_inputs(inputs, info.get("feature_names")), info.get("input_shape"))
    targets = encode_labels(convert_target_frame(targets, info.get("target_names")), info.get("class_names"))
    return inputs, targets[:, 0] if targets.ndim == 2 and targets.shape[1] == 1 else targets


def mark_unlabelled(likelihood: Likelihood, targets: Tensor) -> Tensor:
    """Targets with `IGNORE_INDEX` in place of those that are not known."""
    is_known = likelihood.find_targets(targets)
    return targets if is_known is None else targets.masked_fill(~is_known, IGNORE_INDEX)


def select_labelled(likelihood: Likelihood, inputs: Any, targets: Tensor) -> tuple[Any, Tensor]:
    """The examples of a batch that have a target, with targets from `Likelihood.prepare_targets`."""
    is_labelled = likelihood.find_labelled(targets)
    if is_labelled is None or bool(is_labelled.all()):
        return inputs, targets
    return slice_examples(inputs, is_labelled), targets[is_labelled]


def infer_task(likelihood: object) -> TaskType:
    """`regression` for a Gaussian or another distribution of numbers, `multi_label` for a Bernoulli.

    `dense` for classes of positions.

    None where the targets tell.
    """
    if find_family(likelihood) is not None:
        return "regression"
    return next((task for kind, task in TASKS.items() if names_likelihood(likelihood, kind)), None)


def count_classes(likelihood: object) -> int | None:
    """Number of classes of a `Categorical`, in a wrapper of the user or not; None where the targets tell."""
    inner = unwrap_custom(likelihood)
    return inner.num_classes if isinstance(inner, Categorical) else None


def read_as_task(
    read: Callable[[TaskType], T], likelihood: object, are_classes: Callable[[T], bool] = lambda _: False
) -> T:
    """Read examples for the task that a likelihood decides.

    Whole numbers of a floating-point type, such as 0.0 and 1.0, are classes for a `Categorical`. Without a likelihood
    they may be classes or numbers to predict, which `are_classes` decides.

    Raises:
        ValueError: The targets may be classes or numbers to predict, or do not fit the task.
    """
    try:
        return read(infer_task(likelihood))
    except AmbiguousTargetsError as error:
        if names_likelihood(likelihood, Categorical):
            return read("classification")
        try:
            examples = read("classification")
        except ValueError:  # for example numbers that do not count classes
            raise error from None
        if not are_classes(examples):
            raise
        return examples


def names_likelihood(likelihood: object, kind: type[Likelihood]) -> bool:
    """Whether a likelihood, its class or its name is of this kind, in a wrapper of the user or not."""
    inner = unwrap_custom(likelihood)
    if isinstance(inner, str):
        return inner.lower() == kind.__name__.lower()
    return issubclass(inner if isinstance(inner, type) else type(inner), kind)
