"""Data-parallel prediction: each process predicts a contiguous slice of the inputs."""

from typing import Any

from torch import Tensor

from flatbayes.core.process_group import contiguous_slice, get_process_group_info
from flatbayes.data import LazyImages
from flatbayes.likelihoods import Predictive
from flatbayes.prediction.fitted import FittedPosterior


def predict_distributed(
    fitted: FittedPosterior, inputs: Tensor | LazyImages, num_draws: int = 30, **options: Any
) -> Predictive:
    """`fitted.predict` with the inputs divided among the processes; all processes get all predictions.

    Each example is predicted once, and the order is that of the inputs. Predictions are on the device of the inputs,
    as those of `fitted.predict`, which this is in a single process.

    Args:
        fitted: The posterior, the same in all processes.
        inputs: Examples, the same in all processes.
        num_draws: Number of networks to draw.
        options: Options of `predict`, the same in all processes.

    Raises:
        ValueError: There are no inputs.

    Examples:
        >>> predictive = predict_distributed(fitted, inputs, num_draws=2)  # with torchrun
        >>> predictive.mean.shape
        torch.Size([100, 10])
    """
    world = get_process_group_info()
    if world.size == 1:
        return fitted.predict(inputs, num_draws, **options)
    local_inputs = inputs[contiguous_slice(len(inputs), world)]
    predictive = fitted.predict(local_inputs, num_draws, **options) if len(local_inputs) else None
    gathered = world.all_gather(None if predictive is None else predictive.to("cpu"))
    predictives = [value for value in gathered if value is not None]
    if not predictives:
        raise ValueError("There is nothing to predict: the inputs are empty.")
    return type(predictives[0]).concatenate(predictives).to(inputs.device if isinstance(inputs, Tensor) else "cpu")
