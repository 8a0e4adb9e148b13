"""Vectorized networks: several networks of one architecture in one module, by `torch.func.vmap`.

Every parameter and buffer is stacked along a new first dimension. The gradient of the sum of the losses is the
gradient of each network, and an elementwise optimizer updates each network as it would alone.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import vmap

from flatbayes.core import LossFn, OptimizerFactory, State
from flatbayes.core.network_calls import call_with_tensors
from flatbayes.core.networks import copy_network, named_tensors
from flatbayes.core.padding import mark_padding_rows
from flatbayes.core.weights import trainable_parameters


class VectorizedNetworks(nn.Module):
    """Several networks that run at once, each on a batch of its own.

    Parameters have the names of those of a network, with the prefix `network.`.

    They are not trained; `unstack` updates them.

    Raises:
        RuntimeError: Their tensors have different shapes.
        AttributeError: They have different tensors.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.network = copy_network(networks[0])
        self._networks = tuple(networks)  # in a tuple, so that they are not submodules
        shared: dict[int, Tensor] = {}  # tied tensors stay tied
        for module_name, module in self.network.named_modules():
            places = [net.get_submodule(module_name) for net in networks]
            for name, param in module._parameters.items():
                if param is not None:
                    rows = torch.stack([place.get_parameter(name).detach() for place in places])
                    if rows.ndim == 3:  # the layout of the gradient of a linear layer under vmap, which saves a copy
                        rows = rows.mT.contiguous().mT
                    stacked = shared.setdefault(id(param), nn.Parameter(rows, requires_grad=param.requires_grad))
                    module._parameters[name] = stacked
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    stacked = torch.stack([place.get_buffer(name) for place in places])
                    module._buffers[name] = shared.setdefault(id(buffer), stacked)
        mark_padding_rows(self.network)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs of every network for its own batch; inputs and outputs are [batch, networks, ...]."""

        def run_network(tensors: dict[str, Tensor], inputs: Tensor) -> Tensor:
            return call_with_tensors(self.network, tensors, inputs)

        stacked: Tensor = vmap(run_network, in_dims=(0, 1), out_dims=1)(named_tensors(self.network), x)
        return stacked

    def unstack(self) -> tuple[nn.Module, ...]:
        """The networks given to the constructor, with the current weights and buffers of this module."""
        with torch.no_grad():
            for name, param in self.network.named_parameters():
                for net, row in zip(self._networks, param, strict=True):
                    net.get_parameter(name).copy_(row)
            for name, buffer in self.network.named_buffers():
                for net, row in zip(self._networks, buffer, strict=True):
                    net.get_buffer(name).copy_(row)
        return self._networks


def vectorize_loss(loss_fn: LossFn) -> LossFn:
    """The loss of every network, [networks], from outputs and targets with networks as second dimension."""
    vectorized_loss: Callable[[Tensor, Tensor], Tensor] = vmap(loss_fn, in_dims=1)
    return vectorized_loss


def stack_state(
    stack: VectorizedNetworks, init_state: Callable[[nn.Module], State], make_optimizer: OptimizerFactory
) -> State:
    """The state of vectorized networks before the first step.

    A statistic whose last dimension has one entry per trainable weight gets one per weight of all networks, in the
    order of `flatten`; any other statistic is shared by all networks.

    Raises:
        ValueError: The posterior trains a changed copy of the network.
    """
    networks = stack.unstack()
    state = init_state(networks[0])
    if state.model is not networks[0]:
        raise ValueError("the posterior trains a changed copy of the network, which is not vectorized")
    sizes = [param.numel() for param in trainable_parameters(networks[0])]
    statistics = {
        name: stack_columns([statistic] * len(networks), sizes) if is_per_weight(statistic, sizes) else statistic
        for name, statistic in state.statistics.items()
    }
    return State(stack, make_optimizer(trainable_parameters(stack)), state.num_data, statistics)


def unstack_states(
    stacked_state: State, stack: VectorizedNetworks, init_state: Callable[[nn.Module], State]
) -> list[State]:
    """The current state of every vectorized network: the inverse of `stack_state`."""
    states = [init_state(network.eval()) for network in stack.unstack()]
    if stacked_state.updated_buffers is not None:
        for state in states:
            state.updated_buffers = frozenset(name.partition(".")[2] for name in stacked_state.updated_buffers)
    sizes = [param.numel() for param in trainable_parameters(states[0].model)]
    for name, statistic in stacked_state.statistics.items():
        if is_per_weight(states[0].statistics[name], sizes):
            rows = unstack_columns(statistic, sizes, len(states))
        else:
            rows = [statistic.clone() for _ in states]
        for state, row in zip(states, rows, strict=True):
            state.statistics[name] = row
    return states


def stack_columns(statistics: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    """A statistic of all networks, [..., networks * params], in the order of `flatten`.

    Each statistic is [..., params]; `sizes` are the numbers of entries of every parameter of one network.
    """
    pieces = torch.stack(list(statistics), dim=-2).split(list(sizes), dim=-1)
    return torch.cat([piece.flatten(-2) for piece in pieces], dim=-1)


def unstack_columns(statistic: Tensor, sizes: Sequence[int], num_networks: int) -> list[Tensor]:
    """The statistic of every network: the inverse of `stack_columns`."""
    pieces = statistic.split([num_networks * size for size in sizes], dim=-1)
    return list(torch.cat([piece.unflatten(-1, (num_networks, -1)) for piece in pieces], dim=-1).unbind(-2))


def is_per_weight(statistic: Tensor, sizes: Sequence[int]) -> bool:
    """Whether the last dimension of a statistic has one entry per weight."""
    return statistic.ndim > 0 and statistic.shape[-1] == sum(sizes)
