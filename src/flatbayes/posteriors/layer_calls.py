"""Inputs and outputs of each call of a layer, from which gradients in its weights are computed without autograd.

The matrix [weight, bias] of a linear or convolutional layer multiplies a vector a at each position: the input of a
linear layer, or a patch of the image. The gradient in the matrix is the sum over positions of g aᵀ, with g the
gradient in the output at that position.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

ConvolutionLayer = nn.Conv1d | nn.Conv2d | nn.Conv3d
MatrixLayer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
"""Layers that multiply vectors by their weights."""


@dataclass(frozen=True)
class LayerCall:
    """Inputs of one call of a layer, and its outputs, in which derivatives are taken."""

    inputs: Tensor
    outputs: Tensor


@contextmanager
def record_layer_calls(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, list[LayerCall]]]:
    """Record each call of the layers under the layer's name, with hooks that are removed at the end."""
    calls: dict[str, list[LayerCall]] = {name: [] for name in layers}

    def make_hook(name: str) -> Callable[..., Tensor]:
        def record_call(
            layer: nn.Module, arguments: tuple[Tensor, ...], options: dict[str, Any], outputs: Tensor
        ) -> Tensor:
            inputs = arguments[0] if arguments else next(iter(options.values()))
            calls[name].append(LayerCall(inputs.detach().clone(), outputs))
            return outputs.clone()  # an in-place activation must not change the recorded tensor or its graph

        return record_call

    handles = [layer.register_forward_hook(make_hook(name), with_kwargs=True) for name, layer in layers.items()]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def is_plain_layer(layer: nn.Module, types: Collection[type[nn.Module]]) -> bool:
    """Return whether a layer is of one of the types exactly, with no other parameters than weight and bias.

    A subclass can use its weights in any way. So can a parametrization, which renames the parameters.
    """
    return type(layer) in types and {key for key, _ in layer.named_parameters(recurse=False)} <= {"weight", "bias"}


def get_layer_parameters(layer: nn.Module) -> dict[str, nn.Parameter]:
    """Return the layer's own trainable parameters by name: weight, then bias."""
    return {key: param for key, param in layer.named_parameters(recurse=False) if param.requires_grad}


def name_layer_parameters(model: nn.Module, layers: Iterable[nn.Module]) -> dict[str, nn.Parameter]:
    """Return the trainable parameters of several layers, by their first names in the network."""
    names = {id(param): name for name, param in model.named_parameters()}
    return {names[id(param)]: param for layer in layers for param in get_layer_parameters(layer).values()}


@torch.no_grad()
def unfold_inputs(layer: MatrixLayer, inputs: Tensor) -> Float[Tensor, "positions inputs"]:
    """Return the vectors by which the layer's trainable matrix [weight, bias] is multiplied, one row per position.

    A convolution has groups=1.
    """
    params = get_layer_parameters(layer)
    if not isinstance(layer, ConvolutionLayer):
        rows = inputs.reshape(-1, inputs.shape[-1])
        blocks = [rows] if "weight" in params else []
        return torch.cat([*blocks, rows.new_ones(len(rows), 1)] if "bias" in params else blocks, 1)
    patches = view_patches(layer, inputs).movedim(0, layer.weight[0].ndim)
    # The positions are along the last axis, in the order of memory, which copies whole rows of the image.
    num_inputs, num_positions = layer.weight[0].numel(), patches[(0,) * layer.weight[0].ndim].numel()
    num_rows = num_inputs * ("weight" in params) + ("bias" in params)
    columns = inputs.new_empty(num_rows, num_positions)
    if "weight" in params:
        columns[:num_inputs].view(patches.shape).copy_(patches)
    if "bias" in params:
        columns[-1] = 1
    return columns.T


def unfold_outputs(layer: nn.Module, outputs: Tensor) -> Float[Tensor, "positions outputs"]:
    """Return outputs of the layer, or gradients in them, one row per position."""
    if isinstance(layer, ConvolutionLayer):
        return outputs.transpose(0, 1).flatten(1).T
    return outputs.reshape(-1, outputs.shape[-1])


def view_patches(layer: ConvolutionLayer, inputs: Tensor) -> Tensor:
    """Return the patches of a convolution, a view of the padded images of shape (batch, channels, *size).

    Returns:
        Shape (batch, channels, *kernel_size, *output_size).
    """
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padding = layer._reversed_padding_repeated_twice
    patches = F.pad(inputs, padding, mode) if any(padding) else inputs
    for axis, (size, stride, dilation) in enumerate(
        zip(layer.kernel_size, layer.stride, layer.dilation, strict=True), start=2
    ):
        patches = patches.unfold(axis, (size - 1) * dilation + 1, stride)[..., ::dilation]
    num_axes = len(layer.kernel_size)
    return patches.permute(0, 1, *range(2 + num_axes, 2 + 2 * num_axes), *range(2, 2 + num_axes))
