"""Buffers (running statistics and the like) and training flags: frozen around a pass, or estimated afresh."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from flatbayes.core.weights import swap_values


@contextmanager
def preserve_buffers(model: nn.Module) -> Iterator[None]:
    """Whatever happens to buffers and training flags inside is undone at the end."""
    flags = [(module, module.training) for module in model.modules()]
    places = [
        (module, name, buffer)
        for module, _ in flags
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    saved = [buffer.detach().clone() for *_, buffer in places]
    try:
        yield
    finally:
        _restore_training_flags(flags)
        with torch.no_grad():
            for (module, name, buffer), value in zip(places, saved, strict=True):
                buffer.copy_(value)
                if getattr(module, name) is not buffer:  # replaced, not edited
                    setattr(module, name, buffer)


@contextmanager
def preserve_mode(model: nn.Module) -> Iterator[None]:
    """Every module leaves with the `training` flag it came with."""
    flags = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        _restore_training_flags(flags)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in eval mode; outside, each module has the mode it had."""
    with preserve_mode(model):
        if any(module.training for module in model.modules()):
            model.eval()
        yield


def norm_layers(model: nn.Module) -> list[_NormBase]:
    """The normalisation layers that keep running statistics of the data."""
    return [m for m in model.modules() if isinstance(m, _NormBase) and m.running_mean is not None]


def reestimate_norm_statistics(model: nn.Module, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """Running statistics of the current weights, each the plain average over the batches.

    Only normalisation layers run in training mode, so dropout stays off. The model is left as it was.

    Args:
        model: The network.
        batches: Inputs as the network takes them.

    Returns:
        The re-estimated buffers by name, for `holding`.
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
    """Inside, the named buffers hold the given values."""
    buffers = dict(model.named_buffers())
    return swap_values([buffers[name] for name in values], list(values.values()))


def _restore_training_flags(flags: Sequence[tuple[nn.Module, bool]]) -> None:
    for module, flag in flags:
        if module.training is not flag:  # setting an attribute of a module is slow
            module.training = flag
