"""Buffers and training flags: restored after a pass, and re-estimation of normalisation statistics."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from flatbayes.core.weights import swap_values


@contextmanager
def preserve_buffers(model: nn.Module) -> Iterator[None]:
    """Restore all buffers and training flags at the end, bit for bit."""
    flags = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer)
        for module, _ in flags
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    saved = [buffer.detach().clone() for *_, buffer in buffers]
    try:
        yield
    finally:
        _restore_training_flags(flags)
        with torch.no_grad():
            for (module, name, buffer), value in zip(buffers, saved, strict=True):
                buffer.copy_(value)
                if getattr(module, name) is not buffer:  # replaced by another tensor, not edited in place
                    setattr(module, name, buffer)


@contextmanager
def preserve_mode(model: nn.Module) -> Iterator[None]:
    """Restore the `training` flag of every module at the end."""
    flags = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        _restore_training_flags(flags)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in eval mode; afterwards each module has the mode it had."""
    with preserve_mode(model):
        if any(module.training for module in model.modules()):
            model.eval()
        yield


def norm_layers(model: nn.Module) -> list[_NormBase]:
    """List the normalisation layers that have running statistics of the data."""
    return [m for m in model.modules() if isinstance(m, _NormBase) and m.running_mean is not None]


def reestimate_norm_statistics(model: nn.Module, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """Running statistics of the current weights, each the plain average over the batches.

    Only normalisation layers run in training mode, so dropout is off. The model is unchanged afterwards.

    Args:
        model: The network.
        batches: Inputs of the network.

    Returns:
        The re-estimated buffers by name, for `swap_buffers`.
    """
    norms = norm_layers(model)
    names = {id(module): name for name, module in model.named_modules()}
    momenta = [norm.momentum for norm in norms]
    try:
        with preserve_buffers(model), torch.no_grad():
            model.eval()
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # a cumulative average
                norm.train()
            for batch in batches:
                model(batch)
            return {
                f"{names[id(norm)]}.{name}".removeprefix("."): buffer.clone()
                for norm in norms
                for name, buffer in norm.named_buffers(recurse=False)
            }
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def swap_buffers(model: nn.Module, values: dict[str, Tensor]) -> AbstractContextManager[None]:
    """Inside, buffers of the model hold other values.

    Args:
        model: The network.
        values: Values by name of the buffer.
    """
    buffers = dict(model.named_buffers())
    return swap_values([buffers[name] for name in values], list(values.values()))


def _restore_training_flags(flags: Sequence[tuple[nn.Module, bool]]) -> None:
    for module, flag in flags:
        if module.training is not flag:  # setting an attribute of a module is slow
            module.training = flag
