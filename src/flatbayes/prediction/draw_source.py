"""What kept draws and predictions depend on: tensors and their writes, by which they are known to be current."""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from operator import is_

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from flatbayes.core.tensor_lists import count_writes, to_local
from flatbayes.core.traversal import list_modules, list_parameters
from flatbayes.likelihoods import Predictive
from flatbayes.prediction.inputs import Inputs
from flatbayes.prediction.sampling import NetworkSampler

MAX_KEPT_ELEMENTS = 2**24
"""Largest number of weights and buffers of the drawn networks that a posterior keeps: 64 MiB in single precision."""

TensorMark = tuple[int, int]
"""Address of a tensor, 0 where it has none, and the number of writes to it."""


class DrawSource:
    """Everything that networks are drawn from, with the number of in-place writes to each tensor.

    Attributes:
        common_ids: Identities of the frozen parameters that all members share, which no draw changes.
        num_elements: Number of the other weights, and of buffers, of a network.
    """

    def __init__(self, sampler: NetworkSampler) -> None:
        self._objects = _list_objects(sampler)
        models = [state.model for state in sampler.states]
        self._mappings: list[Mapping[str, object]] = [
            mapping
            for model in models
            for module in list_modules(model)
            for mapping in (module._parameters, module._buffers, module._modules)
        ]
        self._mappings += [state.statistics for state in sampler.states]
        self._values = self._list_values()
        self._tensors = [value for value in self._values if isinstance(value, Tensor)]
        self._tensors += [param for model in models for param in list_parameters(model)]  # also of a class of its own
        self.common_ids = find_common_parameters(models)
        params = [param for param in list_parameters(models[0]) if id(param) not in self.common_ids]
        self.num_elements = sum(tensor.numel() for tensor in (*params, *models[0].buffers()))
        self._marks = mark_tensors(self._tensors)

    def is_current(self, sampler: NetworkSampler) -> bool:
        """Whether nothing of it has been replaced or written to since."""
        objects, values = _list_objects(sampler), self._list_values()
        return (
            (len(objects), len(values)) == (len(self._objects), len(self._values))
            and all(map(is_, objects, self._objects))
            and all(map(is_, values, self._values))
            and mark_tensors(self._tensors) == self._marks
        )

    def _list_values(self) -> list[object]:
        return [value for mapping in self._mappings for value in mapping.values()]


def find_common_parameters(models: Sequence[nn.Module]) -> frozenset[int]:
    """Identities of the frozen parameters that are the same tensors in all networks."""
    frozen = ({id(param) for param in list_parameters(model) if not param.requires_grad} for model in models)
    return frozenset(set.intersection(*frozen))


def _list_objects(sampler: NetworkSampler) -> list[object]:
    states = [item for state in sampler.states for item in (state.model, state.statistics)]
    return [sampler.posterior, sampler.transform, sampler.statistics_inputs, sampler.draw_rule, *states]


def mark_tensors(tensors: Iterable[Tensor]) -> list[TensorMark]:
    """The mark of each tensor, by which a write is noticed without reading values of a device."""
    return [
        (
            tensor.data_ptr() if tensor.layout is torch.strided and to_local(tensor) is tensor else 0,
            count_writes(tensor),
        )
        for tensor in tensors
    ]


class PredictionCache:
    """Predictions by the object that holds the inputs, and by their options; kept as long as this object is."""

    def __init__(self) -> None:
        self._predictions = WeakIdKeyDictionary()

    def get(self, inputs: Inputs, options: Hashable, compute: Callable[[], Predictive]) -> Predictive:
        """The prediction for these inputs, computed if there is none, or the inputs have been written to.

        Not shared are those of iterables, which are read once, and of tensors of inference mode, to which writes are
        not counted. `options` is everything else that the prediction depends on.
        """
        if not hasattr(inputs, "shape") or (isinstance(inputs, Tensor) and inputs.is_inference()):
            return compute()
        version = count_writes(inputs) if isinstance(inputs, Tensor) else 0
        predictions = self._predictions.setdefault(inputs, {})
        if (options, version) not in predictions:
            predictions[options, version] = compute()
        prediction: Predictive = predictions[options, version]
        return prediction
