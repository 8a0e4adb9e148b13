"""Traversal of a network in one pass: its modules, and its parameters by name.

A training step needs both in every pass. The generators of `torch.nn.Module` are nested as deeply as the network, which
takes three times as long. Nothing is remembered between calls, so a module that is replaced between two steps, or a
parameter that is frozen, counts from the next one on.
"""

from collections.abc import Iterable

from torch import nn


def list_modules(model: nn.Module) -> list[nn.Module]:
    """The result of `model.modules()`, each module once and in the same order."""
    return [module for _, module in _named_modules(model)]


def named_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The result of `model.named_parameters()`: a tied tensor counts once, under its first name."""
    if type(model).named_parameters is not nn.Module.named_parameters:
        return dict(model.named_parameters())  # the class decides which there are
    params, ids = dict[str, nn.Parameter](), set[int]()
    for prefix, module in _named_modules(model):
        for name, param in module._parameters.items():
            if param is not None and id(param) not in ids:
                ids.add(id(param))
                params[prefix + name] = param
    return params


def list_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The result of `model.parameters()`: a tied tensor counts once."""
    if type(model).parameters is not nn.Module.parameters:
        return list(model.parameters())
    return list(named_parameters(model).values())


def trainable_by_name(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that require gradients, by name; a tied tensor counts once, under its first name."""
    return {name: param for name, param in named_parameters(model).items() if param.requires_grad}


def _named_modules(model: nn.Module) -> Iterable[tuple[str, nn.Module]]:
    """Every module once, before those within it, with the prefix of the names of its parameters."""
    named, seen, stack = list[tuple[str, nn.Module]](), set[int](), [("", model)]
    while stack:
        prefix, module = stack.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        named.append((prefix, module))
        children = [(f"{prefix}{name}.", child) for name, child in module._modules.items() if child is not None]
        stack.extend(reversed(children))
    return named
