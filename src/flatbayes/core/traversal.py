"""Traversal of a network in one pass: its modules, and its parameters by name.

A training step needs both in every pass. The generators of `torch.nn.Module` are nested as deeply as the network, so
they take two to three times as long. Nothing is stored between calls, which would save little more: the check that no
module or parameter was replaced is itself a traversal.
"""

from torch import nn


def list_modules(model: nn.Module) -> list[nn.Module]:
    """The result of `model.modules()`, each module once and in the same order."""
    modules, seen, stack = list[nn.Module](), set[nn.Module](), [model]
    while stack:
        module = stack.pop()
        if module not in seen:
            seen.add(module)
            modules.append(module)
            if module._modules:
                stack += [child for child in reversed(module._modules.values()) if child is not None]
    return modules


def named_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The result of `model.named_parameters()`: a tied tensor counts once, under its first name.

    Raises:
        TypeError: The model is no `nn.Module`.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"The model must be an nn.Module, got a {type(model).__name__}. In a loop of your own pass the network "
            "itself, not its parameters: flatness(closure, model)."
        )
    if type(model).named_parameters is not nn.Module.named_parameters:
        return dict(model.named_parameters())  # the class decides which there are
    params, ids = dict[str, nn.Parameter](), set[int]()
    seen, stack = set[nn.Module](), [("", model)]
    while stack:
        prefix, module = stack.pop()
        if module not in seen:
            seen.add(module)
            if module._parameters:
                for name, param in module._parameters.items():
                    if param is not None and id(param) not in ids:
                        ids.add(id(param))
                        params[prefix + name] = param
            if module._modules:
                children = reversed(module._modules.items())
                stack += [(f"{prefix}{name}.", child) for name, child in children if child is not None]
    return params


def list_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The result of `model.parameters()`: a tied tensor counts once."""
    if type(model).parameters is not nn.Module.parameters:
        return list(model.parameters())
    return list(named_parameters(model).values())


def trainable_by_name(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that require gradients, by name; a tied tensor counts once, under its first name."""
    return {name: param for name, param in named_parameters(model).items() if param.requires_grad}
