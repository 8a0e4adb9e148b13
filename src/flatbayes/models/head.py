"""Replacement of the last linear layer of any network, to match the number of outputs."""

from torch import nn


def replace_head(model: nn.Module, num_outputs: int) -> nn.Module:
    """Replace the last linear layer by a new one if its number of outputs differs.

    The last layer is the last torch.nn.Linear in the order of registration, as for `Laplace`.

    Args:
        model: The network, changed in place.
        num_outputs: Required number of outputs.

    Returns:
        The same network, or the new layer if the network is a single linear layer.

    Raises:
        ValueError: The network has no linear layer.

    Examples:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 1000))
        >>> replace_head(model, num_outputs=10)(torch.randn(5, 1, 8, 8)).shape
        torch.Size([5, 10])
    """
    name = find_head_name(model)
    if name is None:
        raise ValueError(
            f"{type(model).__name__} has no torch.nn.Linear to replace by a new head. Write a function that builds "
            "it with the right number of outputs, and name that as the model."
        )
    last: nn.Linear = model.get_submodule(name)  # type: ignore[assignment]
    if last.out_features == num_outputs:
        return model
    weight = last.weight
    head = nn.Linear(last.in_features, num_outputs, last.bias is not None, device=weight.device, dtype=weight.dtype)
    if not name:
        return head
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, head)
    return model


def count_head_outputs(model: nn.Module) -> int | None:
    """Number of outputs of the last linear layer; None if there is none."""
    name = find_head_name(model)
    return None if name is None else int(model.get_submodule(name).out_features)  # type: ignore[arg-type]


def find_head_name(model: nn.Module) -> str | None:
    """Name of the last linear layer in the order of registration; None if there is none."""
    names = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    return names[-1] if names else None
