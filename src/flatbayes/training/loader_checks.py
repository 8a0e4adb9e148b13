"""Trial calls of a network on the batches of a user's loader, before the first step."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from flatbayes.core.networks import cast_inputs
from flatbayes.core.randomness import preserve_rng
from flatbayes.training.data import NUM_CHECK_EXAMPLES, LoaderData
from flatbayes.training.loader_pass import convert_integers, count_rows
from flatbayes.training.run_factory import RunFactory


def check_loader_inputs(factory: RunFactory, data: LoaderData) -> RunFactory:
    """Convert inputs that are integers where the network takes none, and refuse a batch that is too small for it.

    A network that calls an embedding takes integers. No network is built where batches show that nothing is wrong.

    Args:
        factory: Makes the training runs.
        data: Its training data.

    Returns:
        The factory, whose training data convert integers if necessary.

    Raises:
        ValueError: The network takes the inputs in no floating dtype, or cannot be trained on the smallest batch.
    """
    inputs, smallest = data.loader_pass.example_batch[0], data.loader_pass.smallest_inputs
    accumulation_steps = factory.config.optimization.accumulation_steps
    smallest_size = max(1, count_rows(smallest) // accumulation_steps)
    if data.given_num_data is not None:
        smallest_size = min(smallest_size, _predict_last_size(data.loader) or smallest_size)
    is_integer = isinstance(inputs, Tensor) and not (inputs.is_floating_point() or inputs.is_complex())
    if not isinstance(inputs, Tensor) or not (is_integer or smallest_size == 1):
        return factory
    network = factory.init_network(0)
    converts = is_integer and _needs_conversion(network, inputs[:NUM_CHECK_EXAMPLES])
    if converts:
        factory = replace(factory, training_data=replace(data, converts_integers=True))
    if smallest_size == 1:
        sample = smallest[:1]
        _check_batch_of_one(network, convert_integers(sample) if converts else sample, accumulation_steps)
    return factory


def _predict_last_size(loader: object) -> int | None:
    """Size of the last batch of a loader with a batch size, without reading it; None if that is unknown."""
    sampler, size = getattr(loader, "sampler", None), getattr(loader, "batch_size", None)
    try:
        remainder = len(sampler) % size  # type: ignore[arg-type, operator]
    except TypeError:
        return None
    return None if getattr(loader, "drop_last", False) else remainder or size


def _needs_conversion(network: nn.Module, inputs: Tensor) -> bool:
    error = _find_error(network.eval(), inputs)
    if error is None or not isinstance(error, RuntimeError):
        return False  # other errors are not about dtypes, and training raises them
    if any(isinstance(module, nn.Embedding | nn.EmbeddingBag) for module in network.modules()):
        return False
    return _find_error(network, cast_inputs(network, convert_integers(inputs))) is None


def _check_batch_of_one(network: nn.Module, inputs: Tensor, accumulation_steps: int) -> None:
    error = _find_error(network.train(), cast_inputs(network, inputs))
    if isinstance(error, ValueError) and "more than 1 value per channel" in str(error):
        advice = "" if accumulation_steps == 1 else f" or fewer accumulation_steps (now {accumulation_steps})"
        raise ValueError(
            "The smallest batch of the loader has one example for each call of the network, and batch normalization "
            f"cannot be trained on it. Make the loader with drop_last=True, another batch_size{advice}."
        ) from error


@torch.no_grad()
def _find_error(network: nn.Module, inputs: Tensor) -> Exception | None:
    device = next((param.device for param in network.parameters()), torch.device("cpu"))
    with preserve_rng(network):
        try:
            network(inputs.to(device))
        except Exception as error:  # whatever a user's network raises
            return error
    return None
