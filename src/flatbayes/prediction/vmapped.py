"""Networks of a posterior side by side: their weights stacked, so that one call predicts with all of them.

It pays where a forward pass is so short that starting it, and drawing its network, is what takes the time. Draws that
are more than weights (dropout masks, a linearised network) cannot be stacked.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from flatbayes.core.buffers import eval_mode

if TYPE_CHECKING:
    from flatbayes.prediction.fitted import FittedPosterior

SampleId = tuple[int, int, int]

MAX_VMAPPED_EXAMPLES = 4
"""One call saves the drawing, but its forward passes may be slower: with one thread a PreResNet-20 was slower at 16
examples and faster at 4, an MLP of 256 units a layer slower at any number."""
MAX_STACKED_ELEMENTS = 2**24
"""Largest stack that is made and kept without being asked for: 64 MiB in single precision."""


@dataclass(frozen=True, eq=False)
class StackedNetworks:
    """The networks of some keys.

    Attributes:
        sample_ids: Which ones.
        network: The module whose weights they are.
        tensors: Parameters and buffers by name, networks along the first axis.
        source_versions: What they were drawn from, with the versions of its tensors: no stack outlives a change.
    """

    sample_ids: Sequence[SampleId]
    network: nn.Module
    tensors: dict[str, Tensor]
    source_versions: list[tuple[Tensor, int]]

    def is_current(self, fitted: "FittedPosterior", sample_ids: Sequence[SampleId]) -> bool:
        """Whether these are the networks that would be drawn now."""
        now = tensor_versions(fitted)
        same = all(a is b and v == w for (a, v), (b, w) in zip(self.source_versions, now, strict=False))
        return self.sample_ids == sample_ids and len(self.source_versions) == len(now) and same

    @torch.no_grad()
    def compute_outputs(self, batch: Tensor) -> Float[Tensor, "draws batch outputs"]:
        """What every network gives for a batch."""

        def call_network(tensors: dict[str, Tensor]) -> Tensor:
            found: Tensor = functional_call(self.network, tensors, (batch,))
            return found

        with (
            eval_mode(self.network),
            sdpa_kernel(SDPBackend.MATH),
        ):  # the other kernels of attention cannot be stacked
            found: Tensor = vmap(call_network)(self.tensors)
        return found


def stack_networks(fitted: "FittedPosterior", sample_ids: Sequence[SampleId]) -> StackedNetworks | None:
    """The networks of the keys, or None where they are more than weights."""
    models = [state.model for state in fitted.states]
    drawn: list[dict[str, Tensor]] = []
    for key in sample_ids:
        with fitted.sampled_network(key) as network:
            if network is not models[key[1]] or any(module.training for module in network.modules()):
                return None
            drawn.append({name: tensor.detach().clone() for name, tensor in _list_named_tensors(network)})
    values = {name: torch.stack([one[name] for one in drawn]) for name in drawn[0]}
    return StackedNetworks(sample_ids, models[0], values, tensor_versions(fitted))


def tensor_versions(fitted: "FittedPosterior") -> list[tuple[Tensor, int]]:
    """All tensors that networks are drawn from, each with the number of times that it was written to."""
    tensors = [
        t for s in fitted.states for t in [*(t for _, t in _list_named_tensors(s.model)), *s.statistics.values()]
    ]
    return [(tensor, 0 if tensor.is_inference() else tensor._version) for tensor in tensors]


def should_vectorize(fitted: "FittedPosterior", num_networks: int, batches: Sequence[Tensor]) -> bool:
    """Whether one call is likely to be faster than one call for each network."""
    numbers = sum(tensor.numel() for _, tensor in _list_named_tensors(fitted.states[0].model))
    return sum(map(len, batches)) <= MAX_VMAPPED_EXAMPLES and num_networks * numbers <= MAX_STACKED_ELEMENTS


def _list_named_tensors(network: nn.Module) -> list[tuple[str, Tensor]]:
    return [*network.named_parameters(), *network.named_buffers()]
