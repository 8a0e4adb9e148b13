"""Defaults that follow from the network: its optimizer, and the configuration of trained networks.

SGD at the learning rate of most posteriors hardly trains transformers, and destroys what a large network has learned.
The length of a training from scratch is too much for pretrained weights. Normalization layers tell both kinds of
networks from others: transformers have layer normalization and no batch normalization, and the scales of a new layer
are all equal.
"""

import re
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from flatbayes.core import OptimizerFactory
from flatbayes.core.parameter_selection import NORM_TYPES
from flatbayes.core.randomness import preserve_rng
from flatbayes.training.config import FINE_TUNING, TrainingConfig
from flatbayes.training.model_builder import build_without_data, is_model_class

TRANSFORMER_LEARNING_RATE, TRAINED_LEARNING_RATE, WEIGHT_DECAY = 3e-4, 1e-3, 0.01
"""Of AdamW for transformers, and for other networks with trained weights."""
LARGE_NETWORK = 1_000_000
"""Number of parameters from which on the defaults are those of large networks."""
ADAPTER_LEARNING_RATE, MAX_ADAPTER_FRACTION = 3e-3, 0.1
"""Learning rate where at most this fraction of the parameters is trained, as with adapters."""
LAYER_NORM_NAME, NORM_NAME = re.compile("(Layer|RMS)Norm(2d)?$"), re.compile(r"Norm(\dd)?$")
"""Names of classes: libraries have layers of their own beside those of torch."""


def choose_optimizer(
    default: OptimizerFactory, network: nn.Module, *, is_trained: bool = False
) -> OptimizerFactory | None:
    """AdamW for transformers and large trained networks; None where the default is to be used.

    A default that is not SGD with momentum is used; its weight decay is 0 where the posterior has the prior.
    """
    options = default.keywords if isinstance(default, partial) else {}
    is_sgd = isinstance(default, partial) and default.func is torch.optim.SGD and options.get("momentum")
    sizes = dict.fromkeys((True, False), 0)
    for param in network.parameters():
        sizes[param.requires_grad] += param.numel()
    size, is_transformer = sum(sizes.values()), has_layer_norm(network)
    if not is_sgd or not (is_transformer or (is_trained and size >= LARGE_NETWORK)):
        return None
    lr = TRANSFORMER_LEARNING_RATE if is_transformer else TRAINED_LEARNING_RATE
    if sizes[True] <= MAX_ADAPTER_FRACTION * size:
        lr = ADAPTER_LEARNING_RATE
    return partial(torch.optim.AdamW, lr=lr, weight_decay=WEIGHT_DECAY if options["weight_decay"] else 0.0)


def choose_config(model: Any, init: Any) -> TrainingConfig:
    """The configuration where none is given: `FINE_TUNING` for trained weights.

    A function that needs no arguments is called.
    """
    if init is not None:
        return FINE_TUNING
    if is_model_class(model):
        return TrainingConfig()
    with preserve_rng(None):
        network = build_without_data(model)
    return FINE_TUNING if network is not None and has_trained_weights(network) else TrainingConfig()


def has_layer_norm(network: nn.Module) -> bool:
    """Whether a network has layer or root mean square normalization, and no batch normalization."""
    layers = list(network.modules())
    has_some = any(
        isinstance(layer, nn.LayerNorm | nn.RMSNorm) or LAYER_NORM_NAME.search(type(layer).__name__)
        for layer in layers
    )
    return has_some and not any(isinstance(layer, _NormBase) for layer in layers)


def has_trained_weights(network: nn.Module) -> bool:
    """Whether the scales of a normalization layer are not all equal, as they are before training."""
    for layer in network.modules():
        is_norm = isinstance(layer, NORM_TYPES) or NORM_NAME.search(type(layer).__name__)
        scales = getattr(layer, "weight", None) if is_norm else None
        if isinstance(scales, torch.Tensor) and scales.numel() and not scales.is_meta:
            values = scales.detach().flatten()
            if (values != values[0]).any():
                return True
    return False
