"""Predictions of networks that differ in one linear layer: its inputs are computed once for all of them.

A draw of a last-layer posterior then costs a product with the weights of the layer in place of a call of the network.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flatbayes.core.linear_head import extract_features
from flatbayes.core.randomness import RandomState
from flatbayes.prediction.draw_source import MAX_KEPT_ELEMENTS, DrawSource
from flatbayes.prediction.placement import PreprocessedBatches, autocast
from flatbayes.prediction.sampling import NetworkSampler, SampleId

LayerWeights = tuple[Tensor, Tensor | None]
"""Weights and biases of several draws, with the draws along the first axis."""


@dataclass(eq=False)
class LayerDraws:
    """Draws of the layer of each training run.

    Attributes:
        sample_ids: Identifiers of the networks.
        layers: The layer of each run.
        weights: Its draws by run, in the order of the identifiers of the run; empty if all draws together exceed
            `MAX_KEPT_ELEMENTS`.
        source: What the layers were drawn from; a later change of it makes the draws stale.
    """

    sample_ids: Sequence[SampleId]
    layers: Sequence[nn.Linear]
    weights: dict[int, LayerWeights] = field(default_factory=dict)
    source: DrawSource | None = None

    @torch.no_grad()
    def compute_outputs(
        self, sampler: NetworkSampler, batches: PreprocessedBatches, autocast_dtype: torch.dtype | None
    ) -> Iterator[Tensor] | None:
        """Outputs of each network, shape (examples, outputs), one after the other.

        Returns:
            None if the outputs of a network are not those of the layer, or are random beside the draw.
        """
        if self.source is None or not self.source.is_current(sampler):
            self.weights.clear()
        features: dict[int, tuple[Tensor, torch.Size]] = {}
        for member, layer in enumerate(self.layers):
            member_ids = [sample_id for sample_id in self.sample_ids if sample_id[1] == member]
            member_features = _compute_features(sampler, member_ids[0], layer, batches, autocast_dtype)
            if member_features is None:
                return None
            sampler.share_norm_statistics(member_ids, autocast_dtype)
            features[member] = member_features
        return self._iter_outputs(sampler, features, autocast_dtype)

    @torch.no_grad()
    def _iter_outputs(
        self,
        sampler: NetworkSampler,
        features: dict[int, tuple[Tensor, torch.Size]],
        autocast_dtype: torch.dtype | None,
    ) -> Iterator[Tensor]:
        size = sum(layer.weight.numel() for layer in self.layers)
        num_draws = max(1, MAX_KEPT_ELEMENTS // size) * len(self.layers)
        for start in range(0, len(self.sample_ids), num_draws):
            block = self.sample_ids[start : start + num_draws]
            weights = self.weights or {
                member: draw_layer(sampler, member, layer, block) for member, layer in enumerate(self.layers)
            }
            if len(block) == len(self.sample_ids):
                self.weights, self.source = weights, DrawSource(sampler)  # draws write weights and restore them
            outputs = {
                member: _multiply(*features[member], *weights[member], autocast_dtype)
                for member in range(len(weights))
            }
            for _, member, _ in block:
                yield next(outputs[member])


def find_varying_layers(sampler: NetworkSampler) -> list[nn.Linear] | None:
    """The layer of each training run in which alone its draws differ; None if they differ in more."""
    layers = [sampler.posterior.find_varying_layer(state) for state in sampler.states]
    return [layer for layer in layers if layer is not None] if None not in layers else None


class StackedLayerNetwork(nn.Module):
    """A network whose last layer has the outputs of all draws.

    The layer of the network is replaced.
    """

    def __init__(self, network: nn.Module, name: str, weights: LayerWeights) -> None:
        super().__init__()
        drawn, biases = weights
        self.num_draws, num_outputs, num_inputs = drawn.shape
        layer = nn.Linear(num_inputs, self.num_draws * num_outputs, biases is not None).to(drawn)
        with torch.no_grad():
            layer.weight.copy_(drawn.flatten(0, 1))
            if biases is not None:
                layer.bias.copy_(biases.flatten())
        owner, _, attribute = name.rpartition(".")
        if name:
            setattr(network.get_submodule(owner), attribute, layer)
        self.network = network if name else layer

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Outputs of each draw."""
        outputs: Tensor = self.network(inputs)
        by_draw: tuple[Tensor, ...] = outputs.unflatten(-1, (self.num_draws, -1)).unbind(-2)
        return by_draw


@torch.no_grad()
def _multiply(
    features: Tensor, shape: torch.Size, weights: Tensor, biases: Tensor | None, autocast_dtype: torch.dtype | None
) -> Iterator[Tensor]:
    """Outputs of each draw of a layer, in this shape, with one product for as many draws as memory allows."""
    num_draws = max(1, MAX_KEPT_ELEMENTS // max(1, shape.numel()))
    for start in range(0, len(weights), num_draws):
        block = slice(start, start + num_draws)
        with autocast(features.device, autocast_dtype):
            outputs = F.linear(
                features, weights[block].flatten(0, 1), None if biases is None else biases[block].flatten()
            )
        for by_draw in outputs.unflatten(-1, (-1, weights.shape[1])).unbind(-2):
            yield by_draw.reshape(shape)


def draw_layer(
    sampler: NetworkSampler, member: int, layer: nn.Linear, sample_ids: Sequence[SampleId]
) -> LayerWeights:
    """Weights of the layer of a training run in those of the draws that are its own."""
    generators = [sampler.make_draw_generator(sample_id) for sample_id in sample_ids if sample_id[1] == member]
    return sampler.posterior.draw_layer(sampler.states[member], layer, generators)


def _compute_features(
    sampler: NetworkSampler,
    sample_id: SampleId,
    layer: nn.Linear,
    batches: PreprocessedBatches,
    autocast_dtype: torch.dtype | None,
) -> tuple[Tensor, torch.Size] | None:
    """Inputs of the layer, and the shape of the outputs of all batches."""
    model = sampler.states[sample_id[1]].model
    features, counts, shape = list[Tensor](), 0, torch.Size()
    with (
        sampler.sampled_network(sample_id, autocast_dtype),  # weights that all draws share, and running statistics
        autocast(sampler.device, autocast_dtype),
        extract_features(model, layer) as extractor,
    ):
        if extractor is None:
            return None
        before = RandomState.capture(model)
        for outputs, batch_features in batches.map(extractor.compute):
            if batch_features is None:
                return None
            features.append(batch_features)
            counts, shape = counts + len(outputs), outputs.shape[1:]
        if not before.equals(RandomState.capture(model)):
            return None
    return torch.cat(features), torch.Size((counts, *shape))
