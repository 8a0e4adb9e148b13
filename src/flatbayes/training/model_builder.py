"""Build networks from a class, a function or an instance."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from flatbayes.core.input_trees import ModelInputs
from flatbayes.core.model_arguments import OUTPUT_ARGUMENTS, bind_arguments, find_missing_arguments, select_arguments
from flatbayes.core.network_interface import (
    NetworkInterface,
    OutputSelector,
    adapt_network,
    get_interface,
    get_structure,
    infer_interface,
)
from flatbayes.core.networks import copy_network, find_lazy_tensor, materialize
from flatbayes.core.spec import to_spec

ModelFactory = Callable[..., nn.Module]


def make_model_builder(
    model: nn.Module | ModelFactory,
    model_arguments: Mapping[str, Any],
    get_example: Callable[[], ModelInputs] | None = None,
) -> Callable[[], nn.Module]:
    """A function that builds the network with those of the given arguments that it has parameters for.

    `get_example` returns inputs with which the weights of lazy modules are created; None leaves them lazy.

    Raises:
        TypeError: The model is neither a network nor callable, arguments are missing, or `partial` has bound one that
            it does not have.
    """
    if isinstance(model, nn.Module):
        return lambda: _materialize(copy_network(model), get_example)
    if not callable(model):
        raise TypeError(f"Expected a network, or a class or function that builds one, got {type(model).__name__}.")
    arguments = bind_arguments(model, model_arguments, "the data")

    def build_model() -> nn.Module:
        try:
            module = model(**arguments)
        except Exception as error:
            function = model.func if isinstance(model, partial) else model
            error.add_note(f"({type(error).__name__} while {getattr(function, '__name__', 'the model')} was built)")
            raise
        if not isinstance(module, nn.Module):
            raise TypeError(f"{model!r} must build a torch.nn.Module, and returned a {type(module).__name__}.")
        return _materialize(module, get_example)

    return build_model


def build_without_data(model: nn.Module | ModelFactory) -> nn.Module | None:
    """The network itself, or that of a function; None where what builds it needs arguments."""
    if isinstance(model, nn.Module):
        return model
    return None if not callable(model) or find_missing_arguments(model, {}) else make_model_builder(model, {})()


def is_model_class(model: nn.Module | ModelFactory) -> bool:
    """Whether a class, perhaps with arguments of `functools.partial`, builds the networks: their weights are new."""
    return inspect.isclass(model.func if isinstance(model, partial) else model)


def takes_num_outputs(model: nn.Module | ModelFactory, model_arguments: Mapping[str, Any]) -> bool:
    """Whether what builds the network is told the number of outputs."""
    if isinstance(model, nn.Module):
        return False
    return bool(select_arguments(model, model_arguments).keys() & {*OUTPUT_ARGUMENTS})


def describe_model(model: nn.Module | ModelFactory, model_arguments: Mapping[str, Any]) -> dict[str, Any] | None:
    """Plain data from which the network can be built; None for an instance or a lambda."""
    if isinstance(model, nn.Module):
        return None
    try:
        spec: dict[str, Any] = to_spec(partial(model, **select_arguments(model, model_arguments)))
    except TypeError:
        return None
    return spec


def make_adapted_builder(
    build_model: Callable[[], nn.Module],
    get_example: Callable[[], ModelInputs],
    output: OutputSelector | None = None,
) -> Callable[[], nn.Module]:
    """A function that builds networks that take the inputs of a batch as one argument, and return one tensor.

    The first network is called once to find out how. A network that takes and returns one tensor stays as it is. What
    is returned raises a ValueError if the network does not take such inputs, or if it is not clear which of its
    outputs to use.
    """
    interfaces: list[NetworkInterface | None] = []  # of the first network

    def build_adapted() -> nn.Module:
        network = build_model()
        if not interfaces:
            interfaces.append(infer_interface(network, get_example(), output))
        interface = interfaces[0]
        return network if interface is None else adapt_network(network, interface.output, inputs=interface.inputs)

    return build_adapted


def _materialize(network: nn.Module, get_example: Callable[[], ModelInputs] | None) -> nn.Module:
    if get_example is not None and find_lazy_tensor(network) is not None:
        example, interface = get_example(), get_interface(network)
        if get_structure(example) is not None:
            adapt_network(network, interface.output, inputs=interface.inputs)  # it may take them one by one
        materialize(network, example)
    return network
