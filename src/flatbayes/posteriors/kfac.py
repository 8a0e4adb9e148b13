"""Kronecker-factored approximate curvature (KFAC; Martens & Grosse, ICML 2015; convolutions: Grosse & Martens, 2016).

The GGN block of a layer is a sum, over examples and the positions at which its weights are used, of Kronecker
products of g gᵀ with a aᵀ. Here a is the input of the weights (for a convolution a patch of the image; with an
appended 1 for the bias) and g is a vector Jᵀ s of `ggn` at the layer's output. KFAC replaces the sum of products by
the product of the sums, divided by the number of positions, and neglects the terms between two layers or two
positions. The block is exact where a, or the sum of g gᵀ, is the same for all examples; the latter holds in linear
networks with a squared loss.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeGuard

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from flatbayes.core import LossFn
from flatbayes.core.input_trees import ModelInputs
from flatbayes.posteriors.ggn import factorize_loss_hessian

ConvolutionLayer = nn.Conv1d | nn.Conv2d | nn.Conv3d
KfacLayer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
"""Layer types with Kronecker factors."""


@dataclass
class KroneckerFactors:
    """The two Kronecker factors of one layer, summed over all batches so far.

    Attributes:
        input_factor: Sum of a aᵀ.
        output_factor: Sum of g gᵀ.
        num_positions: Number of vectors a in the sum.
    """

    input_factor: Float[Tensor, "inputs inputs"]
    output_factor: Float[Tensor, "outputs outputs"]
    num_positions: int = 0

    def add(self, inputs: Float[Tensor, "positions inputs"], gradients: Float[Tensor, "vectors outputs"]) -> None:
        """Add the vectors a (`inputs`) and g (`gradients`) of a batch, one per row."""
        inputs, gradients = inputs.to(self.input_factor.dtype), gradients.to(self.output_factor.dtype)
        self.input_factor.addmm_(inputs.T, inputs)
        self.output_factor.addmm_(gradients.T, gradients)
        self.num_positions += len(inputs)


@dataclass(frozen=True)
class LayerCall:
    """Inputs of one call of a layer, and its outputs, in which derivatives are taken."""

    inputs: Tensor
    outputs: Tensor


def find_kfac_layers(model: nn.Module) -> dict[str, KfacLayer]:
    """Return the linear and convolutional layers with trainable weights, by name.

    Other layers are left out if their trainable parameters are vectors (normalization, a noise scale).

    Raises:
        ValueError: Another layer has trainable weights, two layers share weights, or there is no such layer.
    """
    layers: dict[str, KfacLayer] = {}
    owners: dict[int, str] = {}
    for name, layer in model.named_modules():
        label = _format_layer(name, layer)
        trainable = get_layer_parameters(layer)
        if not _is_supported(layer):
            if any(param.ndim > 1 for param in trainable.values()):
                raise ValueError(
                    f"{label} has trainable weights ({', '.join(trainable)}), and KFAC supports Linear, Conv1d, "
                    "Conv2d and Conv3d with groups=1 only. Use structure='diag' or 'last_layer', or set "
                    "requires_grad to False on those weights."
                )
            continue
        for key, param in trainable.items():
            owner = owners.setdefault(id(param), label)
            if owner != label:
                raise ValueError(
                    f"{label} shares its {key} with {owner}, and KFAC needs separate weights. Use structure='diag'."
                )
        if trainable:
            layers[name] = layer
    if not layers:
        raise ValueError(
            f"{type(model).__name__} has no trainable linear or convolutional layer, which KFAC needs. Use "
            "structure='diag'."
        )
    return layers


def get_layer_parameters(layer: nn.Module) -> dict[str, nn.Parameter]:
    """Return the layer's own trainable parameters by name: weight, then bias."""
    return {key: param for key, param in layer.named_parameters(recurse=False) if param.requires_grad}


def get_matrix_shape(layer: KfacLayer) -> tuple[int, int]:
    """Return (outputs, inputs) of the trainable matrix [weight, bias], with flattened kernels."""
    params = list(get_layer_parameters(layer).values())
    return len(params[0]), sum(param[0].numel() for param in params)


def split_columns(matrix: Float[Tensor, "outputs inputs"], layer: KfacLayer) -> list[Tensor]:
    """Split the matrix [weight, bias] into tensors of the shapes of the layer's trainable parameters."""
    params = list(get_layer_parameters(layer).values())
    pieces = matrix.split([param[0].numel() for param in params], dim=1)
    return [piece.reshape(param.shape) for piece, param in zip(pieces, params, strict=True)]


def add_factors(
    factors: Mapping[str, KroneckerFactors],
    layers: Mapping[str, KfacLayer],
    model: nn.Module,
    inputs: ModelInputs,
    targets: Tensor,
    loss_fn: LossFn,
) -> None:
    """Add a batch to the factors of every layer, with all columns s and no sampling, in place.

    Args:
        factors: Factors by layer name.
        layers: The result of `find_kfac_layers`.
        model: The network in eval mode.
        inputs: Inputs of the batch.
        targets: Targets of the batch.
        loss_fn: Mean loss of a batch.

    Raises:
        ValueError: A layer was not called, so its weights are used in another way.
    """
    with torch.enable_grad(), record_layer_calls(layers) as calls:
        outputs: Tensor = model(inputs)
    for name, layer in layers.items():
        if not calls[name]:
            raise ValueError(
                f"{_format_layer(name, layer)} has trainable weights and was not called, so KFAC cannot see how they "
                "are used. Use structure='diag', or set requires_grad to False on them."
            )
    layer_outputs = [call.outputs for name in layers for call in calls[name]]
    gradients_by_column = [
        torch.autograd.grad(
            outputs, layer_outputs, column.view_as(outputs), retain_graph=True, materialize_grads=True
        )
        for column in factorize_loss_hessian(outputs, targets, loss_fn).unbind(2)
    ]
    gradients_by_call = iter(zip(*gradients_by_column, strict=True))
    for name, layer in layers.items():
        for call in calls[name]:
            gradients = [unfold_outputs(layer, gradient) for gradient in next(gradients_by_call)]
            factors[name].add(unfold_inputs(layer, call.inputs), torch.cat(gradients))


@contextmanager
def record_layer_calls(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, list[LayerCall]]]:
    """Record each call of the layers under the layer's name, with hooks that are removed at the end."""
    calls: dict[str, list[LayerCall]] = {name: [] for name in layers}

    def make_hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def record_call(layer: nn.Module, arguments: tuple[Tensor, ...], outputs: Tensor) -> Tensor:
            calls[name].append(LayerCall(arguments[0].detach().clone(), outputs))
            return outputs.clone()  # an in-place activation must not change the recorded tensor or its graph

        return record_call

    handles = [layer.register_forward_hook(make_hook(name)) for name, layer in layers.items()]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def unfold_inputs(layer: KfacLayer, inputs: Tensor) -> Float[Tensor, "positions inputs"]:
    """Return the vectors by which the layer's matrix [weight, bias] is multiplied, one row per position.

    The image patches are computed by a convolution with unit kernels, each of which selects one pixel, so that
    stride, padding and dilation are those of the layer.

    Args:
        layer: The layer.
        inputs: Inputs of one call.
    """
    rows = inputs
    if isinstance(layer, ConvolutionLayer):
        unit_kernels = torch.eye(layer.weight[0].numel(), dtype=inputs.dtype, device=inputs.device)
        values = {"weight": unit_kernels.view(-1, *layer.weight.shape[1:])}
        if layer.bias is not None:
            values["bias"] = unit_kernels.new_zeros(len(unit_kernels))
        rows = unfold_outputs(layer, functional_call(layer, values, (inputs,)))
    rows = rows.reshape(-1, rows.shape[-1])
    params = get_layer_parameters(layer)
    blocks = [rows] if "weight" in params else []
    return torch.cat([*blocks, rows.new_ones(len(rows), 1)] if "bias" in params else blocks, 1)


def unfold_outputs(layer: KfacLayer, outputs: Tensor) -> Float[Tensor, "positions outputs"]:
    """Return outputs of the layer, or gradients in them, one row per position.

    Args:
        layer: The layer.
        outputs: Tensor of the shape of its outputs.
    """
    channels_last = outputs.movedim(1, -1) if isinstance(layer, ConvolutionLayer) else outputs
    return channels_last.reshape(-1, channels_last.shape[-1])


def _is_supported(layer: nn.Module) -> TypeGuard[KfacLayer]:
    # Exact types: subclasses can use their weights in any way. So can parametrizations, which rename the parameters.
    is_plain_convolution = type(layer) in (nn.Conv1d, nn.Conv2d, nn.Conv3d) and layer.groups == 1
    if type(layer) is not nn.Linear and not is_plain_convolution:
        return False
    return {key for key, _ in layer.named_parameters(recurse=False)} <= {"weight", "bias"}


def _format_layer(name: str, layer: nn.Module) -> str:
    return f"{name or 'The model'} ({type(layer).__name__})"
