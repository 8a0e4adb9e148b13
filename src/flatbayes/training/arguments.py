"""Arguments of `fit`: their types, and names, classes and mappings where instances are meant."""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from torch import nn

from flatbayes import models
from flatbayes.core.names import format_suggestion, list_classes, match_name
from flatbayes.core.network_interface import OutputSelector
from flatbayes.data import DataSource, Standardize
from flatbayes.data.readers import set_task
from flatbayes.likelihoods import Likelihood
from flatbayes.prediction.labelled import infer_task
from flatbayes.training.config import TrainingConfig
from flatbayes.training.network_defaults import choose_config
from flatbayes.training.warm_start import PretrainedWeights


class NetworkOptions(TypedDict, total=False):
    """Keyword arguments of `fit` on network and targets, which are explained there."""

    likelihood: Likelihood | None
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

    Args:
        config: What the user gave.
        model: As for `fit`; None if the defaults are not to depend on it.
        init: As for `fit`.

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


def resolve_data(data: Any, seed: int, likelihood: Any = None) -> Any:
    """The splits of a data source; anything but a source, its class or a text is returned as it is.

    Args:
        data: What the user gave.
        seed: Seed of the splits.
        likelihood: What the user gave; a Gaussian makes whole numbers of a source regression targets.

    Raises:
        TypeError: The data are a text.
    """
    if isinstance(data, type) and issubclass(data, DataSource):
        data = data()
    if isinstance(data, DataSource):
        return set_task(data, infer_task(likelihood)).load(seed)
    if isinstance(data, str):
        raise TypeError(
            f"data are the splits of a source or a loader, got the text {data!r}. Write Digits().load(seed=0), or "
            "flatbayes.data.make_source(path).load(seed=0) for a file or folder."
        )
    return data


def resolve_likelihood(likelihood: Any, inferred: Likelihood) -> Likelihood:
    """A likelihood from an instance, or from the class or name of the one that the data suggest.

    Args:
        likelihood: What the user gave.
        inferred: The likelihood for the data.

    Raises:
        TypeError: It is something else.
    """
    if isinstance(likelihood, Likelihood):
        return likelihood
    name = likelihood.__name__ if isinstance(likelihood, type) else likelihood
    if isinstance(name, str) and name.lower() == type(inferred).__name__.lower():
        return inferred
    raise TypeError(
        f"likelihood must be an instance such as Categorical(10) or Gaussian(), got {name!r}; these data suggest "
        f"{inferred!r}."
    )
