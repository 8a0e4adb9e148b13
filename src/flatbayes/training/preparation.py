"""Preparation of the training runs of a fit: checks of its arguments, data, likelihood, and defaults."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from flatbayes.core.model_arguments import OUTPUT_ARGUMENTS
from flatbayes.core.network_interface import OutputSelector
from flatbayes.data import DataSplits, Standardize
from flatbayes.data.checks import DataWarning
from flatbayes.flatness import Flatness
from flatbayes.likelihoods import Gaussian, Likelihood
from flatbayes.likelihoods.custom import unwrap_custom
from flatbayes.posteriors import Posterior
from flatbayes.training.arguments import check_likelihood_name, resolve_likelihood
from flatbayes.training.compatibility import check_compatibility, check_initial_weights
from flatbayes.training.config import TrainingConfig
from flatbayes.training.data import InMemoryData
from flatbayes.training.input_scale import match_input_scale, match_target_scale
from flatbayes.training.label_shift import match_label_shift
from flatbayes.training.likelihood_inference import are_binary_labels, check_task, fit_family, infer_likelihood
from flatbayes.training.loader_checks import (
    check_batch_size,
    check_loader_inputs,
    warn_of_missing_classes,
    warn_of_weights,
)
from flatbayes.training.loader_data import LoaderData
from flatbayes.training.model_builder import (
    ModelFactory,
    describe_model,
    is_model_class,
    make_adapted_builder,
    make_model_builder,
    takes_num_outputs,
)
from flatbayes.training.network_defaults import choose_optimizer, has_trained_weights
from flatbayes.training.network_layout import match_input_layout
from flatbayes.training.optimizers import DefaultOptimizer
from flatbayes.training.radius import check_pilot, find_obstructive_option, make_usual_flatness
from flatbayes.training.run_factory import RunFactory, is_prior_given
from flatbayes.training.training_examples import check_ignore_index, match_position_labels, read_training_data
from flatbayes.training.warm_start import PretrainedWeights, WarmStart

UNTRAINED_HEAD = (
    "The last layer is a new one with random weights, and without training (epochs=0) it keeps them. Set epochs to 1 "
    "or more, or leave out new_head if the trained last layer is the one to be used."
)
NOTHING_TRAINED = (
    "epochs must be at least 1, got 0: without training there must be a trained network to start from, and the model "
    "is a class or function that builds a network with new weights whenever it is called. Give the trained network "
    "itself, a function that returns it, or its weights, init."
)


def prepare_runs(
    model: nn.Module | ModelFactory,
    data: DataSplits | Dataset[Any] | DataLoader[Any],
    posterior: Posterior,
    flatness: Flatness,
    config: TrainingConfig,
    *,
    init: PretrainedWeights | Sequence[PretrainedWeights] | None = None,
    new_head: bool = False,
    freeze: Sequence[str] = (),
    transform: Standardize | None = None,
    likelihood: Likelihood | str | None = None,
    num_data: int | None = None,
    output: OutputSelector | None = None,
    val: Any = None,
    seed: int = 0,
) -> tuple[RunFactory, dict[str, Any] | None]:
    """Check the arguments of `fit`, which are explained there, without using a device.

    Returns:
        The factory of the training runs, and the description of the model by `describe_model`.

    Raises:
        ValueError: The arguments do not go together.
    """
    check_likelihood_name(likelihood)
    usual, auto_flatness = check_method(model, posterior, flatness, config, has_init=init is not None or new_head)
    may_infer = likelihood is None and not new_head
    training_data, splits = read_training_data(
        data,
        val,
        config,
        flatness,
        likelihood,
        seed,
        transform=transform,
        num_data=num_data,
        are_classes=partial(are_binary_labels, model=model, output=output, may_infer=may_infer),
    )
    is_inferred = not isinstance(likelihood, Likelihood)
    if not isinstance(likelihood, Likelihood):
        family = fit_family(likelihood, training_data, splits)
        if family is None:
            inferred = infer_likelihood(training_data, config, model, output, new_head=new_head, splits=splits)
            likelihood = inferred if likelihood is None else resolve_likelihood(likelihood, inferred)
        else:
            likelihood = family
    if splits is not None:
        check_ignore_index(splits, likelihood)
        check_task(splits, likelihood)
    if isinstance(training_data, LoaderData):
        training_data = replace(training_data, likelihood=likelihood)
        training_data.check_batches()
        warn_of_weights(training_data.loader)
        if is_inferred:
            warn_of_missing_classes(training_data)
    elif isinstance(training_data, InMemoryData):
        training_data = match_position_labels(training_data, likelihood)
    num_outputs = dict.fromkeys(OUTPUT_ARGUMENTS, likelihood.num_outputs)
    model_arguments = training_data.model_arguments | num_outputs if training_data.model_arguments else {}
    if isinstance(training_data, InMemoryData):
        training_data = match_input_layout(training_data, model, model_arguments)
        model_arguments |= {"input_shape": training_data.input_shape}
    build_model = make_model_builder(model, model_arguments, lambda: training_data.example_batch[0])
    build_model = make_adapted_builder(build_model, lambda: training_data.example_batch[0], output)
    head_outputs = likelihood.num_outputs if new_head and not takes_num_outputs(model, model_arguments) else None
    warm_start = WarmStart.from_init(
        init,
        build_model,
        new_head=new_head,
        freeze=freeze,
        head_outputs=head_outputs,
        has_positions=getattr(unwrap_custom(likelihood), "class_dim", -1) == 1,
    )
    named = training_data if isinstance(training_data, LoaderData) else splits
    warm_start.check_class_names(named.class_names if named is not None else ())
    if config.epochs == 0 and warm_start.has_fresh_head:
        warnings.warn(UNTRAINED_HEAD, DataWarning, stacklevel=4)
    if isinstance(model, nn.Module):
        warm_start = replace(warm_start, network=model)
    warm_start.check_members(posterior)
    if isinstance(training_data, InMemoryData) and transform is None and warm_start.transform is not None:
        training_data = replace(training_data, transform_override=warm_start.transform)
    factory = RunFactory(
        posterior, usual, likelihood, training_data, config, build_model, seed, warm_start, auto_flatness
    )
    factory = match_label_shift(factory, is_inferred=is_inferred)
    if may_be_trained(factory, model, new_head=new_head):
        has_transform = transform is not None or warm_start.transform is not None
        factory = match_scales(factory, has_transform=has_transform, is_inferred=is_inferred)
    if isinstance(training_data, LoaderData):
        factory = check_loader_inputs(factory, training_data)
    elif isinstance(factory.training_data, InMemoryData) and factory.config.epochs:
        check_batch_size(factory, factory.training_data)
    return complete_factory(factory), describe_model(model, model_arguments)


def builds_trained(factory: RunFactory) -> bool:
    """Whether the networks of two members start from the same weights, as those of a function that loads them."""
    first, second = (factory.init_network(member).state_dict() for member in range(2))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def may_be_trained(factory: RunFactory, model: nn.Module | ModelFactory, *, new_head: bool) -> bool:
    """Whether training may start from trained weights.

    Raises:
        ValueError: There is no training, and the weights are new ones.
    """
    epochs = factory.config.epochs if not factory.is_automatic else None
    if factory.warm_start.weights or isinstance(model, nn.Module) or epochs is None:
        return True
    if not is_model_class(model) and builds_trained(factory):
        return True
    if epochs == 0 and not new_head:
        raise ValueError(NOTHING_TRAINED)
    return False


def match_scales(factory: RunFactory, *, has_transform: bool, is_inferred: bool) -> RunFactory:
    """The factory with inputs and targets as they are, where a network was trained without standardization.

    With `has_transform` the standardization of the inputs is given, by the user or with trained weights.
    """
    data, likelihood, network = factory.training_data, factory.likelihood, factory.init_network(0)
    if is_inferred and isinstance(likelihood, Gaussian):
        likelihood = match_target_scale(data, network, likelihood)
    if isinstance(data, InMemoryData) and not has_transform and not data.has_token_ids:
        data = match_input_scale(data, network, likelihood)
    elif isinstance(data, LoaderData) and likelihood is not factory.likelihood:
        data = data.with_changes(likelihood=likelihood)
    return replace(factory, training_data=data, likelihood=likelihood)


def check_method(
    model: nn.Module | ModelFactory,
    posterior: Posterior,
    flatness: Flatness,
    config: TrainingConfig,
    *,
    has_init: bool,
) -> tuple[Flatness, Flatness | None]:
    """Check what does not depend on data.

    Returns:
        The flatness with a number as its radius, and the flatness whose radius is to be chosen, or None.
    """
    check_initial_weights(model, posterior, has_init=has_init)
    usual = make_usual_flatness(flatness)
    auto_flatness = None if usual is flatness else flatness
    check_compatibility(posterior, usual, config)
    if auto_flatness is not None:
        check_pilot(auto_flatness, posterior, config)
    return usual, auto_flatness


def complete_factory(factory: RunFactory) -> RunFactory:
    """The factory with defaults that depend on network and data, in place of options that are not set.

    Raises:
        ValueError: The strength of the prior is to be chosen, and no pilot is possible.
    """
    has_default = factory.config.optimizer is None or isinstance(factory.config.optimizer, DefaultOptimizer)
    if factory.posterior.depends_on_model or factory.is_automatic or has_default:
        factory = adapt_to_network(factory, factory.init_network(0))
    return apply_prior_option(apply_default_radius(factory))


def adapt_to_network(factory: RunFactory, network: nn.Module) -> RunFactory:
    """The factory with defaults that depend on the network."""
    posterior, given = factory.posterior, factory.config.optimizer
    is_trained = bool(factory.warm_start.weights) or has_trained_weights(network)
    if factory.is_automatic:
        posterior = posterior.with_automatic_options(is_trained=is_trained)
    is_given = given is not None and not isinstance(given, DefaultOptimizer)
    default = None
    if not is_given:
        default = choose_optimizer(posterior.default_optimizer, network, is_trained=is_trained)
    if posterior.depends_on_model:
        posterior = posterior.adapt_to(network)
    if default is not None:
        posterior = posterior.without_weight_decay()
    if isinstance(given, DefaultOptimizer):
        config = replace(factory.config, optimizer=given.bind(default or given.default))
        factory, default = replace(factory, config=config), None
    return replace(factory, posterior=posterior, is_trained=is_trained, default_optimizer=default)


def apply_default_radius(factory: RunFactory) -> RunFactory:
    """The factory with a radius that a pilot will choose, if none is set and a pilot is possible."""
    flatness = factory.flatness
    is_default = flatness.radius_field is not None and getattr(flatness, flatness.radius_field) is None
    if factory.auto_flatness is not None or not is_default or not factory.has_default_training:
        return factory
    auto_flatness = flatness.with_radius("auto")
    try:
        check_pilot(auto_flatness, factory.posterior, factory.config)
    except ValueError:
        return factory
    return replace(factory, auto_flatness=auto_flatness)


def apply_prior_option(factory: RunFactory) -> RunFactory:
    """The factory with the prior that `optimization.prior_factor` says, or that is to be chosen by a pilot.

    Raises:
        ValueError: No pilot is possible, or there is no prior that a factor could multiply.
    """
    factor, obstacle = factory.config.optimization.prior_factor, find_obstructive_option(factory.config)
    if factor == "auto":
        if obstacle is not None:
            raise ValueError(
                "prior_factor 'auto' is chosen by a pilot, which trains several times, and that is not possible with "
                f"{obstacle}. Give a number, such as 1."
            )
        return replace(factory, auto_prior="asked")
    if factor is not None:
        scaled = factory.with_prior_factor(float(factor))
        if factor != 1 and factory.compute_weight_decay(num_data=1) == 0:
            name = type(factory.posterior).__name__
            raise ValueError(
                f"prior_factor={factor:g} multiplies a prior_precision or the weight decay of the optimizer, and "
                f"{name} has no such prior here. Leave prior_factor out, and set the prior by an option of {name}, "
                "or the weight decay."
            )
        return scaled
    is_default = factory.has_default_training and not is_prior_given(factory)
    return replace(factory, auto_prior="default" if is_default and obstacle is None else None)
