"""Networks whose outputs are those of a linear layer, with features that are computed once for many weights of it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from flatbayes.core.input_trees import ModelInputs, map_tensors
from flatbayes.core.parameter_selection import only_requires_grad
from flatbayes.core.tensor_lists import count_writes


class FeatureExtractor:
    """Computes the features that a network passes to its last linear layer, if its outputs are those of this layer.

    They are if the layer is called once, the network returns what the layer returned, in any shape and unchanged, and
    the features do not depend on the weights of the layer, as those of tied weights do. Every call is checked.
    Use it through `extract_features`.

    The network has hooks on the layer, and gradients in its parameters only.
    """

    def __init__(self, network: nn.Module, layer: nn.Linear) -> None:
        self.network = network
        self.calls: list[tuple[tuple[Tensor, ...], Tensor, int]] = []
        self.is_shared = _is_shared(network, layer)

    def record_call(self, layer: nn.Module, arguments: tuple[Tensor, ...], outputs: Tensor) -> None:
        """Forward hook of the layer."""
        self.calls.append((arguments, outputs, count_writes(outputs)))

    def compute(self, inputs: ModelInputs) -> tuple[Tensor, Tensor | None]:
        """Call the network.

        Returns:
            The outputs; and the features, shape (..., features), or None if the outputs are not those of the layer.
        """
        self.calls.clear()
        with torch.inference_mode(False), torch.enable_grad():
            inputs = map_tensors(lambda tensor: tensor.clone() if tensor.is_inference() else tensor, inputs)
            outputs: Tensor = self.network(inputs)
        if self.is_shared or len(self.calls) != 1 or len(self.calls[0][0]) != 1:
            return outputs.detach(), None
        (features,), layer_outputs, version = self.calls.pop()
        is_unchanged = (
            isinstance(outputs, Tensor)
            and outputs.data_ptr() == layer_outputs.data_ptr()
            and outputs.numel() == layer_outputs.numel() > 0
            and outputs.is_contiguous()
            and layer_outputs.is_contiguous()
            and count_writes(layer_outputs) == version
        )
        return outputs.detach(), None if features.requires_grad or not is_unchanged else features


@contextmanager
def extract_features(network: nn.Module, layer: nn.Module) -> Iterator[FeatureExtractor | None]:
    """Yield the extractor of a network; None where the layer is no plain `torch.nn.Linear`, or without autograd."""
    # A subclass, a parametrization or a hook can change what the layer computes.
    has_hooks = layer._forward_hooks or layer._forward_pre_hooks
    if type(layer) is not nn.Linear or has_hooks or any(param.is_inference() for param in network.parameters()):
        yield None
        return
    extractor = FeatureExtractor(network, layer)
    handle = layer.register_forward_hook(extractor.record_call)
    try:
        with only_requires_grad(network, {name: p for name, p in layer.named_parameters() if p.requires_grad}):
            yield extractor
    finally:
        handle.remove()


def _is_shared(network: nn.Module, layer: nn.Linear) -> bool:
    """Whether another module has a parameter of the layer."""
    own_ids = {id(param) for param in layer.parameters()}
    return any(
        id(param) in own_ids
        for module in network.modules()
        if module is not layer
        for param in module._parameters.values()
    )
