"""Inputs and targets of trained networks that are not standardized.

A network that was trained elsewhere may take inputs, and predict targets, as they are in the data. Training examples
tell: the loss is lower on the inputs and targets that it was trained on.
"""

import math
import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from flatbayes.core.buffers import eval_mode
from flatbayes.core.networks import cast_inputs
from flatbayes.core.randomness import preserve_rng
from flatbayes.data import Standardize
from flatbayes.data.checks import DataWarning
from flatbayes.likelihoods import Bernoulli, Categorical, DenseCategorical, Gaussian, Likelihood
from flatbayes.training.data import InMemoryData, TrainingData
from flatbayes.training.loader_data import LoaderData

NUM_EXAMPLES, MIN_EXAMPLES, MIN_GAIN = 256, 8, 0.1
"""Most and fewest examples that are predicted; and the fraction by which the loss of a trained network is below that
of a constant."""
MAX_UNEXPLAINED = 0.5
"""Fraction of the variance of targets that a network trained on targets in their own unit leaves unexplained."""


def match_input_scale(data: InMemoryData, network: nn.Module, likelihood: Likelihood) -> InMemoryData:
    """The data without a standardization of the inputs if the network was trained without it.

    That is so if it predicts training examples better than a constant does, and better than with standardized inputs:
    by the negative log likelihood for classes and labels, by the squared error for numbers.

    Returns:
        The data, with the two losses for classes or labels if inputs are used as they are.
    """
    if not isinstance(likelihood, Bernoulli | Categorical | DenseCategorical | Gaussian):
        return data
    if not isinstance(data.splits.train.inputs, Tensor):
        return data
    rows = select_rows(data)
    targets = data.splits.train.targets[rows]
    inputs = data.splits.train.inputs[rows]
    given, standardized = (predict_examples(network, scale(inputs)) for scale in (as_given(data), data.standardize))
    if given is None or standardized is None:
        return data
    try:
        if isinstance(likelihood, Gaussian):
            losses = [measure_unexplained(likelihood, outputs, targets) for outputs in (given, standardized)]
            constant_loss = 1.0
        else:
            losses = [float(likelihood.loss(outputs, targets)) for outputs in (given, standardized)]
            constant_loss = compute_constant_loss(likelihood, targets)
    except Exception:  # of outputs of another shape, which the trial step explains
        return data
    if not (losses[0] <= (1 - MIN_GAIN) * constant_loss and losses[0] < losses[1]):
        return data
    scale_nlls = None if isinstance(likelihood, Gaussian) else (losses[0], losses[1])
    return replace(data, transform_override=as_given(data), scale_nlls=scale_nlls)


def compute_constant_loss(likelihood: Bernoulli | Categorical | DenseCategorical, targets: Tensor) -> float:
    """Loss of the frequencies of the classes or labels: their entropy, summed over the known labels of an example.

    Targets are class indices, [n] or [n, *positions], `ignore_index` where there is none; or labels, [n, labels].
    """
    if isinstance(likelihood, Bernoulli):
        values, is_known = likelihood.split_targets(targets)
        counts = is_known.sum(0)
        shares = values.sum(0).double() / counts.clamp_min(1)
        entropies = -torch.xlogy(shares, shares) - torch.xlogy(1 - shares, 1 - shares)
        return float((counts * entropies).sum() / is_known.any(1).sum().clamp_min(1))
    labels = targets[(targets >= 0) & (targets != likelihood.ignore_index)]
    shares = torch.bincount(labels).double() / max(1, len(labels))
    return float(-torch.xlogy(shares, shares).sum())


def match_target_scale(data: TrainingData, network: nn.Module, likelihood: Gaussian) -> Gaussian:
    """The likelihood of targets in their own unit if the network was trained to predict them so.

    That is so if its first outputs explain the training targets as they are, for inputs as they are or standardized,
    and explain them better than as standardized targets. Where its raw scales are all 0, as those of
    `ConstantScale`, they are not trained yet, and 0 is the noise of its residuals.

    Returns:
        The likelihood, with a warning if it is another one.
    """
    batches = list_example_batches(data)
    floor = likelihood.floor * min(likelihood.scale)
    own_unit = Gaussian(likelihood.num_targets, floor=floor, noise_factor=likelihood.noise_factor)
    unexplained = dict.fromkeys((own_unit, likelihood), math.inf)
    initial_std: tuple[float, ...] = ()
    for inputs, targets in batches:
        outputs = predict_examples(network, inputs)
        if outputs is None or outputs.shape != (len(targets), likelihood.num_outputs) or len(targets) < MIN_EXAMPLES:
            return likelihood
        for candidate in unexplained:
            loss = measure_unexplained(candidate, outputs, targets)
            if candidate == own_unit and loss < unexplained[candidate]:
                initial_std = measure_initial_std(own_unit, outputs, targets)
            unexplained[candidate] = min(unexplained[candidate], loss)
    if not (unexplained[own_unit] <= MAX_UNEXPLAINED and unexplained[own_unit] < unexplained[likelihood]):
        return likelihood
    warnings.warn(
        f"The network predicts the targets in their own unit: its first outputs explain "
        f"{1 - unexplained[own_unit]:.0%} of their variance. So targets are not standardized: the likelihood is "
        f"Gaussian({likelihood.num_targets}), whose last outputs are raw scales of the noise in this unit. Give "
        "another likelihood if that is wrong; learning rates then depend on the unit.",
        DataWarning,
        stacklevel=6,
    )
    return replace(own_unit, initial_std=initial_std)


def measure_initial_std(likelihood: Gaussian, outputs: Tensor, targets: Tensor) -> tuple[float, ...]:
    """Standard deviation of the residuals of each target, where all raw scales are 0; otherwise ().

    Outputs are means and raw scales, in the unit of the targets.
    """
    mean, raw = outputs.double().chunk(2, 1)
    if bool(raw.any()):
        return ()
    stds = (targets.reshape(mean.shape) - mean).square().mean(0).sqrt()
    return tuple(stds.clamp_min(2 * likelihood.floor).tolist())


def list_example_batches(data: TrainingData) -> list[tuple[Any, Tensor]]:
    """Examples that a network may have been trained on: with inputs as given and standardized, or of a loader."""
    if isinstance(data, LoaderData):
        return [data.loader_pass.example_batch]
    if not isinstance(data, InMemoryData) or not isinstance(data.splits.train.inputs, Tensor):
        return []
    rows = select_rows(data)
    inputs, targets = data.splits.train.inputs[rows], data.splits.train.targets[rows]
    transforms = [data.standardize] if data.transform_override is not None else [as_given(data), data.standardize]
    return [(transform(inputs), targets) for transform in transforms]


def measure_unexplained(likelihood: Gaussian, outputs: Tensor, targets: Tensor) -> float:
    """Squared error of the predicted means, divided by that of the mean target; the mean over the targets.

    Outputs are means, then raw scales, [n, 2 targets]; targets, [n] or [n, targets], are in their own unit.
    """
    num_targets = likelihood.num_targets
    rows = targets.reshape(len(targets), num_targets).double()
    location, scale = (torch.tensor(values).double() for values in (likelihood.location, likelihood.scale))
    means = location + scale * outputs[:, :num_targets].double().to(rows.device)
    variance = (rows - rows.mean(0)).square().mean(0)
    return float(((rows - means).square().mean(0) / variance.clamp_min(1e-300)).mean())


def as_given(data: InMemoryData) -> Standardize:
    """The transform that leaves inputs as they are."""
    mean, std = data.standardize.mean, data.standardize.std
    return Standardize(mean=torch.zeros_like(mean), std=torch.ones_like(std))


def select_rows(data: InMemoryData) -> Tensor:
    """Evenly spaced training examples."""
    count = len(data.splits.train)
    return torch.linspace(0, count - 1, min(count, NUM_EXAMPLES, data.eval_batch_size)).long()


@torch.no_grad()
def predict_examples(network: nn.Module, inputs: Any) -> Tensor | None:
    """Outputs for some examples; None if the network cannot take them, which the trial step explains."""
    try:
        with eval_mode(network), preserve_rng(network):
            outputs = network(cast_inputs(network, inputs))
    except Exception:
        return None
    return outputs if isinstance(outputs, Tensor) else None
