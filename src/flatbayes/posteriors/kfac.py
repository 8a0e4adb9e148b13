"""Kronecker-factored approximate curvature (KFAC; Martens & Grosse, ICML 2015; convolutions: Grosse & Martens, 2016).

The GGN block of a layer is a sum, over examples and the positions at which its weights are used, of Kronecker
products of g gᵀ with a aᵀ. Here a is the input of the weights (for a convolution a patch of the image; with an
appended 1 for the bias) and g is a vector Jᵀ s of `ggn` at the layer's output. KFAC replaces the sum of products by
the product of the sums, divided by the number of positions, and neglects the terms between two layers or two
positions. The block is exact where a, or the sum of g gᵀ, is the same for all examples; the latter holds in linear
networks with a squared loss.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeGuard, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flatbayes.core import LossFn
from flatbayes.core.input_trees import ModelInputs
from flatbayes.posteriors.ggn import factorize_loss_hessian, iter_vjps, sum_loss_hessians
from flatbayes.posteriors.layer_calls import (
    MatrixLayer,
    get_layer_parameters,
    is_plain_layer,
    record_layer_calls,
    unfold_inputs,
    unfold_outputs,
)

MAX_FACTORIZED_OUTPUTS = 64
"""Most outputs of a last layer for which the Hessian of each example is factorized; with more, Hessians are summed,
and the loss must be convex in the outputs, as losses of many classes or labels are."""


@dataclass
class KroneckerFactors:
    """The two Kronecker factors of one layer, summed over all batches so far.

    The factors are sums of a aᵀ and of g gᵀ.
    """

    input_factor: Float[Tensor, "inputs inputs"]
    output_factor: Float[Tensor, "outputs outputs"]
    num_positions: int = 0

    def add_inputs(self, inputs: Float[Tensor, "positions inputs"]) -> None:
        """Add the vectors a of a batch, one per row."""
        inputs = inputs.to(self.input_factor.dtype)
        self.input_factor.addmm_(inputs.T, inputs)
        self.num_positions += len(inputs)

    def add_gradients(self, gradients: Float[Tensor, "positions outputs"]) -> None:
        """Add the vectors g of a batch for one column s, one per row."""
        gradients = gradients.to(self.output_factor.dtype)
        self.output_factor.addmm_(gradients.T, gradients)


def find_kfac_layers(model: nn.Module) -> dict[str, MatrixLayer]:
    """Return the linear and convolutional layers with trainable weights, by name.

    Other layers are left out if their trainable parameters are vectors (normalization, a noise scale).

    Raises:
        ValueError: Another layer has trainable weights, two layers share weights, or there is no such layer.
    """
    layers: dict[str, MatrixLayer] = {}
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


def get_matrix_shape(layer: MatrixLayer) -> tuple[int, int]:
    """Return (outputs, inputs) of the trainable matrix [weight, bias], with flattened kernels."""
    params = list(get_layer_parameters(layer).values())
    return len(params[0]), sum(param[0].numel() for param in params)


def split_columns(matrix: Float[Tensor, "outputs inputs"], layer: MatrixLayer) -> list[Tensor]:
    """Split the matrix [weight, bias] into tensors of the shapes of the layer's trainable parameters."""
    params = list(get_layer_parameters(layer).values())
    pieces = matrix.split([param[0].numel() for param in params], dim=1)
    return [piece.reshape(param.shape) for piece, param in zip(pieces, params, strict=True)]


def add_factors(
    factors: Mapping[str, KroneckerFactors],
    layers: Mapping[str, MatrixLayer],
    model: nn.Module,
    inputs: ModelInputs,
    targets: Tensor,
    loss_fn: LossFn,
) -> None:
    """Add a batch to the factors of every layer, with all columns s and no sampling, in place.

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
    layer_calls = [(name, call) for name in layers for call in calls[name]]
    for name, call in layer_calls:
        factors[name].add_inputs(unfold_inputs(layers[name], call.inputs))
    layer_outputs = [call.outputs for _, call in layer_calls]
    if len(layer_outputs) == 1 and outputs.shape[-1] > MAX_FACTORIZED_OUTPUTS and _is_copy(outputs, layer_outputs[0]):
        (factor,) = factors.values()
        factor.output_factor.add_(sum_loss_hessians(outputs, targets, loss_fn))
        return
    for gradients in iter_vjps(outputs, layer_outputs, factorize_loss_hessian(outputs, targets, loss_fn)):
        for (name, _), gradient in zip(layer_calls, gradients, strict=True):
            factors[name].add_gradients(unfold_outputs(layers[name], gradient))


def _is_copy(outputs: Tensor, layer_outputs: Tensor) -> bool:
    """Return whether outputs [batch, outputs] are the copy of those of a layer that `record_layer_calls` makes."""
    node = outputs.grad_fn
    is_clone = node is not None and node.name() == layer_outputs.clone().grad_fn.name()  # type: ignore[union-attr]
    return is_clone and outputs.ndim == 2 and node.next_functions[0][0] is layer_outputs.grad_fn  # type: ignore[union-attr]


def _is_supported(layer: nn.Module) -> TypeGuard[MatrixLayer]:
    return is_plain_layer(layer, get_args(MatrixLayer)) and getattr(layer, "groups", 1) == 1


def _format_layer(name: str, layer: nn.Module) -> str:
    return f"{name or 'The model'} ({type(layer).__name__})"
