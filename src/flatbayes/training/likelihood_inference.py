"""Likelihood of the targets, of a loader where targets and outputs of the network leave no doubt."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from flatbayes.core.batch_targets import split_batch
from flatbayes.core.input_trees import (
    DENSE_ADVICE,
    IGNORE_INDEX,
    MULTI_LABEL_ADVICE,
    holds_position_labels,
    holds_several_labels,
    slice_examples,
)
from flatbayes.core.names import format_count
from flatbayes.core.network_interface import OutputSelector
from flatbayes.core.randomness import preserve_rng
from flatbayes.data import DataSplits
from flatbayes.likelihoods import (
    Bernoulli,
    Categorical,
    DenseCategorical,
    DistributionLikelihood,
    Gaussian,
    Likelihood,
)
from flatbayes.likelihoods.custom import unwrap_custom
from flatbayes.likelihoods.families import find_family
from flatbayes.likelihoods.labels import NEW_HEAD_ADVICE
from flatbayes.training.batches import preserve_loader
from flatbayes.training.config import TrainingConfig
from flatbayes.training.data import NUM_CHECK_EXAMPLES, InMemoryData, TrainingData
from flatbayes.training.initial_noise import start_at_residuals
from flatbayes.training.loader_data import LoaderData
from flatbayes.training.loader_pass import format_empty_loader
from flatbayes.training.model_builder import ModelFactory, takes_num_outputs
from flatbayes.training.network_layout import (
    ADVICE,
    find_output_shape,
    infer_dense_likelihood,
    match_input_layout,
    match_outputs,
    resize_classes,
)


def check_task(data: DataSplits, likelihood: Likelihood) -> None:
    """Check that targets of data splits are those of the likelihood, if this is one of several labels or classes."""
    likelihood = unwrap_custom(likelihood)
    if isinstance(likelihood, DistributionLikelihood):
        _check_numbers(data, likelihood)
    kinds: dict[type[Likelihood], str] = {
        Bernoulli: "several labels",
        Categorical: "one class",
        DenseCategorical: "a class at each position",
    }
    kind = next((text for cls, text in kinds.items() if isinstance(likelihood, cls)), "numbers")
    is_several = isinstance(likelihood, Bernoulli)
    is_wrong = is_several != data.is_multi_label or likelihood.has_positions != data.is_dense
    if is_several and data.is_multi_label:
        likelihood.prepare_targets(data.train.targets)
    elif is_wrong and isinstance(likelihood, tuple(kinds)):
        content = f"one of {data.num_classes} classes" if data.class_names else "numbers to predict"
        content = format_count(len(data.target_names), "label") if data.is_multi_label else content
        content = "classes of positions" if data.is_dense else content
        raise ValueError(
            f"The likelihood {likelihood!r} is for {kind} of each example, and the targets are {content}. Leave "
            "likelihood out, or give targets of this kind."
        )
    if isinstance(likelihood, Categorical) and likelihood.num_classes < data.num_classes:
        raise ValueError(
            f"The data have {data.num_classes} classes, and the likelihood has {likelihood.num_classes}: pass "
            f"likelihood=Categorical({data.num_classes}), and a network with {data.num_classes} outputs "
            "(new_head=True replaces the last layer)."
        )


def _check_numbers(data: DataSplits, likelihood: DistributionLikelihood) -> None:
    """Check that targets are numbers in the support of a distribution."""
    if data.class_names or data.is_multi_label:
        raise ValueError(
            f"The likelihood {likelihood!r} is for numbers, and the targets are classes or labels: set the option "
            "task of the data to regression."
        )
    for name in ("train", "val"):
        split = getattr(data, name)
        try:
            if len(split):
                likelihood.prepare_targets(split.targets)
        except ValueError as error:
            raise ValueError(f"Of the {name} examples, {error}") from error


def infer_likelihood(
    data: TrainingData,
    config: TrainingConfig,
    model: nn.Module | ModelFactory,
    output: OutputSelector | None = None,
    *,
    new_head: bool = False,
    splits: DataSplits | None = None,
) -> Likelihood:
    """Likelihood of the targets; the noise of a table starts at the residuals of a ridge regression.

    For two classes a network of one output, that does not depend on the number of classes, gives a single logit.
    `splits` are those that the batches of a loader were made of, which know all classes.

    Raises:
        ValueError: It is not clear what the targets of a loader are; the message says what to pass.
    """
    if isinstance(data, LoaderData):
        # Splits tell the likelihood, or else the outputs of the network do.
        if splits is not None and (not splits.class_names or (new_head and not splits.is_dense)):
            return infer_split_likelihood(splits, data.loader)
        return infer_loader_likelihood(data.loader, model, output, new_head=new_head)
    if isinstance(data, InMemoryData) and data.splits.is_dense:
        return infer_dense_likelihood(data, model, output, new_head=new_head)
    likelihood, starts_at_residuals = data.infer_likelihood(), config.optimization.initial_noise == "residuals"
    if isinstance(likelihood, Gaussian) and isinstance(data, InMemoryData) and starts_at_residuals:
        return start_at_residuals(likelihood, data.splits.train)
    if isinstance(likelihood, Categorical) and isinstance(data, InMemoryData) and not new_head:
        return replace(likelihood, single_logit=has_single_logit(data, model, output))
    return likelihood


def fit_family(name: object, data: TrainingData, splits: DataSplits | None) -> DistributionLikelihood | None:
    """The likelihood of a family with a name, in the location and scale of the training targets.

    Returns:
        None if `name` is no name of a family.

    Raises:
        ValueError: There are no targets, or some are no targets of the family.
    """
    family = find_family(name)
    if family is None:
        return None
    if isinstance(data, LoaderData):
        with preserve_loader(data.loader):
            targets = [split_batch(batch)[1] for batch in data.loader]
        if not targets:
            raise ValueError(format_empty_loader(data.loader))
        return DistributionLikelihood.fit(family, torch.cat(targets))
    assert splits is not None
    return DistributionLikelihood.fit(family, splits.train.targets)


def infer_split_likelihood(splits: DataSplits, loader: Iterable[Any]) -> Likelihood:
    """Likelihood of the targets of splits whose examples reach the network in batches.

    Targets are averaged in the order of the batches, as for a loader. No random state changes.
    """
    if splits.is_multi_label:
        return Bernoulli(len(splits.target_names))
    if splits.class_names:
        return Categorical(splits.num_classes)
    with preserve_loader(loader):
        return Gaussian.fit(torch.cat([split_batch(batch)[1] for batch in loader]))


def has_single_logit(data: InMemoryData, model: nn.Module | ModelFactory, output: OutputSelector | None) -> bool:
    """Whether there are two classes, and a network whose number of outputs is its own gives one for each example.

    The network is looked at for two classes only. No random state changes.
    """
    arguments = data.model_arguments
    if data.splits.num_classes != 2 or takes_num_outputs(model, arguments):
        return False
    try:
        with preserve_rng(None):
            data = match_input_layout(data, model, arguments)
            return count_outputs(model, data.example_batch[0], output, data.model_arguments) == 1
    except Exception:  # of the network, which the trial step explains
        return False


def are_binary_labels(
    splits: DataSplits, *, model: nn.Module | ModelFactory, output: OutputSelector | None, may_infer: bool
) -> bool:
    """Whether targets that were 0.0 and 1.0 are two classes: a network of one output cannot be a regression.

    `may_infer` is False where the likelihood is given, or the network gets another number of outputs.
    """
    return may_infer and has_single_logit(InMemoryData(splits), model, output)


def infer_loader_likelihood(
    loader: Iterable[Any],
    model: nn.Module | ModelFactory,
    output: OutputSelector | None = None,
    *,
    new_head: bool = False,
) -> Likelihood:
    """`Categorical` for integers, `Bernoulli` for rows of 0 and 1, `Gaussian` in their scale for fractions.

    `DenseCategorical` for integers of several axes, whose shape is that of the outputs without the classes. Labels 0
    and 1 of any type are classes for a network of one output, which is a single logit. With `new_head`, for a network
    that gets the number of outputs that the targets need, all batches are read, and the number of classes is the
    largest label plus 1.

    The first batch is read; for numbers all batches are, since their mean and scale are needed. No random state
    changes.

    Raises:
        ValueError: It is not clear what the targets are; the message says what to pass.
    """
    with preserve_loader(loader):
        batches = iter(loader)
        first = next(batches, None)
        if first is None:
            raise ValueError(format_empty_loader(loader))
        inputs, targets = split_batch(first)
        if new_head and holds_several_labels(targets):
            return Bernoulli(targets.shape[1])
        if new_head and (is_class_index(targets) or holds_fractions(targets)):
            targets = torch.cat([targets, *(split_batch(batch)[1] for batch in batches)])
            return Categorical(int(targets.max()) + 1) if is_class_index(targets) else Gaussian.fit(targets)
        shape = find_output_shape(model, slice_examples(inputs, slice(NUM_CHECK_EXAMPLES)), output)
        num_outputs = math.prod(shape)
        if targets.ndim > 1 and not targets.is_floating_point() and len(shape) == targets.ndim:
            likelihood = match_outputs(shape, targets.shape[1:])
            labels = [targets, *(split_batch(batch)[1] for batch in batches)] if new_head else []
            return resize_classes(likelihood, max(int(y.max()) for y in labels) + 1) if labels else likelihood
        if is_class_index(targets) and num_outputs > 1:
            return Categorical(num_outputs)
        if holds_several_labels(targets) and num_outputs == targets.shape[1]:
            return Bernoulli(num_outputs)
        if holds_binary_labels(targets) and num_outputs == 1 and not new_head:
            return Categorical(2, single_logit=True)
        if holds_fractions(targets) and num_outputs == 2 * targets[0].numel():
            return Gaussian.fit(torch.cat([targets, *(split_batch(batch)[1] for batch in batches)]))
    advice = ADVICE
    if is_class_index(targets) or holds_fractions(targets):
        advice += f" Or change its last layer ({NEW_HEAD_ADVICE})."
    elif holds_position_labels(targets):
        advice = DENSE_ADVICE.strip()
    elif targets.ndim == 2 and targets.shape[1] > 1:
        advice += f" Rows with a single 1 for the class are class indices after argmax(1).{MULTI_LABEL_ADVICE}"
    raise ValueError(
        f"The likelihood is not clear from targets of {targets.dtype} and shape {tuple(targets.shape)} and a network "
        f"with {format_count(num_outputs, 'output')} for each example. {advice}"
    )


def count_outputs(
    model: nn.Module | ModelFactory,
    inputs: Any,
    output: OutputSelector | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> int:
    """Number of outputs of a network for each example; arguments and errors as of `find_output_shape`."""
    return math.prod(find_output_shape(model, inputs, output, arguments))


def is_class_index(targets: Tensor) -> bool:
    """Whether these are whole numbers of an integer type, one for each example."""
    is_integer = not (targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool)
    return is_integer and targets.numel() == len(targets)


def holds_binary_labels(targets: Tensor) -> bool:
    """Whether these are 0 and 1 of any real type, one for each example; integers may also be `IGNORE_INDEX`."""
    if targets.is_complex() or targets.numel() != len(targets):
        return False
    is_label = (targets == 0) | (targets == 1)
    return bool(is_label.all() if targets.is_floating_point() else (is_label | (targets == IGNORE_INDEX)).all())


def holds_fractions(targets: Tensor) -> bool:
    """Whether these are floating-point numbers, some of them no whole numbers, one or several for each example."""
    return targets.is_floating_point() and targets.ndim <= 2 and bool((targets != targets.round()).any())
