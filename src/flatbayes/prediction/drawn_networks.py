"""Drawn networks that are kept for the next prediction, to be run one after the other or in one vectorized call.

Drawing takes as long as the forward passes of a small network. The weights of all draws are in one array with a row
for each, so that a row can be swapped into the network, and `torch.vmap` can run all rows at once. One call pays
where forward passes are so short that starting them dominates the time. Draws that are more than weights (dropout
masks, a linearised network) are not kept.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import vmap

from flatbayes.core.buffers import eval_mode
from flatbayes.core.input_trees import ModelInputs
from flatbayes.core.network_calls import Place, find_places, plain_attention, preserve_recurrence, replace_tensors
from flatbayes.core.randomness import RandomState, replay_rng
from flatbayes.core.tensor_lists import copy_values, count_writes, to_local
from flatbayes.core.traversal import list_modules, named_parameters
from flatbayes.core.weights import can_swap_storage, swap_storage, swap_values
from flatbayes.prediction.draw_source import MAX_KEPT_ELEMENTS, DrawSource, TensorMark, mark_tensors
from flatbayes.prediction.placement import PreprocessedBatches, autocast
from flatbayes.prediction.sampling import NetworkSampler, SampleId

MAX_VMAPPED_EXAMPLES = 4
"""Largest number of examples that is vectorised by default. One call saves the drawing, but its forward passes may be
slower: with one thread a PreResNet-20 was slower at 16 examples and faster at 4, an MLP of 256 units a layer slower
at any number."""
ALIGNMENT = 64
"""Bytes. Memory of torch on a CPU starts at a multiple, on which the rounding of matrix products may depend."""


MISSING_RULE = ("vmap", "Batching rule")
"""Words of the errors of operations that cannot be vectorized."""


class VectorizationError(ValueError):
    """One call cannot predict with all networks."""


@dataclass(frozen=True)
class _Row:
    """What belongs to a drawn network beside the values of its tensors.

    Attributes:
        tensors: Parameters of the model that are its own, and buffers that the draw wrote to, which are swapped in.
        indices: Their positions among all tensors.
        random_state: State of the generators before its forward passes.
    """

    tensors: list[Tensor]
    indices: list[int]
    random_state: RandomState


@dataclass(frozen=True)
class _Member:
    """Tensors of a network.

    Those in `common` are frozen parameters that all members share.
    """

    params: dict[str, nn.Parameter]
    buffers: dict[str, Tensor]
    common: list[nn.Parameter]

    @classmethod
    def from_model(cls, model: nn.Module, common_ids: frozenset[int]) -> "_Member":
        """The tensors of a network, of which some are shared."""
        params = named_parameters(model)
        own = {name: param for name, param in params.items() if id(param) not in common_ids}
        common = [param for param in params.values() if id(param) in common_ids]
        return cls(own, dict(model.named_buffers()), common)

    @property
    def others(self) -> list[Tensor]:
        """What a draw may leave as it is: buffers, then shared parameters."""
        return [*self.buffers.values(), *self.common]


@dataclass(frozen=True)
class _Slot:
    """Where a row has a tensor: offset in bytes, and the layout of the tensor."""

    offset: int
    num_bytes: int
    dtype: torch.dtype
    shape: torch.Size
    strides: tuple[int, ...]

    def view(self, memory: Tensor) -> Tensor:
        """The tensor in all rows, along a new first axis."""
        values = memory[:, self.offset : self.offset + self.num_bytes].view(self.dtype)
        return values.as_strided((len(memory), *self.shape), (values.stride(0), *self.strides))


@dataclass(eq=False)
class DrawnNetworks:
    """The networks of some sample identifiers, of which those that have been drawn are kept.

    Attributes:
        source: What they are drawn from.
        sample_ids: Identifiers of the networks.
        autocast_dtype: Precision of their running statistics, and of forward passes; None for that of the weights.
        can_keep: Whether draws differ in parameters and buffers only, which forward passes do not change.
    """

    source: DrawSource
    sample_ids: Sequence[SampleId]
    autocast_dtype: torch.dtype | None = None
    can_keep: bool = True
    _rows: dict[int, _Row] = field(default_factory=dict, init=False, repr=False)
    _members: dict[int, "_Member"] = field(default_factory=dict, init=False, repr=False)
    _slots: dict[str, _Slot] = field(default_factory=dict, init=False, repr=False)
    _columns: list[Tensor] = field(default_factory=list, init=False, repr=False)
    _network: nn.Module = field(init=False, repr=False)
    _places: list[Place] = field(default_factory=list, init=False, repr=False)

    def is_current(
        self, sampler: NetworkSampler, sample_ids: Sequence[SampleId], autocast_dtype: torch.dtype | None
    ) -> bool:
        """Whether the sampler would draw these networks for these identifiers now."""
        if autocast_dtype != self.autocast_dtype or self.sample_ids != sample_ids:
            return False
        return self.source.is_current(sampler)

    def fits_budget(self) -> bool:
        """Whether all networks have at most `MAX_KEPT_ELEMENTS` entries."""
        return len(self.sample_ids) * self.source.num_elements <= MAX_KEPT_ELEMENTS

    @contextmanager
    def open_network(self, sampler: NetworkSampler, k: int, *, keep: bool) -> Iterator[nn.Module]:
        """The network of the k-th identifier, as `NetworkSampler.sampled_network` gives it."""
        row, member = self._rows.get(k), self.sample_ids[k][1]
        model = sampler.states[member].model
        if row is not None:
            values = [self._columns[index][k] for index in row.indices]
            swap = swap_storage if can_swap_storage(row.tensors) else swap_values
            with (
                replay_rng(row.random_state),
                swap(row.tensors, values),
                eval_mode(model),
                self._check_writes(row.tensors),
            ):
                yield model
            return
        if keep and self.can_keep:
            if member not in self._members:
                self._members[member] = _Member.from_model(model, self.source.common_ids)
            marks = mark_tensors(self._members[member].others)
        with sampler.sampled_network(self.sample_ids[k], self.autocast_dtype) as network:
            if not (keep and self.can_keep):
                yield network
                return
            self.can_keep = network is model and self._keep_row(k, model, marks)
            with self._check_writes(list(self._members[member].params.values())):
                yield network

    def compute_all_outputs(
        self, sampler: NetworkSampler, batches: PreprocessedBatches
    ) -> Float[Tensor, "draws examples outputs"]:
        """Outputs of all networks, in one call for each batch.

        Raises:
            VectorizationError: The draws are more than weights, or `torch.vmap` cannot trace the network.
            RuntimeError: The forward pass fails.
        """
        if not self._places:
            self._stack(sampler)
        try:
            outputs = list(batches.map(self._compute_outputs))
        except RuntimeError as error:
            if not any(words in str(error) for words in MISSING_RULE):
                raise
            raise VectorizationError(
                f"One call cannot predict with all draws of {type(self._network).__name__}: "
                f"{str(error).strip().splitlines()[0]} Leave out vectorized=True."
            ) from error
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)

    def _stack(self, sampler: NetworkSampler) -> None:
        for k in range(len(self.sample_ids)):
            if k not in self._rows:
                with self.open_network(sampler, k, keep=True):
                    pass
            if not self.can_keep:
                raise VectorizationError(
                    f"Draws of {type(sampler.posterior).__name__} are more than weights, and one call cannot predict "
                    "with all of them: leave out vectorized=True."
                )
        self.source = DrawSource(sampler)  # a draw may have written weights and restored them
        self._network = sampler.states[0].model
        self._places = find_places(self._network, dict(zip(self._slots, self._columns, strict=True)))

    @torch.no_grad()
    def _compute_outputs(self, batch: ModelInputs) -> Float[Tensor, "draws batch outputs"]:
        network, places = self._network, self._places

        def call_network(*tensors: Tensor) -> Tensor:
            with replace_tensors([(own, name, t) for (own, name, _), t in zip(places, tensors, strict=True)]):
                outputs: Tensor = network(batch)
            return outputs

        stacked = [tensor for _, _, tensor in places]
        device, dtype = stacked[0].device, self.autocast_dtype
        with eval_mode(network), plain_attention(), preserve_recurrence(network), autocast(device, dtype):
            all_outputs: Tensor = vmap(call_network)(*stacked)
        return all_outputs

    @contextmanager
    def _check_writes(self, params: Sequence[Tensor]) -> Iterator[None]:
        """Keep no networks that change their own weights in a forward pass."""
        before = [count_writes(param) for param in params]
        try:
            yield
        finally:
            if [count_writes(param) for param in params] != before:
                self._rows.clear()
                self._places, self._columns, self.can_keep = [], [], False

    @torch.inference_mode(False)
    @torch.no_grad()
    def _keep_row(self, k: int, model: nn.Module, marks: Sequence[TensorMark]) -> bool:
        """Copy a drawn network to its row, if that is possible; `marks` are those of the others before the draw."""
        member = self._members[self.sample_ids[k][1]]
        tensors = {**member.params, **member.buffers}
        values = list(tensors.values())
        is_written = [new != old for new, old in zip(mark_tensors(member.others), marks, strict=True)]
        if any(is_written[len(member.buffers) :]):  # a draw that changes frozen weights
            return False
        if any(module.training for module in list_modules(model)) or not values:
            return False
        if not self._columns:
            device = values[0].device
            if any(t.layout is not torch.strided or t.device != device or to_local(t) is not t for t in values):
                return False
            self._slots, num_bytes = _arrange_tensors(tensors)
            memory = torch.empty(len(self.sample_ids), num_bytes, dtype=torch.uint8, device=device)
            self._columns = [slot.view(memory) for slot in self._slots.values()]
        if [(t.dtype, t.shape) for t in values] != [(slot.dtype, slot.shape) for slot in self._slots.values()]:
            return False
        copy_values([column[k] for column in self._columns], values)
        num_params = len(member.params)
        indices = [j for j in range(len(values)) if j < num_params or is_written[j - num_params]]
        self._rows[k] = _Row([values[j] for j in indices], indices, RandomState.capture(model))
        return True


def should_vectorize(drawn: DrawnNetworks, num_examples: int) -> bool:
    """Whether one vectorised call is likely to be faster than one call per network."""
    return num_examples <= MAX_VMAPPED_EXAMPLES and drawn.fits_budget()


def _arrange_tensors(tensors: dict[str, Tensor]) -> tuple[dict[str, _Slot], int]:
    """Places of tensors in a row, with the layout and alignment that they have, and the bytes of the row."""
    slots, end = dict[str, _Slot](), 0
    for name, tensor in tensors.items():
        shape, strides, size = tensor.shape, tensor.stride(), tensor.element_size()
        if 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)) != tensor.numel():
            strides = torch.empty(shape, device="meta").stride()  # memory with gaps or overlaps
        shift = 0 if tensor.is_meta else tensor.data_ptr() % ALIGNMENT
        shift = 0 if shift % size else shift
        offset = end + (shift - end) % ALIGNMENT
        end = offset + tensor.numel() * size
        slots[name] = _Slot(offset, tensor.numel() * size, tensor.dtype, shape, strides)
    return slots, end + -end % ALIGNMENT
