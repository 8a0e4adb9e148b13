"""Replacement of the last layer of any network, to match the number of outputs."""

from typing import Any

from torch import nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def replace_head(model: nn.Module, num_outputs: int, *, has_positions: bool = False) -> nn.Module:
    """Replace the last linear layer by a new one if its number of outputs differs.

    The last layer is the last torch.nn.Linear in the order of registration, as for `Laplace`.

    Args:
        model: The network, changed in place.
        num_outputs: Required number of outputs.
        has_positions: Whether the outputs are those of positions, (batch, outputs, *positions). The last layer is
            then the last linear or convolutional one, without those below a name such as `aux_classifier`, or the
            convolution named `classifier` if there is one.

    Returns:
        The same network, or the new layer if the network is a single layer.

    Raises:
        ValueError: The network has no such layer, or it is a convolution that is transposed or has groups.

    Examples:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 1000))
        >>> replace_head(model, num_outputs=10)(torch.randn(5, 1, 8, 8)).shape
        torch.Size([5, 10])
        >>> model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 21, 1))
        >>> replace_head(model, num_outputs=2, has_positions=True)(torch.randn(5, 3, 8, 8)).shape
        torch.Size([5, 2, 8, 8])
    """
    name = find_head_name(model, has_positions=has_positions)
    last = None if name is None else model.get_submodule(name)
    if name is None or not (isinstance(last, nn.Linear) or (isinstance(last, CONVOLUTIONS) and last.groups == 1)):
        kind = "torch.nn.Linear or convolution without groups" if has_positions else "torch.nn.Linear"
        suffix = "" if last is None else f"; its last layer is {name}, a {last}"
        example = ", such as network.classifier = nn.Conv2d(256, num_classes, 1)" if has_positions else ""
        raise ValueError(
            f"{type(model).__name__} has no {kind} to replace by a new head{suffix}. Write a function that builds "
            f"it with the right number of outputs{example}, and name that as the model."
        )
    weight, has_bias = last.weight, last.bias is not None
    options: dict[str, Any] = {"bias": has_bias, "device": weight.device, "dtype": weight.dtype}
    head: nn.Module
    if isinstance(last, nn.Linear):
        if last.out_features == num_outputs:
            return model
        head = nn.Linear(last.in_features, num_outputs, **options)
    else:
        if last.out_channels == num_outputs:
            return model
        kept = ("in_channels", "kernel_size", "stride", "padding", "dilation", "padding_mode")
        options |= {option: getattr(last, option) for option in kept}
        head = type(last)(out_channels=num_outputs, **options)
    if not name:
        return head
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, head)
    return model


def count_head_outputs(model: nn.Module, *, has_positions: bool = False) -> int | None:
    """Number of outputs of the last layer, arguments as of `replace_head`; None if there is none."""
    name = find_head_name(model, has_positions=has_positions)
    layer = None if name is None else model.get_submodule(name)
    outputs = getattr(layer, "out_channels", getattr(layer, "out_features", None))
    return None if outputs is None else int(outputs)


def find_head_name(model: nn.Module, *, has_positions: bool = False) -> str | None:
    """Name of the last layer in the order of registration, arguments as of `replace_head`; None if there is none."""
    kinds = (nn.Linear, *CONVOLUTIONS, *TRANSPOSED) if has_positions else (nn.Linear,)
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, kinds)}
    names = [*layers]
    if has_positions:
        names = [name for name in names if not any(part.startswith("aux") for part in name.split("."))]
        # Heads of transformers register further convolutions after the classifier.
        named = [n for n in names if n.endswith("classifier") and isinstance(layers[n], CONVOLUTIONS)]
        names = named or names
    return names[-1] if names else None
