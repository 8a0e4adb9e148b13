"""Labelled examples of an evaluation, in every form in which `fit` takes them."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from flatbayes.core.input_trees import split_batch
from flatbayes.data import DataSource, DataSplits, Split, is_array_pair, load_training_splits
from flatbayes.data.checks import TaskType
from flatbayes.likelihoods import Custom, Gaussian
from flatbayes.prediction.example_batches import batch_examples, is_tree_pair
from flatbayes.prediction.fitted import FittedPosterior
from flatbayes.prediction.inputs import Inputs


class LabelledBatches:
    """Inputs of `(inputs, targets)` batches; the targets of the batches that have been read are kept.

    Args:
        batches: The batches.
    """

    def __init__(self, batches: Iterable[Any]) -> None:
        self._batches = batches
        self._targets: list[Tensor] = []

    def __iter__(self) -> Iterator[Any]:
        self._targets = []
        for batch in self._batches:
            inputs, targets = split_batch(batch)
            self._targets.append(targets.cpu())
            yield inputs if not isinstance(inputs, tuple) else (inputs,)

    @property
    def targets(self) -> Tensor:
        """Targets of all batches that have been read, in order."""
        return torch.cat(self._targets)


def select_examples(
    fitted: FittedPosterior, data: Any, targets: Any = None, batch_size: int = 256
) -> tuple[Inputs | LabelledBatches, Any]:
    """Inputs, and targets as given; None as targets where they are known once the inputs have been read.

    Args:
        fitted: The posterior, which says whether examples are raw or ready for the network.
        data: Inputs, if targets are given; else a split, a pair, a dataset or a loader.
        targets: Targets of these inputs, or None.
        batch_size: Batch size for a dataset.

    Raises:
        TypeError: The data hold no targets.
    """
    if targets is not None:
        return data, targets
    if isinstance(data, Split):
        return data.inputs, data.targets
    if is_array_pair(data) or is_tree_pair(data):
        return data[0], data[1]
    if isinstance(data, DataSplits | DataSource):
        raise TypeError(
            f"Say which split is evaluated: evaluate(fitted, data.test), where data are the splits; got a "
            f"{type(data).__name__}."
        )
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset) and fitted.transform is not None:
        split = load_training_splits(data, task=infer_task(fitted.likelihood)).train  # converted as for the training
        return split.inputs, split.targets
    if isinstance(data, Dataset):
        return LabelledBatches(batch_examples(data, batch_size)), None
    if isinstance(data, Tensor | np.ndarray | Mapping | str) or not isinstance(data, Iterable):
        raise TypeError(
            f"A {type(data).__name__} holds no targets: evaluate(fitted, inputs, targets), or pass a pair (inputs, "
            "targets), a split, a dataset or a loader."
        )
    return LabelledBatches(data), None


def infer_task(likelihood: object) -> TaskType:
    """`regression` for a Gaussian; None where the targets tell.

    Args:
        likelihood: A likelihood, its class or its name; None for none.
    """
    while isinstance(likelihood, Custom):
        likelihood = likelihood.output_likelihood
    if isinstance(likelihood, str):
        return "regression" if likelihood.lower() == Gaussian.__name__.lower() else None
    likelihood_class = likelihood if isinstance(likelihood, type) else type(likelihood)
    return "regression" if issubclass(likelihood_class, Gaussian) else None
