"""Trial calls of a network on integer inputs and on the smallest batch, before the first step."""

import warnings
from dataclasses import replace
from math import prod

import torch
from torch import Tensor, nn
from torch.utils.data import DistributedSampler, WeightedRandomSampler

from flatbayes.core.buffers import set_training_mode
from flatbayes.core.input_trees import ModelInputs, cast_integers, count_examples, map_tensors, slice_examples
from flatbayes.core.names import format_count, format_names
from flatbayes.core.networks import cast_inputs
from flatbayes.core.randomness import preserve_rng
from flatbayes.data.checks import DataWarning
from flatbayes.data.split_checks import MAX_LISTED_CLASSES
from flatbayes.likelihoods import Categorical
from flatbayes.likelihoods.custom import unwrap_custom
from flatbayes.training.batches import list_samplers
from flatbayes.training.data import NUM_CHECK_EXAMPLES, InMemoryData
from flatbayes.training.distributed.launch import get_process_layout
from flatbayes.training.loader_data import LoaderData
from flatbayes.training.loader_pass import predict_last_size
from flatbayes.training.run_factory import RunFactory


def warn_of_missing_classes(data: LoaderData) -> None:
    """Warn of outputs of a network that are classes without a training example, where all examples were read."""
    likelihood, trained = unwrap_custom(data.infer_likelihood()), data.loader_pass.classes
    is_share = isinstance(getattr(data.loader, "sampler", None), DistributedSampler)
    if not isinstance(likelihood, Categorical) or not trained or is_share or data.given_num_data is not None:
        return
    names = [*data.class_names, *map(str, range(len(data.class_names), likelihood.num_classes))]
    missing = [names[label] for label in range(likelihood.num_classes) if label not in trained]
    if missing:
        verb = "has" if len(missing) == 1 else "have"
        warnings.warn(
            f"{len(missing)} of the {likelihood.num_classes} classes {verb} no training example: "
            f"{format_names(missing, MAX_LISTED_CLASSES)}. If the data have fewer classes than the network has "
            "outputs, new_head=True gives it a last layer of the right size.",
            category=DataWarning,
            stacklevel=5,
        )


def warn_of_weights(loader: object, stacklevel: int = 5) -> None:
    """Warn of a sampler that draws some examples more often than others, such as those of rare classes."""
    weights = [sampler.weights for sampler in list_samplers(loader) if isinstance(sampler, WeightedRandomSampler)]
    if any(float(values.min()) < float(values.max()) for values in weights):
        warnings.warn(
            "The WeightedRandomSampler of the loader draws some examples more often than others: predictions are "
            "those for data of these proportions, and overestimate what is drawn too often. Train in the natural "
            "proportion and take decisions of least expected cost, flatbayes.decisions.decide, or "
            "calibrate(fitted, validation, method='vector') with examples in their natural proportion.",
            category=DataWarning,
            stacklevel=stacklevel,
        )


def check_loader_inputs(factory: RunFactory, data: LoaderData) -> RunFactory:
    """Convert inputs that are integers where the network takes none, and refuse a batch that is too small for it.

    A network that calls an embedding takes integers. No network is built where batches show that nothing is wrong.

    Returns:
        The factory, whose training data convert integers if necessary.

    Raises:
        ValueError: The network takes the inputs in no floating dtype, or cannot be trained on the smallest batch.
    """
    inputs, smallest = data.loader_pass.example_batch[0], data.loader_pass.smallest_inputs
    accumulation_steps = factory.config.optimization.accumulation_steps
    smallest_size = max(1, count_examples(smallest) // accumulation_steps)
    if data.given_num_data is not None:
        smallest_size = min(smallest_size, predict_last_size(data.loader) or smallest_size)
    is_integer = isinstance(inputs, Tensor) and not (inputs.is_floating_point() or inputs.is_complex())
    if not (is_integer or smallest_size == 1):
        return factory
    network = factory.init_network(0)
    converts = is_integer and _needs_conversion(network, inputs[:NUM_CHECK_EXAMPLES])
    if converts:
        factory = replace(factory, training_data=data.with_changes(converts_integers=True))
    if smallest_size == 1:
        sample = smallest[:1] if isinstance(smallest, Tensor) else slice_examples(inputs, slice(1))
        _check_batch_of_one(
            network,
            cast_integers(sample) if converts else sample,
            f"Make the loader with drop_last=True, another batch_size{_advise_steps(accumulation_steps)}",
        )
    return factory


def check_batch_size(factory: RunFactory, data: InMemoryData) -> None:
    """Refuse a batch size at which a network with batch normalization gets one example at a time."""
    config, train = factory.config, data.splits.train
    num_processes, steps = prod(get_process_layout(config)), config.optimization.accumulation_steps
    size = min(config.batch_size, len(train))
    if size // num_processes // steps > 1:
        return
    shared = "" if num_processes == 1 else f", in {num_processes} processes"
    advice = f"Use a larger batch_size (now {config.batch_size}, of {format_count(len(train), 'example')}{shared})"
    sample = data.standardize(train.inputs[:1])
    _check_batch_of_one(factory.init_network(0), sample, advice + _advise_steps(steps))


def _advise_steps(accumulation_steps: int) -> str:
    return "" if accumulation_steps == 1 else f" or fewer accumulation_steps (now {accumulation_steps})"


def _needs_conversion(network: nn.Module, inputs: Tensor) -> bool:
    error = _find_error(network.eval(), inputs)
    if error is None or not isinstance(error, RuntimeError):
        return False  # other errors are not about dtypes, and training raises them
    if any(isinstance(module, nn.Embedding | nn.EmbeddingBag) for module in network.modules()):
        return False
    return _find_error(network, cast_inputs(network, cast_integers(inputs))) is None


def _check_batch_of_one(network: nn.Module, inputs: ModelInputs, advice: str) -> None:
    set_training_mode(network)
    error = _find_error(network, cast_inputs(network, inputs))
    if isinstance(error, ValueError) and "more than 1 value per channel" in str(error):
        raise ValueError(
            "A training batch has one example for each call of the network, and batch normalization cannot be "
            f"trained on one. {advice}."
        ) from error


@torch.no_grad()
def _find_error(network: nn.Module, inputs: ModelInputs) -> Exception | None:
    device = next((param.device for param in network.parameters()), torch.device("cpu"))
    with preserve_rng(network):
        try:
            network(map_tensors(lambda tensor: tensor.to(device), inputs))
        except Exception as error:  # whatever a user's network raises
            return error
    return None
