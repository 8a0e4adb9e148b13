"""Weights to start from."""

from torch import nn


def kaiming_(model: nn.Module) -> None:
    """Draw the weights of all convolutions anew: N(0, 2 / fan-out), after He et al. (ICCV 2015)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
