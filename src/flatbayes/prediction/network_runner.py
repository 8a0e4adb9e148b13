"""Outputs of the networks of a prediction, computed in one of three ways.

The inputs of the last layer are computed once for networks that differ in this layer only. Small networks predict a
few examples in one vectorized call. All others run one after the other. Draws are kept for the next prediction.
"""

import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.progress import track
from torch import Tensor, nn

from flatbayes.core.console import PlainConsole
from flatbayes.prediction.draw_source import DrawSource
from flatbayes.prediction.drawn_networks import DrawnNetworks, VectorizationError, should_vectorize
from flatbayes.prediction.placement import PreprocessedBatches, autocast
from flatbayes.prediction.sampling import NetworkSampler, SampleId
from flatbayes.prediction.varying_layer import LayerDraws, find_varying_layers


@dataclass(eq=False)
class NetworkRunner:
    """Runs the networks of a posterior, and keeps their draws for the next prediction.

    Attributes:
        drawn_networks: Networks of the last prediction with whole networks.
        layer_draws: Draws of the last prediction with networks that differ in one layer.
        can_vectorize: Whether one call may predict with all networks; False after a call that could not.
        can_share_features: Whether draws that differ in one layer may share its inputs; False once they could not.
    """

    drawn_networks: DrawnNetworks | None = None
    layer_draws: LayerDraws | None = None
    can_vectorize: bool = True
    can_share_features: bool = True
    _compiled_networks: dict[int, Callable[..., Tensor]] = field(default_factory=dict, init=False)

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the draws: a copy, or a file of `pickle` or `torch.save`, makes its own."""
        return {**vars(self), "drawn_networks": None, "layer_draws": None, "_compiled_networks": {}}

    def release(self) -> None:
        """Free the memory of the draws."""
        self.drawn_networks = self.layer_draws = None

    def compute_outputs(
        self,
        sampler: NetworkSampler,
        sample_ids: list[SampleId],
        batches: PreprocessedBatches,
        autocast_dtype: torch.dtype | None,
        *,
        vectorized: bool | None,
        compiled: bool,
        show_progress: bool,
    ) -> Iterable[Tensor]:
        """Outputs of each network, shape (examples, outputs).

        Compiled networks run one after the other.

        Raises:
            ValueError: `vectorized` or `compiled` is set and the draws are more than weights.
        """
        sampler.check_adapters()
        vectorized = False if compiled else vectorized
        if vectorized is not False:
            outputs = self._compute_layer_outputs(sampler, sample_ids, batches, autocast_dtype)
            if outputs is not None:
                return outputs
        drawn = self._get_drawn_networks(sampler, sample_ids, autocast_dtype)
        if vectorized or (
            vectorized is None and self.can_vectorize and should_vectorize(drawn, batches.num_examples)
        ):
            stacked = self._compute_vectorized_outputs(sampler, drawn, batches, is_requested=vectorized is True)
            if stacked is not None:
                return stacked
        return self._iter_outputs(sampler, drawn, batches, compiled, show_progress)

    def _compute_layer_outputs(
        self,
        sampler: NetworkSampler,
        sample_ids: list[SampleId],
        batches: PreprocessedBatches,
        autocast_dtype: torch.dtype | None,
    ) -> Iterator[Tensor] | None:
        """Outputs of networks that differ in their last layer only; None for others."""
        layers = find_varying_layers(sampler) if self.can_share_features else None
        if layers is None:
            return None
        draws = self.layer_draws
        if draws is None or draws.sample_ids != sample_ids or any(map(operator.is_not, draws.layers, layers)):
            draws = self.layer_draws = LayerDraws(sample_ids, layers)
        outputs = draws.compute_outputs(sampler, batches, autocast_dtype)
        self.can_share_features = outputs is not None
        return outputs

    def _get_drawn_networks(
        self, sampler: NetworkSampler, sample_ids: list[SampleId], autocast_dtype: torch.dtype | None
    ) -> DrawnNetworks:
        """The networks of the last prediction, if they would be drawn again; otherwise new ones, not drawn yet."""
        drawn = self.drawn_networks
        if drawn is None or not drawn.is_current(sampler, sample_ids, autocast_dtype):
            self.drawn_networks = drawn = None  # before new memory is allocated
            self.drawn_networks = drawn = DrawnNetworks(DrawSource(sampler), sample_ids, autocast_dtype)
        return drawn

    def _compute_vectorized_outputs(
        self, sampler: NetworkSampler, drawn: DrawnNetworks, batches: PreprocessedBatches, is_requested: bool
    ) -> Tensor | None:
        """Outputs of all networks, shape (draws, examples, outputs), or None to call one network at a time."""
        try:
            return drawn.compute_all_outputs(sampler, batches)
        except VectorizationError:
            self.can_vectorize = False
            if is_requested:
                raise
        except RuntimeError:
            if is_requested:
                raise
        return None  # other errors are repeated by the call of one network

    def _iter_outputs(
        self,
        sampler: NetworkSampler,
        drawn: DrawnNetworks,
        batches: PreprocessedBatches,
        compiled: bool,
        show_progress: bool,
    ) -> Iterator[Tensor]:
        """Outputs of each network, which is kept for the next call if all fit the memory for that."""
        positions, keep = range(len(drawn.sample_ids)), sampler.posterior.stochastic and drawn.fits_budget()
        tracked: Iterable[int] = positions
        if show_progress:  # a progress bar that is not shown would still start a thread
            tracked = track(positions, "averaging networks", console=PlainConsole(stderr=True), transient=True)
        for k in tracked:
            yield self._run_network(sampler, drawn, k, batches, compiled, keep)
        drawn.source = DrawSource(sampler)  # draws have written weights and restored them

    @torch.no_grad()
    def _run_network(
        self,
        sampler: NetworkSampler,
        drawn: DrawnNetworks,
        k: int,
        batches: PreprocessedBatches,
        compiled: bool,
        keep: bool,
    ) -> Tensor:
        with drawn.open_network(sampler, k, keep=keep) as network, autocast(sampler.device, drawn.autocast_dtype):
            forward = self._get_compiled(sampler, network, drawn.sample_ids[k][1]) if compiled else network
            return torch.cat(list(batches.map(forward)))

    def _get_compiled(self, sampler: NetworkSampler, network: nn.Module, member: int) -> Callable[..., Tensor]:
        if network is not sampler.states[member].model:
            raise ValueError(
                f"A draw of {type(sampler.posterior).__name__} is a {type(network).__name__}, another module for "
                "every draw, which is not compiled: leave out compiled=True."
            )
        if member not in self._compiled_networks:
            self._compiled_networks[member] = torch.compile(network)
        return self._compiled_networks[member]
