"""Labels that are the input tokens, as those of causal language models, against the positions that a loss compares.

The losses of transformers compare the outputs of a causal language model at a position with the label of the next
one. A loss that compares equal positions would train such a network to repeat each token, with an NLL near 0.
"""

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from flatbayes.core.buffers import eval_mode
from flatbayes.core.input_trees import list_tensors, map_tensors, slice_examples
from flatbayes.core.networks import cast_inputs, find_device
from flatbayes.core.randomness import preserve_rng
from flatbayes.data.checks import DataWarning
from flatbayes.likelihoods import DenseCategorical, Likelihood
from flatbayes.likelihoods.custom import unwrap_custom
from flatbayes.training.loader_data import LoaderData
from flatbayes.training.run_factory import RunFactory

REPEATS_TOKENS = (
    "The labels are the input tokens themselves, and the likelihood compares the outputs at a position with the "
    "label of the same position, so that the network would learn to repeat each token. "
)
USE_SHIFT = (
    "The outputs of this network depend on earlier tokens only: for the prediction of the next token pass "
    "likelihood=DenseCategorical({num_classes}, class_dim={class_dim}, shift_labels=True)."
)
IS_SHIFTED = (
    "shift_labels=True compares the outputs at a position with the label of the next one, and these labels are "
    "shifted already: each is the token that follows in {name}. Pass shift_labels=False."
)
MAX_CHANGE = 1e-6
"""Largest relative change of outputs that do not depend on a token: that of rounding."""


def match_label_shift(factory: RunFactory, *, is_inferred: bool) -> RunFactory:
    """The factory with `shift_labels` where a causal network has its input tokens as labels.

    Data of another likelihood than `DenseCategorical` leave it unchanged.

    Raises:
        ValueError: The likelihood compares the outputs with the labels of the wrong positions.
    """
    inputs, targets = factory.training_data.example_batch
    likelihood, data = factory.likelihood, factory.training_data
    shifts = check_label_shift(likelihood, inputs, targets, lambda: factory.init_network(0), may_change=is_inferred)
    if not shifts or not isinstance(likelihood, DenseCategorical):
        return factory
    likelihood = replace(likelihood, shift_labels=True)
    data = data.with_changes(likelihood=likelihood) if isinstance(data, LoaderData) else data
    return replace(factory, likelihood=likelihood, training_data=data)


def check_label_shift(
    likelihood: Likelihood,
    inputs: Any,
    targets: Tensor,
    make_network: Callable[[], nn.Module],
    *,
    may_change: bool = False,
) -> bool:
    """Check that a likelihood of positions compares the outputs of a language model with the right labels.

    Returns:
        Whether it must be changed to `shift_labels=True`.

    Raises:
        ValueError: It compares them with others, and may not be changed.

    Warns:
        DataWarning: The labels are the inputs of a network that is not causal.
    """
    inner = unwrap_custom(likelihood)
    if not isinstance(inner, DenseCategorical) or targets.ndim != 2:
        return False
    is_labelled = inner.find_targets(targets) & (torch.arange(targets.shape[1], device=targets.device) > 0)
    tokens = {
        name: tensor
        for name, tensor in list_tensors(inputs).items()
        if tensor.shape == targets.shape and not tensor.is_floating_point()
    }
    shifts = {
        name: (are_labels(ids, targets, is_labelled), are_preceding_tokens(ids, targets, is_labelled))
        for name, ids in tokens.items()
    }
    repeated, preceding = ([name for name, pair in shifts.items() if pair == (k, not k)] for k in (True, False))
    if repeated and not preceding and not inner.shift_labels:
        if not is_causal(make_network(), inputs, repeated[0], is_labelled, inner):
            advice = "Mask the tokens that are to be predicted, or give other labels."
            warnings.warn(REPEATS_TOKENS + advice, DataWarning, stacklevel=5)
            return False
        if may_change:
            return True
        advice = USE_SHIFT.format(num_classes=inner.num_classes, class_dim=inner.class_dim)
        raise ValueError(REPEATS_TOKENS + advice)
    if preceding and inner.shift_labels:
        raise ValueError(IS_SHIFTED.format(name=preceding[0]))
    return False


def are_labels(tokens: Tensor, labels: Tensor, is_labelled: Tensor) -> bool:
    """Whether all labels are the tokens at their positions."""
    return bool((tokens == labels)[is_labelled].all()) and bool(is_labelled.any())


def are_preceding_tokens(tokens: Tensor, labels: Tensor, is_labelled: Tensor) -> bool:
    """Whether all labels but the last one of a row are the tokens at the next position."""
    is_known = is_labelled[:, :-1]
    return bool((tokens[:, 1:] == labels[:, :-1])[is_known].all()) and bool(is_known.any())


@torch.no_grad()
def is_causal(network: nn.Module, inputs: Any, name: str, is_labelled: Tensor, likelihood: DenseCategorical) -> bool:
    """Whether outputs stay the same if a later token is another one.

    The last labelled position of each row is changed, in the tensor of `list_tensors` with this name.
    """
    ids = list_tensors(inputs)[name]
    row = int(is_labelled.sum(1).argmax())
    position = int(is_labelled[row].nonzero()[-1])
    others = ids[ids != ids[row, position]]
    if not len(others):
        return False
    changed = ids.clone()
    changed[row, position] = others[0]
    device = find_device(network)

    def compute_outputs(tokens: Tensor) -> Tensor:
        batch = map_tensors(lambda tensor: tokens if tensor is ids else tensor, inputs)
        batch = map_tensors(lambda tensor: tensor.to(device), slice_examples(batch, slice(row, row + 1)))
        return likelihood.to_logits(network(cast_inputs(network, batch)))[0]

    with preserve_rng(network), eval_mode(network):
        before, after = compute_outputs(ids), compute_outputs(changed)
    change = (before - after).abs().amax(-1)
    return bool(change[:position].max() <= MAX_CHANGE * before.abs().max()) and bool(change[position] > 0)
