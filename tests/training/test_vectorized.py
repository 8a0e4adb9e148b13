"""Networks as one module: what each computes, how it is moved, and how its state is told apart again."""

import copy

import pytest
import torch
from torch import nn

from flatbayes.core import State
from flatbayes.core.context import vectorized
from flatbayes.core.tensor_lists import flatten
from flatbayes.core.weights import trainable_parameters
from flatbayes.training.engine import clip_gradient_norm
from flatbayes.training.vectorized import (
    VectorizedNetworks,
    stack_columns,
    stack_state,
    unstack_columns,
    unstack_states,
    vectorize_loss,
)


class Tied(nn.Module):
    """A tied weight, a frozen one, BatchNorm, and a buffer at the root."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight
        self.frozen = nn.Parameter(torch.randn(4), requires_grad=False)
        self.norm = nn.BatchNorm1d(4)
        self.last = nn.Linear(4, 3)
        self.register_buffer("shift", torch.randn(4))

    def forward(self, x):
        return self.last(self.norm(self.b(self.a(x + self.shift)) * self.frozen))


def networks(count=3):
    return [Tied().double() for _ in range(count)]


def alone(network, num_data=10):
    return State(network, torch.optim.SGD(trainable_parameters(network), lr=0.1, momentum=0.9), num_data)


def test_outputs_gradients_and_buffers_are_those_of_each():
    parts = networks()
    stack = VectorizedNetworks(parts)
    assert {name.removeprefix("network.") for name, _ in stack.named_parameters()} == {
        name for name, _ in parts[0].named_parameters()
    }
    twins = copy.deepcopy(parts)
    x, y = torch.randn(8, 3, 4, dtype=torch.float64), torch.randint(0, 3, (8, 3))
    losses = vectorize_loss(nn.functional.cross_entropy)(stack(x), y)
    losses.sum().backward()
    for k, twin in enumerate(twins):
        loss = nn.functional.cross_entropy(twin(x[:, k]), y[:, k])
        loss.backward()
        torch.testing.assert_close(losses[k], loss, rtol=1e-12, atol=1e-12)
        for name, param in twin.named_parameters():
            whole = stack.network.get_parameter(name)
            assert whole.requires_grad == param.requires_grad
            if param.requires_grad:
                torch.testing.assert_close(whole.grad[k], param.grad, rtol=1e-12, atol=1e-12)
    for network, twin in zip(stack.unstack(), twins, strict=True):
        assert network.b.weight is network.a.weight
        for name, tensor in twin.state_dict().items():
            torch.testing.assert_close(network.state_dict()[name], tensor, rtol=1e-12, atol=1e-12)


def test_a_linear_layers_gradient_is_taken_as_it_is():
    stack = VectorizedNetworks([nn.Linear(5, 7) for _ in range(3)])
    stack(torch.randn(4, 3, 5)).sum().backward()
    assert stack.network.weight.grad.stride() == stack.network.weight.stride()


def test_networks_of_different_shapes_are_refused():
    with pytest.raises(RuntimeError, match="equal size"):
        VectorizedNetworks([nn.Linear(4, 3), nn.Linear(4, 2)])
    with pytest.raises(AttributeError, match="bias"):
        VectorizedNetworks([nn.Linear(4, 3), nn.Linear(4, 3, bias=False)])


def test_clipping_is_that_of_each_network():
    parts = networks()
    stack, limit = VectorizedNetworks(parts), 0.7
    for k, network in enumerate(parts):
        for param in network.parameters():
            if param.requires_grad:
                param.grad = torch.randn_like(param) * 10.0 ** (k - 2)
    for name, param in stack.network.named_parameters():
        if param.requires_grad:
            param.grad = torch.stack([network.get_parameter(name).grad for network in parts])
    norms = [torch.nn.utils.clip_grad_norm_(network.parameters(), limit) for network in parts]
    assert norms[0] < limit < norms[-1]
    with vectorized(3):
        clip_gradient_norm(tuple(stack.parameters()), limit)
    for k, network in enumerate(parts):
        for name, param in network.named_parameters():
            if param.requires_grad:
                torch.testing.assert_close(stack.network.get_parameter(name).grad[k], param.grad)


def test_columns_are_in_the_order_of_flatten():
    parts = networks()
    stack, sizes = VectorizedNetworks(parts), [p.numel() for p in trainable_parameters(parts[0])]
    each = [flatten(trainable_parameters(network)) for network in parts]
    whole = stack_columns(each, sizes)
    assert torch.equal(whole, flatten(trainable_parameters(stack)))
    assert all(torch.equal(a, b) for a, b in zip(unstack_columns(whole, sizes, 3), each, strict=True))
    rows = [torch.stack([one, -one]) for one in each]
    apart = unstack_columns(stack_columns(rows, sizes), sizes, 3)
    assert all(torch.equal(a, b) for a, b in zip(apart, rows, strict=True))


def test_states_are_put_together_and_told_apart():
    parts = networks()
    stack = VectorizedNetworks(parts)
    width = sum(p.numel() for p in trainable_parameters(parts[0]))

    def start(network):
        state = alone(network)
        state.statistics = {"count": torch.tensor(0), "rows": torch.zeros(2, width), "other": torch.zeros(5)}
        return state

    whole = stack_state(stack, start, lambda params: torch.optim.SGD(params, lr=0.1))
    assert {name: tuple(s.shape) for name, s in whole.statistics.items()} == {
        "count": (),
        "rows": (2, 3 * width),
        "other": (5,),
    }
    assert whole.num_data == 10
    whole.statistics["count"] += 4
    whole.statistics["rows"][1] = flatten(trainable_parameters(stack))
    states = unstack_states(whole, stack, start)
    for state, network in zip(states, parts, strict=True):
        assert state.model is network
        assert not network.training
        assert state.statistics["count"] == 4
        torch.testing.assert_close(state.statistics["rows"][1], flatten(trainable_parameters(network)).float())
    states[0].statistics["count"] += 1
    assert states[1].statistics["count"] == 4


def test_a_changed_copy_is_refused():
    with pytest.raises(ValueError, match="changed copy"):
        stack_state(VectorizedNetworks(networks()), lambda network: alone(copy.deepcopy(network)), torch.optim.SGD)
