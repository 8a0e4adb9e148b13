"""Arguments of `fit`: their types, and names, classes and mappings where instances are meant."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from flatbayes import likelihoods, models
from flatbayes.core.components import resolve_component
from flatbayes.core.names import format_suggestion, list_classes, match_name
from flatbayes.core.network_interface import OutputSelector
from flatbayes.core.randomness import Stream, make_generator
from flatbayes.data import DataSource, DataSplits, Standardize, is_array_pair, load_training_splits
from flatbayes.data.named_labels import wrap_rows
from flatbayes.data.pairs import has_tree_items, is_tree_pair
from flatbayes.data.readers import set_task
from flatbayes.data.stratified_split import HELD_OUT_FRACTION, choose_held_out
from flatbayes.flatness import Flatness
from flatbayes.likelihoods import Likelihood
from flatbayes.likelihoods.families import FAMILIES, find_family
from flatbayes.posteriors import Posterior
from flatbayes.prediction.example_batches import batch_examples, read_targets, take_examples
from flatbayes.prediction.labelled import count_classes, infer_task, read_as_task
from flatbayes.training.checkpoint import Checkpoints
from flatbayes.training.config import TrainingConfig
from flatbayes.training.network_defaults import choose_config
from flatbayes.training.warm_start import PretrainedWeights

DATA_ADVICE = (
    "Pass data splits, a Dataset, a pair (inputs, targets) of tensors, arrays or data frames, or a DataLoader (or "
    "list) of (inputs, targets) batches"
)


class NetworkOptions(TypedDict, total=False):
    """Keyword arguments of `fit` on network and targets, which are explained there."""

    likelihood: Likelihood | str | None
    output: OutputSelector | None
    init: PretrainedWeights | Sequence[PretrainedWeights] | None
    new_head: bool
    freeze: Sequence[str]
    transform: Standardize | None


class DataOptions(NetworkOptions, total=False):
    """Those on data and seed besides."""

    num_data: int | None
    val: Any
    seed: int


def resolve_config(config: Any, model: Any = None, init: Any = None) -> TrainingConfig:
    """A training configuration from one, its class, a mapping of options that replace defaults, or None.

    The defaults depend on `model` and `init`, as for `fit`, where they are given.

    Raises:
        TypeError: It is something else.
        ValueError: A mapping has an unknown option or an invalid value.
    """
    if isinstance(config, TrainingConfig):
        return config
    if config is None or config is TrainingConfig or isinstance(config, Mapping):
        default = choose_config(resolve_model(model), init)
        return default.with_options(**config) if isinstance(config, Mapping) else default
    raise TypeError(
        'config must be a TrainingConfig such as TrainingConfig(epochs=10), or a mapping such as {"epochs": 10}, got '
        f"{config!r}."
    )


def resolve_arguments(
    model: Any, data: Any, posterior: Any, flatness: Any, config: Any, options: Mapping[str, Any]
) -> tuple[Any, Any, Posterior, Flatness, TrainingConfig]:
    """The first arguments of `fit` with instances in place of names and classes, splits in place of a data source.

    Of the options `init`, `likelihood` and `seed` are used.

    Raises:
        TypeError, ValueError: As for the functions below, and `resolve_component`.
    """
    config = resolve_config(config, model, options.get("init"))
    posterior = resolve_component(posterior, Posterior, "posterior")
    flatness = resolve_component(flatness, Flatness, "flatness")
    data = resolve_data(data, options.get("seed", 0), options.get("likelihood"))
    return resolve_model(model), data, posterior, flatness, config


def resolve_checkpoints(checkpoints: Any) -> Checkpoints | None:
    """Checkpoints from what a user gave: None, an instance, or the path of their folder.

    Raises:
        TypeError: It is something else.
    """
    if checkpoints is None or isinstance(checkpoints, Checkpoints):
        return checkpoints
    if isinstance(checkpoints, str | Path):
        return Checkpoints(Path(checkpoints))
    raise TypeError(f"checkpoints must be the path of a folder or Checkpoints(folder), got {checkpoints!r}.")


def resolve_model(model: Any) -> Any:
    """The class for the name of a model of flatbayes; anything else is returned as it is.

    Raises:
        ValueError: There is no model of that name.
    """
    if not isinstance(model, str):
        return model
    classes = list_classes(models, nn.Module)
    name = match_name(model, classes)
    if name is None:
        raise ValueError(
            f"Unknown model {model!r}. {format_suggestion(model, classes)}Known: {', '.join(classes)}; or give a "
            "class, a function or a network."
        )
    return classes[name]


def resolve_data(data: Any, seed: int, likelihood: Any) -> Any:
    """The splits of a data source, and a dataset of rows; anything but these and texts is returned as it is.

    A Gaussian or another distribution makes whole numbers of a source regression targets, a Categorical makes those
    of a floating-point type classes.

    Raises:
        TypeError: The data are a text.
    """
    if isinstance(data, type) and issubclass(data, DataSource):
        data = data()
    if isinstance(data, DataSource):
        return read_as_task(lambda task: set_task(data, task).load(seed), likelihood)
    if isinstance(data, str):
        raise TypeError(
            f"data are the splits of a source or a loader, got the text {data!r}. Write Digits().load(seed=0), or "
            "flatbayes.data.make_source(path).load(seed=0) for a file or folder."
        )
    return wrap_rows(data)


def normalize_data(
    data: Any,
    val: Any,
    batch_size: int,
    likelihood: Any,
    seed: int,
    are_classes: Callable[[DataSplits], bool],
) -> Any:
    """Data of `fit` as splits, or as an iterable of batches with a length.

    Pairs of arrays and map-style datasets are read into memory; where inputs are dictionaries or tuples of tensors,
    batches are made of them as they are. A loader of an iterable-style dataset needs no length.

    The batch size is for an iterable-style dataset and for inputs that are dictionaries or tuples, the seed for the
    order of batches that are made here. A Gaussian makes whole numbers regression targets; `are_classes` says whether
    those of a floating-point type are classes, where the likelihood does not tell.

    Raises:
        TypeError: They are none of these, or data and validation data are of different kinds.
        ValueError: They are empty.
    """
    if isinstance(data, IterableDataset):
        data = _batch_stream(data, batch_size)
    if is_tree_pair(data) or has_tree_items(data):
        generator = make_generator(Stream.BATCHES, seed)
        data = batch_examples(data, batch_size, shuffle=True, generator=generator)
    if isinstance(data, DataSplits):
        if val is not None:
            raise TypeError("The splits have a validation split: leave out val, or replace it in the splits.")
        return data
    if is_array_pair(data) or (isinstance(data, Dataset) and not isinstance(data, IterableDataset)):
        num_classes = count_classes(likelihood)
        return read_as_task(lambda task: load_training_splits(data, val, task, num_classes), likelihood, are_classes)
    if isinstance(data, DataLoader):
        return data
    if isinstance(data, DataSource):
        raise TypeError(f"A {type(data).__name__} must be read first: pass {type(data).__name__}(...).load(seed=0).")
    is_plain = isinstance(data, Tensor | np.ndarray | Mapping | str | bytes | Iterator) or hasattr(data, "columns")
    if is_plain or not (hasattr(data, "__iter__") and hasattr(data, "__len__")):
        reason = " can be read only once" if isinstance(data, Iterator) else " is not data to train on"
        if isinstance(data, Mapping):
            reason += ": take its labels out, and pass a pair (inputs, labels) where inputs are the dictionary"
        raise TypeError(f"A {type(data).__name__}{reason}. {DATA_ADVICE}.")
    if len(data) == 0:
        raise ValueError(f"There are no batches: the {type(data).__name__} is empty. {DATA_ADVICE}.")
    return data


def unpack_splits(data: Any, val: Any) -> tuple[Any, Any]:
    """Pairs of training and validation examples of splits whose inputs are dictionaries or tuples of tensors.

    Other data are returned as they are; splits take no `val`.
    """
    if not isinstance(data, DataSplits) or not data.train.has_input_tree or val is not None:
        return data, val
    train, val = ((split.inputs, split.targets) if len(split) else None for split in (data.train, data.val))
    return train, val


def hold_out_examples(data: Any, likelihood: Any, seed: int) -> tuple[Any, Any, int]:
    """Hold out validation examples, where inputs are dictionaries or tuples of tensors that are given one by one.

    A Gaussian likelihood makes whole numbers regression targets.

    Returns:
        Training examples, validation examples, and the number of the latter; the data, None and 0 for other data, or
        where there would be too few.
    """
    if not (is_tree_pair(data) or has_tree_items(data)):
        return data, None, 0
    targets = read_targets(data)
    has_classes = targets.ndim == 1 and not targets.is_floating_point() and infer_task(likelihood) != "regression"
    rows = choose_held_out(targets, HELD_OUT_FRACTION, seed, has_classes=has_classes)
    if rows is None:
        return data, None, 0
    train, val = (take_examples(data, part) for part in rows)
    return train, val, len(rows[1])


def normalize_validation(val: Any, batch_size: int) -> Iterable[Any]:
    """Validation data beside a loader, as an iterable of batches.

    Raises:
        TypeError: It is a pair of arrays, or splits.
    """
    if isinstance(val, IterableDataset):
        return _batch_stream(val, batch_size)
    if isinstance(val, Dataset) or is_tree_pair(val) or has_tree_items(val):
        return batch_examples(val, batch_size)
    if isinstance(val, DataSplits | Tensor | np.ndarray | Iterator | str) or is_array_pair(val):
        raise TypeError(
            "Beside a loader, val is a loader too, or a list of batches or a dataset that are ready for the model; "
            f"got a {type(val).__name__}."
        )
    return val  # type: ignore[no-any-return]


def _batch_stream(dataset: IterableDataset[Any], batch_size: int) -> DataLoader[Any]:
    if not hasattr(dataset, "__len__"):
        raise TypeError(
            "An IterableDataset without a length cannot be divided into epochs of batches: give it __len__, or pass "
            "DataLoader(dataset, batch_size=...)."
        )
    return DataLoader(dataset, batch_size)


def check_likelihood_name(likelihood: Any) -> None:
    """Refuse a text that names no likelihood, before the data are read.

    Raises:
        TypeError: There is no likelihood or distribution of this name.
    """
    if isinstance(likelihood, str) and find_family(likelihood) is None:
        classes = list_classes(likelihoods, Likelihood)  # type: ignore[type-abstract]
        if match_name(likelihood, classes) is None:
            raise TypeError(
                f"Unknown likelihood {likelihood!r}. {format_suggestion(likelihood, [*FAMILIES, *classes])}Give the "
                f"name of a distribution ({', '.join(FAMILIES)}), or an instance such as Categorical(10)."
            )


def resolve_likelihood(likelihood: Any, inferred: Likelihood) -> Likelihood:
    """A likelihood from an instance, or from the class or name of the one that the data suggest.

    Raises:
        TypeError: It is something else.
    """
    if isinstance(likelihood, Likelihood):
        return likelihood
    name = likelihood.__name__ if isinstance(likelihood, type) else likelihood
    if isinstance(name, str) and name.lower() == type(inferred).__name__.lower():
        return inferred
    raise TypeError(
        f"likelihood must be an instance such as Categorical(10) or Gaussian(), or the name of a distribution "
        f"({', '.join(FAMILIES)}), got {name!r}; these data suggest {inferred!r}."
    )
