"""Kronecker-factored curvature, KFAC (Martens & Grosse, ICML 2015; for convolutions Grosse & Martens, ICML 2016).

A layer's block of the GGN is a sum, over examples and the places where its weights are used, of Kronecker products
of g gᵀ with a aᵀ: a is what the weights are multiplied with (for a convolution a patch of the image; and a one, for
the bias) and g is a vector Jᵀ s of `curvature` at its output. KFAC replaces the sum of products by the product
of the sums over the number of places, and neglects all between two layers or two places. The block is exact where a,
or the sum of g gᵀ, is the same for all examples, as the latter is in linear networks with a squared loss.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from flatbayes.core import LossFn
from flatbayes.posteriors.ggn import factorize_loss_hessian

CONVOLUTION_TYPES = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass
class KroneckerFactors:
    """What the curvature of one layer is made of, summed over everything seen so far.

    Attributes:
        input_factor: Sum of a aᵀ.
        output_factor: Sum of g gᵀ.
        num_positions: Number of vectors a in the sum.
    """

    input_factor: Float[Tensor, "inputs inputs"]
    output_factor: Float[Tensor, "outputs outputs"]
    num_positions: int = 0

    def add(self, inputs: Float[Tensor, "places inputs"], gradients: Float[Tensor, "vectors outputs"]) -> None:
        """Add all vectors a and g of a batch."""
        self.input_factor.addmm_(inputs.T, inputs)
        self.output_factor.addmm_(gradients.T, gradients)
        self.num_positions += len(inputs)


@dataclass(frozen=True)
class LayerCall:
    """What went into a layer, and the tensor that came out, to take derivatives in."""

    inputs: Tensor
    outputs: Tensor


def find_kfac_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The linear and convolutional layers with trainable weights, by name.

    Layers with nothing but vectors to learn (normalisation, a noise scale) are left out.

    Raises:
        ValueError: Another layer has weights to be learnt, two layers share theirs, or there is none.
    """
    found: dict[str, nn.Module] = {}
    owners: dict[int, str] = {}
    for name, layer in model.named_modules():
        own = {key: param for key, param in layer.named_parameters(recurse=False) if param.requires_grad}
        if not _is_supported(layer):
            if any(param.ndim > 1 for param in own.values()):
                raise ValueError(
                    f"{_format_layer(name, layer)} learns {', '.join(own)}, and KFAC knows Linear, Conv1d, Conv2d and "
                    "Conv3d with groups=1 alone. Use structure='diag' or 'last_layer', or set requires_grad to False "
                    "on those weights."
                )
            continue
        for key, param in own.items():
            first = owners.setdefault(id(param), _format_layer(name, layer))
            if first != _format_layer(name, layer):
                raise ValueError(
                    f"{_format_layer(name, layer)} shares its {key} with {first}, and KFAC takes each layer for itself. Use "
                    "structure='diag'."
                )
        if own:
            found[name] = layer
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no linear or convolutional layer to be learnt, so there is nothing for KFAC "
            "to do. Use structure='diag'."
        )
    return found


def get_layer_parameters(layer: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable ones of weight and bias, in this order."""
    return {key: param for key, param in layer.named_parameters(recurse=False) if param.requires_grad}


def layer_shape(layer: nn.Module) -> tuple[int, int]:
    """(outputs, inputs) of the matrix [weight, bias] that the layer learns, kernels being flattened."""
    params = list(get_layer_parameters(layer).values())
    return len(params[0]), sum(param[0].numel() for param in params)


def split_columns(matrix: Float[Tensor, "outputs inputs"], layer: nn.Module) -> list[Tensor]:
    """The matrix [weight, bias] as tensors of the shapes of the layer's trainable parameters."""
    params = list(get_layer_parameters(layer).values())
    pieces = matrix.split([param[0].numel() for param in params], dim=1)
    return [piece.reshape(param.shape) for piece, param in zip(pieces, params, strict=True)]


def add_factors(
    factors: Mapping[str, KroneckerFactors],
    layers: Mapping[str, nn.Module],
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    loss_fn: LossFn,
) -> None:
    """Add a batch to the factors of every layer, for all columns s, so that nothing is sampled.

    Args:
        factors: By name of the layer, changed in place.
        layers: As `find_kfac_layers` finds them.
        model: The network in eval mode.
        inputs: One batch.
        targets: Of the same examples.
        loss_fn: The mean of the losses of a batch.

    Raises:
        ValueError: A layer was not called, so its weights are used in some other way.
    """
    with torch.enable_grad(), record_layer_calls(layers) as calls:
        outputs: Tensor = model(inputs)
    for name, layer in layers.items():
        if not calls[name]:
            raise ValueError(
                f"{_format_layer(name, layer)} has weights to be learnt and was not called, so KFAC does not see how they "
                "are used. Use structure='diag', or set requires_grad to False on them."
            )
    everywhere = [call.outputs for name in layers for call in calls[name]]
    by_column = [
        torch.autograd.grad(outputs, everywhere, column.view_as(outputs), retain_graph=True, materialize_grads=True)
        for column in factorize_loss_hessian(outputs, targets, loss_fn).unbind(2)
    ]
    by_call = iter(zip(*by_column, strict=True))
    for name, layer in layers.items():
        for call in calls[name]:
            gradients = [output_rows(layer, gradient) for gradient in next(by_call)]
            factors[name].add(input_rows(layer, call.inputs), torch.cat(gradients))


@contextmanager
def record_layer_calls(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, list[LayerCall]]]:
    """Inside, each call of the layers is written down under the layer's name; outside, no hook is left on them."""
    calls: dict[str, list[LayerCall]] = {name: [] for name in layers}

    def make_hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def record_call(layer: nn.Module, arguments: tuple[Tensor, ...], outputs: Tensor) -> Tensor:
            calls[name].append(LayerCall(arguments[0].detach().clone(), outputs))
            return outputs.clone()  # an in-place activation must leave ours, and its place in the graph, alone

        return record_call

    handles = [layer.register_forward_hook(make_hook(name)) for name, layer in layers.items()]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def input_rows(layer: nn.Module, inputs: Tensor) -> Float[Tensor, "places inputs"]:
    """What the layer's matrix [weight, bias] is multiplied with at every place, a row each.

    The patches of an image are what a convolution gives whose kernels each pick one pixel; so any stride, padding
    and dilation is the layer's own.
    """
    rows = inputs
    if isinstance(layer, CONVOLUTION_TYPES):
        picking = torch.eye(layer.weight[0].numel(), dtype=inputs.dtype, device=inputs.device)
        values = {"weight": picking.view(-1, *layer.weight.shape[1:])}
        if layer.bias is not None:
            values["bias"] = picking.new_zeros(len(picking))
        rows = output_rows(layer, functional_call(layer, values, (inputs,)))
    rows = rows.reshape(-1, rows.shape[-1])
    params = get_layer_parameters(layer)
    parts = [rows] if "weight" in params else []
    return torch.cat([*parts, rows.new_ones(len(rows), 1)] if "bias" in params else parts, 1)


def output_rows(layer: nn.Module, outputs: Tensor) -> Float[Tensor, "places outputs"]:
    """A layer's outputs, or gradients at them, a row for each place."""
    last = outputs.movedim(1, -1) if isinstance(layer, CONVOLUTION_TYPES) else outputs
    return last.reshape(-1, last.shape[-1])


def _is_supported(layer: nn.Module) -> bool:
    # Exact types: a subclass may use its weights in any way. So may a parametrisation, which renames them.
    if type(layer) is not nn.Linear and not (type(layer) in CONVOLUTION_TYPES and layer.groups == 1):
        return False
    return {key for key, _ in layer.named_parameters(recurse=False)} <= {"weight", "bias"}


def _format_layer(name: str, layer: nn.Module) -> str:
    return f"{name or 'The model'} ({type(layer).__name__})"
