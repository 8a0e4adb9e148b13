"""Vectorised prediction: weights of all sampled networks are stacked, and `torch.vmap` evaluates them in one call.

One call pays where forward passes are so short that starting them and drawing the networks dominates the time. Draws
that are more than weights (dropout masks, a linearised network) cannot be stacked.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import vmap

from flatbayes.core.buffers import eval_mode
from flatbayes.core.input_trees import ModelInputs, count_examples
from flatbayes.core.networks import call_with_tensors, plain_attention
from flatbayes.prediction.placement import autocast
from flatbayes.prediction.sampling import NetworkSampler, SampleId

MAX_VMAPPED_EXAMPLES = 4
"""Largest number of examples that is vectorised by default. One call saves the drawing, but its forward passes may be
slower: with one thread a PreResNet-20 was slower at 16 examples and faster at 4, an MLP of 256 units a layer slower
at any number."""
MAX_STACKED_ELEMENTS = 2**24
"""Largest stack that is made by default: 64 MiB in single precision."""

TensorVersions = list[tuple[Tensor, int]]
"""Tensors, each with the number of in-place writes to it."""


@dataclass(frozen=True, eq=False)
class StackedNetworks:
    """Stacked weights of the networks of some sample identifiers.

    Attributes:
        sample_ids: Identifiers of the networks.
        network: The module that is evaluated with these weights.
        tensors: Parameters and buffers by name, with the networks along the first axis.
        source_versions: The tensors from which the networks were drawn; a later write to one makes the stack stale.
        autocast_dtype: Precision of their running statistics, and of forward passes; None for that of the weights.
    """

    sample_ids: Sequence[SampleId]
    network: nn.Module
    tensors: dict[str, Tensor]
    source_versions: TensorVersions
    autocast_dtype: torch.dtype | None = None

    def is_current(
        self, sampler: NetworkSampler, sample_ids: Sequence[SampleId], autocast_dtype: torch.dtype | None
    ) -> bool:
        """Whether the sampler would draw these networks for these identifiers now."""
        if autocast_dtype != self.autocast_dtype:
            return False
        return self.sample_ids == sample_ids and are_current(self.source_versions, sampler)

    @torch.no_grad()
    def compute_outputs(self, batch: ModelInputs) -> Float[Tensor, "draws batch outputs"]:
        """Outputs of every network for a preprocessed batch."""

        def call_network(tensors: dict[str, Tensor]) -> Tensor:
            return call_with_tensors(self.network, tensors, batch)

        device = next(iter(self.tensors.values())).device
        with eval_mode(self.network), plain_attention(), autocast(device, self.autocast_dtype):
            outputs: Tensor = vmap(call_network)(self.tensors)
        return outputs


def stack_networks(
    sampler: NetworkSampler, sample_ids: Sequence[SampleId], autocast_dtype: torch.dtype | None = None
) -> StackedNetworks | None:
    """Draw networks and stack their weights.

    Args:
        sampler: Draws the networks.
        sample_ids: Their identifiers.
        autocast_dtype: Precision in which they are run, from `resolve_autocast_dtype`.

    Returns:
        None if the draws are more than weights.
    """
    models = [state.model for state in sampler.states]
    draws: list[dict[str, Tensor]] = []
    for sample_id in sample_ids:
        with sampler.sampled_network(sample_id, autocast_dtype) as network:
            if network is not models[sample_id[1]] or any(module.training for module in network.modules()):
                return None
            draws.append({name: tensor.detach().clone() for name, tensor in _list_named_tensors(network)})
    tensors = {name: torch.stack([draw[name] for draw in draws]) for name in draws[0]}
    return StackedNetworks(sample_ids, models[0], tensors, tensor_versions(sampler), autocast_dtype)


def tensor_versions(sampler: NetworkSampler) -> TensorVersions:
    """All tensors from which networks are drawn, each with the number of in-place writes to it."""
    tensors = [
        tensor
        for state in sampler.states
        for tensor in [*(t for _, t in _list_named_tensors(state.model)), *state.statistics.values()]
    ]
    return [(tensor, 0 if tensor.is_inference() else tensor._version) for tensor in tensors]


def are_current(versions: TensorVersions, sampler: NetworkSampler) -> bool:
    """Whether `tensor_versions` returns these now."""
    current_versions = tensor_versions(sampler)
    same = all(a is b and v == w for (a, v), (b, w) in zip(versions, current_versions, strict=False))
    return len(versions) == len(current_versions) and same


def should_vectorize(sampler: NetworkSampler, num_networks: int, batches: Sequence[ModelInputs]) -> bool:
    """Whether one vectorised call is likely to be faster than one call per network."""
    num_elements = sum(tensor.numel() for _, tensor in _list_named_tensors(sampler.states[0].model))
    num_examples = sum(map(count_examples, batches))
    return num_examples <= MAX_VMAPPED_EXAMPLES and num_networks * num_elements <= MAX_STACKED_ELEMENTS


def _list_named_tensors(network: nn.Module) -> list[tuple[str, Tensor]]:
    return [*network.named_parameters(), *network.named_buffers()]
