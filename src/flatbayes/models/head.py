"""A network of anyone's with as many outputs as the data needs."""

from torch import nn


def replace_head(model: nn.Module, num_outputs: int) -> nn.Module:
    """The network itself, its last layer replaced by a new one if that has another number of outputs.

    The last layer is the last torch.nn.Linear in the order of registration, as it is for `Laplace`.

    Args:
        model: The network, changed in place.
        num_outputs: How many it should have.

    Raises:
        ValueError: It has no linear layer.
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
    like = last.weight
    head = nn.Linear(last.in_features, num_outputs, last.bias is not None, device=like.device, dtype=like.dtype)
    if not name:
        return head
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, head)
    return model


def find_head_name(model: nn.Module) -> str | None:
    """The name of the last linear layer in the order of registration; None if there is none."""
    names = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    return names[-1] if names else None
