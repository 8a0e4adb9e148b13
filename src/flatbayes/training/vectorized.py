"""Networks of one architecture as one module: every parameter and buffer stacked along a new first dimension.

Entry by entry everything is as for one network: of the sum of the networks' losses each gets its own gradient, and
an optimiser that works entry by entry moves each as it would alone.
"""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from flatbayes.core import LossFn, OptimizerFactory, State
from flatbayes.core.weights import trainable_parameters


class VectorizedNetworks(nn.Module):
    """Several networks that run at once, each on a batch of its own.

    Parameters have the names of a network's own, after `network.`.

    Args:
        networks: Networks of one architecture, on one device. They are kept, and not trained: see `apart`.

    Raises:
        RuntimeError: Their tensors have different shapes.
        AttributeError: They have different tensors.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.network = copy.deepcopy(networks[0])
        self._networks = tuple(networks)  # in a tuple, so that they are no submodules
        shared: dict[int, Tensor] = {}  # a tied tensor stays tied
        for module_name, module in self.network.named_modules():
            places = [net.get_submodule(module_name) for net in networks]
            for name, param in module._parameters.items():
                if param is not None:
                    rows = torch.stack([place.get_parameter(name).detach() for place in places])
                    if (
                        rows.ndim == 3
                    ):  # the layout that vmap gives a linear layer's gradient, which is then not copied
                        rows = rows.mT.contiguous().mT
                    whole = shared.setdefault(id(param), nn.Parameter(rows, requires_grad=param.requires_grad))
                    module._parameters[name] = whole
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    whole = torch.stack([place.get_buffer(name) for place in places])
                    module._buffers[name] = shared.setdefault(id(buffer), whole)

    def forward(self, x: Tensor) -> Tensor:
        """Every network's outputs for its own batch.

        Args:
            x: Inputs, [batch, networks, ...].

        Returns:
            Outputs, [batch, networks, ...].
        """

        def run_network(params: dict[str, Tensor], buffers: dict[str, Tensor], inputs: Tensor) -> Tensor:
            outputs: Tensor = functional_call(self.network, (params, buffers), (inputs,))
            return outputs

        params: dict[str, Tensor] = dict(self.network.named_parameters())
        buffers = dict(self.network.named_buffers())
        every: Tensor = vmap(run_network, in_dims=(0, 0, 1), out_dims=1)(params, buffers, x)
        return every

    def unstack(self) -> tuple[nn.Module, ...]:
        """The networks that were given, with the weights and buffers that this module has now."""
        with torch.no_grad():
            for name, param in self.network.named_parameters():
                for net, row in zip(self._networks, param, strict=True):
                    net.get_parameter(name).copy_(row)
            for name, buffer in self.network.named_buffers():
                for net, row in zip(self._networks, buffer, strict=True):
                    net.get_buffer(name).copy_(row)
        return self._networks


def vectorize_loss(loss_fn: LossFn) -> LossFn:
    """The loss of every network, shape (networks,), from outputs and targets with networks as second dimension."""
    every: Callable[[Tensor, Tensor], Tensor] = vmap(loss_fn, in_dims=1)
    return every


def stack_state(
    stack: VectorizedNetworks, init_state: Callable[[nn.Module], State], make_optimizer: OptimizerFactory
) -> State:
    """The state of a stack before the first step, from that of one network.

    A statistic whose last dimension has an entry for every trainable weight gets one for every weight of the stack,
    in the order of `flatten`; what is not of that form is common to all networks.

    Args:
        stack: The networks.
        init_state: The state of one network before the first step.
        make_optimizer: Builds the optimiser of all.

    Raises:
        ValueError: The posterior trains a changed copy of the network.
    """
    networks = stack.unstack()
    singles = init_state(networks[0])
    if singles.model is not networks[0]:
        raise ValueError("the posterior trains a changed copy of the network, which is not stacked")
    sizes = [param.numel() for param in trainable_parameters(networks[0])]
    statistics = {
        name: stack_columns([statistic] * len(networks), sizes) if _is_per_weight(statistic, sizes) else statistic
        for name, statistic in singles.statistics.items()
    }
    return State(stack, make_optimizer(trainable_parameters(stack)), singles.num_data, statistics)


def unstack_states(
    stacked_state: State, stack: VectorizedNetworks, init_state: Callable[[nn.Module], State]
) -> list[State]:
    """The state of every network in a stack, as far as it has come: the inverse of `stack_state`."""
    singles = [init_state(network.eval()) for network in stack.unstack()]
    sizes = [param.numel() for param in trainable_parameters(singles[0].model)]
    for name, statistic in stacked_state.statistics.items():
        wide = _is_per_weight(singles[0].statistics[name], sizes)
        rows = unstack_columns(statistic, sizes, len(singles)) if wide else [statistic.clone() for _ in singles]
        for single, row in zip(singles, rows, strict=True):
            single.statistics[name] = row
    return singles


def stack_columns(statistics: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    """One statistic of all networks, tensor by tensor as `flatten` has the weights of their stack.

    Args:
        statistics: Of each network, [..., params].
        sizes: Entries of every tensor of one network.
    """
    pieces = torch.stack(list(statistics), dim=-2).split(list(sizes), dim=-1)
    return torch.cat([piece.flatten(-2) for piece in pieces], dim=-1)


def unstack_columns(statistic: Tensor, sizes: Sequence[int], num_networks: int) -> list[Tensor]:
    """That statistic of every network: the inverse of `stack_columns`."""
    pieces = statistic.split([num_networks * size for size in sizes], dim=-1)
    return list(torch.cat([piece.unflatten(-1, (num_networks, -1)) for piece in pieces], dim=-1).unbind(-2))


def _is_per_weight(statistic: Tensor, sizes: Sequence[int]) -> bool:
    return statistic.ndim > 0 and statistic.shape[-1] == sum(sizes)
