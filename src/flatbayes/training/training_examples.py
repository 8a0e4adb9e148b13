"""Training data from what a user gave: read, divided where validation examples are needed, and checked."""

import warnings
from collections.abc import Callable, Iterable
from typing import Any

from flatbayes.data import DataSplits, Standardize
from flatbayes.data.checks import DataWarning
from flatbayes.data.hold_out import HELD_OUT_FRACTION, hold_out_validation
from flatbayes.data.split_checks import check_split_values, warn_of_untrained_classes
from flatbayes.flatness import Flatness
from flatbayes.training.arguments import hold_out_examples, normalize_data, normalize_validation, unpack_splits
from flatbayes.training.config import TrainingConfig
from flatbayes.training.data import InMemoryData, TrainingData
from flatbayes.training.loader_data import LoaderData
from flatbayes.training.unknown_labels import drop_unlabelled

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

    Args:
        data: As for `fit`.
        val: As for `fit`.
        config: Training hyperparameters.
        flatness: The flatness as the user gave it.
        likelihood: As for `fit`.
        seed: Seed of the order of batches and of the examples that are held out.
        transform: As for `fit`.
        num_data: As for `fit`.
        are_classes: As for `normalize_data`.

    Raises:
        TypeError, ValueError: They are nothing to train on, or the arguments do not go together.
    """
    given, num_held_out = data if isinstance(data, DataSplits) else None, 0
    data, val = unpack_splits(data, val)
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
    splits = examples if isinstance(examples, DataSplits) else given
    if splits is not None:
        check_split_values(splits, ("train", "val"))
        warn_of_untrained_classes(splits)
    training_data = make_training_data(examples, transform, num_data, val, num_held_out)
    if config.epochs is None and given is None and not training_data.has_validation:
        warnings.warn(NO_VALIDATION, DataWarning, stacklevel=5)
    return training_data, training_data.splits if isinstance(training_data, InMemoryData) else splits


def make_training_data(
    data: DataSplits | Iterable[Any],
    transform: Standardize | None = None,
    num_data: int | None = None,
    val: Iterable[Any] | None = None,
    num_held_out: int = 0,
) -> TrainingData:
    """Training data from data splits or from a loader.

    Args:
        data: Data splits, or a loader.
        transform: Standardization of the inputs of data splits; by default that of the training split.
        num_data: Number of labelled examples of a loader; None counts them in one pass.
        val: Validation batches beside a loader.
        num_held_out: Number of validation examples that `fit` has held out.

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
    return LoaderData(data, num_data, val, num_held_out=num_held_out)


def needs_validation(config: TrainingConfig, flatness: Flatness) -> bool:
    """Whether a training decides on validation examples: when it stops, or which radius it has.

    Args:
        config: Training hyperparameters.
        flatness: The flatness.
    """
    return config.epochs is None or flatness.radius == "auto"
