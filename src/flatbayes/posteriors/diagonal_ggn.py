"""Diagonal of the GGN from backward passes for whole batches, with the inputs of layers (Dangel et al., ICLR 2020).

The diagonal is the sum over examples and columns s of the squares of Jᵀ s. In a layer with one position for each
example Jᵀ s is g aᵀ, so that the sum over the batch is the matrix product (g²)ᵀ a². With several positions it is a
sum of such products, a batched matrix product. The scale of a normalization layer has the gradient sum g x, with x
the normalized input. For all other parameters the vectors come from `ggn.ExampleVjps`.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from flatbayes.core import LossFn
from flatbayes.core.input_trees import ModelInputs
from flatbayes.core.tensor_lists import widen
from flatbayes.core.weights import promoted_dtype
from flatbayes.posteriors.ggn import (
    MAX_VECTOR_ENTRIES,
    ExampleVjps,
    factorize_loss_hessian,
    ggn_diagonal,
    iter_vjps,
    rounding_tolerance,
)
from flatbayes.posteriors.layer_calls import (
    ConvolutionLayer,
    LayerCall,
    get_layer_parameters,
    is_plain_layer,
    record_layer_calls,
    view_patches,
)

CHANNEL_NORM_TYPES = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.GroupNorm),
)
"""Normalization layers with a scale for each channel, which is the second axis."""
SUPPORTED_TYPES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.LayerNorm, nn.RMSNorm, *CHANNEL_NORM_TYPES)
"""Layers whose gradients are computed from their inputs."""


@dataclass(frozen=True, eq=False)
class DiagonalGgn:
    """Sums the diagonal of the GGN over batches.

    Attributes:
        model: The network in eval mode; no example's outputs depend on another example.
        layers: Layers whose gradients are computed from their inputs, by name.
        totals: Sum so far, by name of the parameter.
        others: Computes the vectors for the other parameters.
    """

    model: nn.Module
    layers: Mapping[str, nn.Module]
    totals: dict[str, Tensor]
    others: ExampleVjps

    @classmethod
    def of(
        cls,
        model: nn.Module,
        params: Mapping[str, nn.Parameter],
        inputs: ModelInputs,
        targets: Tensor,
        loss_fn: LossFn,
    ) -> "DiagonalGgn":
        """Return the empty sum.

        The gradients of the layers for the batch are compared with those of autograd.
        """
        layers = {
            name: layer
            for name, layer in model.named_modules()
            if is_plain_layer(layer, SUPPORTED_TYPES) and get_layer_parameters(layer)
        }
        outputs, calls = _call_model(model, layers, inputs)
        layers = _select_agreeing_layers(layers, outputs, calls, factorize_loss_hessian(outputs, targets, loss_fn))
        owned_ids = {id(param) for layer in layers.values() for param in get_layer_parameters(layer).values()}
        dtype = widen(promoted_dtype(params.values()))
        totals = {name: torch.zeros_like(param, dtype=dtype, requires_grad=False) for name, param in params.items()}
        rest = {name: param for name, param in params.items() if id(param) not in owned_ids}
        if layers and rest:  # the diagonal is zero for parameters that are not used
            gradients = torch.autograd.grad(outputs.sum(), list(rest.values()), allow_unused=True)
            rest = {name: rest[name] for name, grad in zip(rest, gradients, strict=True) if grad is not None}
        return cls(model, layers, totals, ExampleVjps(model, rest))

    def add(self, inputs: ModelInputs, targets: Tensor, loss_fn: LossFn) -> None:
        """Add the diagonal of the summed loss of a batch; arguments as for `ggn.ggn_diagonal`."""
        rest = self.others.params
        if rest:
            diagonal = ggn_diagonal(self.others, inputs, targets, loss_fn)
            for name, piece in zip(rest, diagonal.split([p.numel() for p in rest.values()]), strict=True):
                self.totals[name] += piece.view_as(self.totals[name])
        if self.layers:
            self._add_layers(inputs, targets, loss_fn)

    def compute(self) -> Float[Tensor, " params"]:
        """Return the diagonal, in the order of the parameters."""
        return torch.cat([total.flatten() for total in self.totals.values()])

    def _add_layers(self, inputs: ModelInputs, targets: Tensor, loss_fn: LossFn) -> None:
        outputs, calls = _call_model(self.model, self.layers, inputs)
        sums = {name: SquareSum(self.layers[name], layer_calls) for name, layer_calls in calls.items()}
        layer_outputs = [call.outputs for layer_calls in calls.values() for call in layer_calls]
        for vjps in iter_vjps(outputs, layer_outputs, factorize_loss_hessian(outputs, targets, loss_fn)):
            gradients = iter(vjps)
            for name, square_sum in sums.items():
                square_sum.add([next(gradients) for _ in calls[name]])
        names = {id(param): name for name, param in self.model.named_parameters()}
        for name, square_sum in sums.items():
            params = get_layer_parameters(self.layers[name])
            for key, squares in square_sum.compute().items():
                total = self.totals[names[id(params[key])]]
                total += squares.view_as(total)


class SquareSum:
    """Sums the squares of the gradients of each example in the parameters of one layer."""

    def __init__(self, layer: nn.Module, calls: Sequence[LayerCall]) -> None:
        self.layer = layer
        self.params = get_layer_parameters(layer)
        self.factors = _join_positions([compute_factors(layer, call.inputs) for call in calls])
        self.totals: dict[str, Tensor] = {}
        self.output_squares: Tensor | None = None
        """For a matrix with one position, the sum of g² over the columns s."""

    @torch.no_grad()
    def add(self, gradients: Sequence[Tensor]) -> None:
        """Add the gradients Jᵀ s of one column s, by their gradients in the outputs of each call."""
        stacked = _join_positions([arrange_positions(self.layer, gradient) for gradient in gradients])
        if self.factors.ndim == 4 and self.factors.shape[-1] == 1:
            single = stacked[..., 0]
            squares = self.output_squares
            self.output_squares = single.square() if squares is None else squares.addcmul_(single, single)
            return
        num_examples = max(1, MAX_VECTOR_ENTRIES // sum(param.numel() for param in self.params.values()))
        for factors, chunk in zip(self.factors.split(num_examples), stacked.split(num_examples), strict=True):
            for key, gradient in compute_gradients(factors, chunk, self.params).items():
                squares = gradient.square_().sum(0)
                self.totals[key] = self.totals[key].add_(squares) if key in self.totals else squares

    @torch.no_grad()
    def compute(self) -> dict[str, Tensor]:
        """Return the sums by name of the parameter, with as many entries as it has."""
        if self.output_squares is not None:
            squares, inputs = self.output_squares, self.factors[..., 0].square()
            groups = squares.unflatten(1, (inputs.shape[1], -1)).permute(1, 2, 0)
            totals = {"weight": groups @ inputs.transpose(0, 1), "bias": squares.sum(0)}
            return {key: totals[key] for key in self.params}
        return self.totals


def compute_gradients(
    factors: Tensor, gradients: Float[Tensor, "batch outputs positions"], keys: Collection[str]
) -> dict[str, Tensor]:
    """Return the gradient of each example in the weight and the bias of a layer."""
    result = {}
    if "weight" in keys and factors.ndim == 4:
        result["weight"] = gradients.unflatten(1, (factors.shape[1], -1)) @ factors.mT
    elif "weight" in keys:
        result["weight"] = (gradients * factors).sum(-1)
    if "bias" in keys:
        result["bias"] = gradients.sum(-1)
    return result


@torch.no_grad()
def compute_factors(layer: nn.Module, inputs: Tensor) -> Tensor:
    """Return what the gradients in the outputs are multiplied by in the gradient in the weight.

    Returns:
        For a matrix the vectors a, shape (batch, groups, inputs, positions); for the scale of a normalization layer
        the normalized inputs, shape (batch, channels, positions).
    """
    if isinstance(layer, ConvolutionLayer):
        patches = view_patches(layer, inputs)
        num_positions = math.prod(patches.shape[1 + layer.weight[0].ndim :])
        return patches.reshape(len(inputs), layer.groups, layer.weight[0].numel(), num_positions)
    if isinstance(layer, nn.Linear):
        return arrange_positions(layer, inputs)[:, None]
    parameters = layer.named_parameters(recurse=False)
    unit = {key: torch.ones_like(p) if key == "weight" else torch.zeros_like(p) for key, p in parameters}
    return arrange_positions(layer, functional_call(layer, unit, (inputs,)))


def arrange_positions(layer: nn.Module, tensor: Tensor) -> Float[Tensor, "batch channels positions"]:
    """Return inputs or outputs of a layer, outputs only of a convolution, with positions along the last axis."""
    if isinstance(layer, (ConvolutionLayer, *CHANNEL_NORM_TYPES)):
        return tensor.reshape(*tensor.shape[:2], -1)
    num_axes = len(layer.normalized_shape) if isinstance(layer, nn.LayerNorm | nn.RMSNorm) else 1
    return tensor.reshape(len(tensor), -1, math.prod(tensor.shape[tensor.ndim - num_axes :])).mT


def _join_positions(calls: Sequence[Tensor]) -> Tensor:
    return calls[0] if len(calls) == 1 else torch.cat(list(calls), -1)


def _call_model(
    model: nn.Module, layers: Mapping[str, nn.Module], inputs: ModelInputs
) -> tuple[Tensor, dict[str, list[LayerCall]]]:
    """Return the outputs, and the calls of the layers that were called."""
    with torch.enable_grad(), record_layer_calls(layers) as calls:
        outputs: Tensor = model(inputs)
    return outputs, {name: layer_calls for name, layer_calls in calls.items() if layer_calls}


def _select_agreeing_layers(
    layers: Mapping[str, nn.Module],
    outputs: Tensor,
    calls: Mapping[str, Sequence[LayerCall]],
    factor: Float[Tensor, "batch outputs columns"],
) -> dict[str, nn.Module]:
    """Return the layers whose gradients for the first and the last example are those of autograd.

    They are not if a parameter is used outside of the layer, as a tied one is, or the first axis of the layer's
    inputs is not that of the examples.
    """
    if not outputs.requires_grad or not calls:
        return {}
    batch_size = len(outputs)
    candidates = {
        name: layers[name]
        for name, layer_calls in calls.items()
        if all(len(call.inputs) == len(call.outputs) == batch_size for call in layer_calls)
    }
    params = [param for layer in candidates.values() for param in get_layer_parameters(layer).values()]
    layer_outputs = [call.outputs for name in candidates for call in calls[name]]
    weights = torch.arange(1, 1 + factor.shape[2], device=factor.device).cos().to(factor)
    tolerance, differing = rounding_tolerance(outputs, *params), set[str]()
    for example in {0, batch_size - 1}:
        direction = torch.zeros_like(factor[:, :, 0])
        direction[example] = factor[example] @ weights
        (derivatives,) = iter_vjps(outputs, params + layer_outputs, direction[:, :, None])
        expected, gradients = iter(derivatives[: len(params)]), iter(derivatives[len(params) :])
        for name, layer in candidates.items():
            factors = _join_positions([compute_factors(layer, call.inputs) for call in calls[name]])
            stacked = _join_positions([arrange_positions(layer, next(gradients)) for _ in calls[name]])
            own = compute_gradients(factors[[example]], stacked[[example]], get_layer_parameters(layer))
            for gradient in own.values():
                exact = next(expected)
                if (gradient.view_as(exact) - exact).norm() > tolerance * exact.norm():
                    differing.add(name)
    return {name: layer for name, layer in candidates.items() if name not in differing}
