"""Plain data by which trainings are compared: for checkpoints, and to find posteriors that share a training."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from flatbayes.core.spec import short_name, to_spec
from flatbayes.flatness import Flatness, Plain
from flatbayes.posteriors import Posterior
from flatbayes.training.config import TrainingConfig
from flatbayes.training.config_groups import CollectionConfig


def describe_exactly(value: Any) -> Any:
    """Description of an object; where it has none, its class and its address in this process, which are its alone."""
    try:
        description = to_spec(value)
        if description == to_spec(value, allow_instances=True):  # not so for a subclass with attributes of its own
            return description
    except TypeError:
        pass
    return f"{type(value).__module__}.{type(value).__qualname__} at {id(value)}"


def describe_training(
    posterior: Posterior,
    config: TrainingConfig,
    flatness: Flatness = Plain(),
    describe: Callable[[Any], Any] = describe_exactly,
) -> dict[str, Any]:
    """What posterior and configuration contribute to the weights that training visits.

    Fits for which this is equal share a training, if network, data, flatness, likelihood and seed are the same too.
    The collection of snapshots is left out for posteriors that have a trajectory, except for what early stopping
    uses: its start, and the number of snapshots of a training that collects them from its first step on. For a
    posterior that has none, with a default optimizer that cannot be written down as data, for an ensemble that is
    trained in worker processes, and for a flatness that uses the distribution of the posterior, the description is
    that of the whole fit.
    """
    trajectory, whole_fit = posterior.trajectory, {"posterior": describe(posterior), "config": describe(config)}
    if (
        trajectory is None
        or flatness.needs_weight_distribution
        or (config.distribution.members == "workers" and posterior.num_members > 1)
    ):
        return whole_fit
    try:
        optimizer = to_spec(config.optimizer or posterior.default_optimizer)
    except TypeError:  # a lambda
        if config.optimizer is None:  # of which a posterior may make a new one whenever it is asked
            return whole_fit
        optimizer = describe(config.optimizer)
    start, collection = config.collection.start_fraction, CollectionConfig()
    if config.stops_early:
        collection = CollectionConfig(start, config.collection.snapshots_per_epoch if start == 0 else None)
    config = replace(config, collection=collection)
    options = {name: optimizer if name == "optimizer" else describe(value) for name, value in vars(config).items()}
    update = {"update": trajectory.update, **dict(trajectory.hyperparameters)}
    return {"trajectory": update, "config": options}


def describe_branch(posterior: Posterior, config: TrainingConfig) -> str:
    """Name of a posterior within a training: its description, and after which steps its snapshots are collected."""
    return json.dumps([describe_exactly(posterior), to_spec(config.collection)["init_args"]], sort_keys=True)


def describe_name(value: Any) -> str:
    """Name of an object with the arguments that differ from their defaults, or the name of its class alone."""
    try:
        return short_name(value)
    except TypeError:  # an argument without an importable name
        return type(value).__name__


def describe_object(value: Any) -> Any:
    """Description of an object, with a checksum of its content if it is no dataclass; else the path of its class."""
    try:
        return to_spec(value, allow_instances=True)
    except TypeError:  # a lambda or an object without an importable name
        return f"{type(value).__module__}.{type(value).__qualname__}"
