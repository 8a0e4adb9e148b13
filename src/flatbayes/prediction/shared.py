"""Predictions that several evaluations of the same inputs share."""

from collections.abc import Callable, Hashable

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from flatbayes.core.tensor_lists import count_writes
from flatbayes.likelihoods import Predictive
from flatbayes.prediction.inputs import Inputs


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
