"""Weights to start from."""

from torch import nn


def init_kaiming_(model: nn.Module) -> None:
    """Draw the weights of all convolutions anew: N(0, 2 / fan-out), after He et al. (ICCV 2015); no biases."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def init_truncated_normal_(model: nn.Module, std: float = 0.02) -> None:
    """Draw the weights of all linear layers and convolutions anew from a truncated normal; no biases.

    Args:
        model: The network.
        std: Standard deviation; the normal is cut off at -2 and 2, as transformers usually have it.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.trunc_normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
