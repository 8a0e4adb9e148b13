"""Training data from what a user gave: read, divided where validation examples are needed, and checked.

Examples none of whose labels is known are left out, and the likelihood knows how unknown labels are marked.
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from math import prod
from typing import Any

from torch.utils.data import DistributedSampler

from flatbayes.core.input_trees import IGNORE_INDEX, holds_texts
from flatbayes.data import DataSplits, Standardize, load_training_splits
from flatbayes.data.checks import DataWarning
from flatbayes.data.named_labels import has_named_labels, number_labels, wrap_rows
from flatbayes.data.pairs import is_tree_pair
from flatbayes.data.split_checks import check_split_values, warn_of_untrained_classes
from flatbayes.data.stratified_split import HELD_OUT_FRACTION, hold_out_validation
from flatbayes.flatness import Flatness
from flatbayes.likelihoods import Bernoulli, DenseCategorical, Likelihood
from flatbayes.likelihoods.custom import unwrap_custom
from flatbayes.prediction.example_batches import (
    NumberedBatches,
    has_named_batches,
    read_class_names,
    sort_class_names,
)
from flatbayes.prediction.labelled import infer_task
from flatbayes.training.arguments import hold_out_examples, normalize_data, normalize_validation, unpack_splits
from flatbayes.training.batches import preserve_loader
from flatbayes.training.config import TrainingConfig
from flatbayes.training.data import InMemoryData, TrainingData
from flatbayes.training.distributed.launch import get_process_layout
from flatbayes.training.loader_data import LoaderData

NO_VALIDATION = (
    "There are no validation examples: training takes its whole budget, and nothing says how wide the posterior is "
    "to be, so that predictions may be far too certain. Give val, or a number of epochs."
)
TRANSFORMED_BATCHES = (
    "transform standardizes one array of inputs, and batches of a loader, dictionaries and tuples of tensors reach "
    "the network as they are: leave transform out, and transform the inputs in the data."
)


def read_training_data(
    data: Any,
    val: Any,
    config: TrainingConfig,
    flatness: Flatness,
    likelihood: Any,
    seed: int,
    *,
    transform: Standardize | None,
    num_data: int | None,
    are_classes: Callable[[DataSplits], bool],
) -> tuple[TrainingData, DataSplits | None]:
    """Training data, and their splits if they have some.

    Raises:
        TypeError, ValueError: They are nothing to train on, or the arguments do not go together.
    """
    given, num_held_out = data if isinstance(data, DataSplits) else None, 0
    val, class_names = wrap_rows(val), tuple[str, ...]()
    if has_named_labels(data):
        data, val = number_labels(data, val)
        class_names = data.classes
    named = read_named_classes(data, val)
    data, val = unpack_splits(data, val) if named is None else unpack_splits(named, None)
    holds_out = given is None and val is None and needs_validation(config, flatness)
    if holds_out:
        data, val, num_held_out = hold_out_examples(data, likelihood, seed)
    examples = normalize_data(data, val, config.batch_size, likelihood, seed, are_classes)
    if isinstance(examples, DataSplits):
        examples = hold_out_validation(examples, HELD_OUT_FRACTION, seed) if holds_out else examples
        is_given = given is not None or val is not None
        num_held_out = 0 if is_given else len(examples.val)
    elif val is not None:
        val = normalize_validation(val, config.batch_size)
    if not (class_names or isinstance(examples, DataSplits)) and infer_task(likelihood) is None:
        examples, val, class_names = number_named_batches(examples, val, config, num_data)
    splits = examples if isinstance(examples, DataSplits) else given or named
    if splits is not None:
        check_split_values(splits, ("train", "val"))
        warn_of_untrained_classes(splits)
    class_names = splits.class_names if splits is not None else class_names
    training_data = make_training_data(examples, transform, num_data, val, num_held_out, class_names)
    if config.epochs is None and given is None and not training_data.has_validation:
        warnings.warn(NO_VALIDATION, DataWarning, stacklevel=5)
    return training_data, training_data.splits if isinstance(training_data, InMemoryData) else splits


def read_named_classes(data: Any, val: Any) -> DataSplits | None:
    """Splits with the names of classes, where labels beside trees of tensors are texts; None for other data.

    Raises:
        TypeError: The validation examples are of another kind.
        ValueError: A label is missing.
    """
    if not is_tree_pair(data) or not holds_texts(data[1]):
        return None
    if val is not None and not is_tree_pair(val):
        raise TypeError(
            "The labels are texts, so val must be a pair (inputs, labels) like the data, with which it shares the "
            f"names of the classes; got a {type(val).__name__}."
        )
    return load_training_splits(data, val)


def number_named_batches(
    loader: Iterable[Any], val: Iterable[Any] | None, config: TrainingConfig, num_data: int | None
) -> tuple[Iterable[Any], Iterable[Any] | None, tuple[str, ...]]:
    """Training and validation batches with numbers for the names of classes, which are in alphabetic order.

    One pass over each finds the names. Batches whose labels are no names are unchanged, as are those that are not
    read in whole before the training, which is then refused: with `num_data`, and in several processes, of which each
    may read its own share.

    Raises:
        ValueError: A label is missing, or those of some batches are names and those of others are not.
    """
    has_share = isinstance(getattr(loader, "sampler", None), DistributedSampler)
    if num_data is not None or has_share or prod(get_process_layout(config)) > 1:
        return loader, val, ()
    with preserve_loader(loader):
        if not has_named_batches(loader):
            return loader, val, ()
    names = set[str]()
    for batches, description in ((loader, "The training data"), (val, "The validation data")):
        if batches is not None:
            with preserve_loader(batches):
                names |= read_class_names(batches, description)
    class_names = sort_class_names(names)
    numbered_val = None if val is None else NumberedBatches(val, class_names)
    return NumberedBatches(loader, class_names), numbered_val, class_names


def make_training_data(
    data: DataSplits | Iterable[Any],
    transform: Standardize | None = None,
    num_data: int | None = None,
    val: Iterable[Any] | None = None,
    num_held_out: int = 0,
    class_names: Sequence[str] = (),
) -> TrainingData:
    """Training data from data splits or from a loader.

    By default inputs of splits are standardized as the training split is; without `num_data` the labelled examples of
    a loader are counted in one pass.

    Raises:
        ValueError: `num_data` is given for data splits, or is below 1; or `transform` is given for a loader.
    """
    if num_data is not None and (num_data < 1 or isinstance(data, DataSplits)):
        raise ValueError(f"num_data is the number of labelled examples of a loader, at least 1; got {num_data}.")
    if isinstance(data, DataSplits):
        labelled = drop_unlabelled(data)
        return InMemoryData(labelled, transform, min(num_held_out, len(labelled.val)))
    if transform is not None:
        raise ValueError(TRANSFORMED_BATCHES)
    return LoaderData(data, num_data, val, num_held_out=num_held_out, class_names=tuple(class_names))


def needs_validation(config: TrainingConfig, flatness: Flatness) -> bool:
    """Whether a training decides on validation examples: when it stops, or which radius it has."""
    return config.epochs is None or flatness.radius == "auto"


def drop_unlabelled(data: DataSplits, ignore_index: int = IGNORE_INDEX) -> DataSplits:
    """The splits without the examples none of whose labels is known, as `num_data` and mean losses need them.

    Raises:
        ValueError: No label of the training examples is known.
    """
    if not (data.is_multi_label or data.is_dense):
        return data
    is_labelled = {name: (getattr(data, name).targets != ignore_index).flatten(1).any(1) for name in ("train", "val")}
    if not is_labelled["train"].any():
        raise ValueError("No label of the training examples is known. Training needs labelled examples.")
    dropped = {
        name: getattr(data, name).take(rows.nonzero()[:, 0]) for name, rows in is_labelled.items() if not rows.all()
    }
    return replace(data, **dropped)


def match_position_labels(data: InMemoryData, likelihood: Likelihood) -> InMemoryData:
    """The data with names of the classes of the likelihood, and without examples that it has no label of.

    They are returned as they are unless each position of an example has a class.

    Raises:
        ValueError: A label is no class of the likelihood, or none is known.
    """
    inner, splits = unwrap_custom(likelihood), data.splits
    if not splits.is_dense or not isinstance(inner, DenseCategorical):
        return data
    for split in (splits.train, splits.val):
        if len(split):
            inner.prepare_targets(split.targets)
    splits = drop_unlabelled(splits, inner.ignore_index)
    names = splits.class_names[: inner.num_classes]
    names += tuple(str(k) for k in range(len(names), inner.num_classes))
    augment = splits.augment and replace(splits.augment, ignore_index=inner.ignore_index)
    num_held_out = min(data.num_held_out, len(splits.val))
    return replace(data, splits=replace(splits, class_names=names, augment=augment), num_held_out=num_held_out)


def check_ignore_index(data: DataSplits, likelihood: Likelihood) -> None:
    """Check that a likelihood of several labels knows how data splits mark a label that is not known."""
    likelihood = unwrap_custom(likelihood)
    if not isinstance(likelihood, Bernoulli) or likelihood.ignore_index == IGNORE_INDEX or not data.is_multi_label:
        return
    if any(bool((split.targets == IGNORE_INDEX).any()) for split in (data.train, data.val)):
        raise ValueError(
            f"Labels that are not known are {IGNORE_INDEX} in these data, also where they were NaN, and the "
            f"likelihood has ignore_index={likelihood.ignore_index}: leave ignore_index out."
        )
