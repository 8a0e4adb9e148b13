"""Operations on many tensors: groups, copies, constants, elementwise functions, and traversal of networks."""

import pytest
import torch
from torch import nn

from flatbayes.core.devices import treat_cpu_as_accelerator
from flatbayes.core.randomness import draw_normal, iter_normal_noise
from flatbayes.core.tensor_lists import (
    clone_tensors,
    copy_values,
    full_tensors,
    group_tensors,
    map_elementwise,
    zero_tensors,
)
from flatbayes.core.traversal import list_modules, list_parameters, named_parameters
from flatbayes.core.weights import perturb
from support import network


def mixed():
    torch.manual_seed(0)
    return [
        torch.randn(3, 2),
        torch.arange(4),
        torch.randn(5),
        torch.randn(2).bfloat16(),
        torch.tensor(7),
        torch.randn(()),
    ]


@pytest.mark.parametrize(
    ("max_entries", "groups"),
    [
        (100, [[0, 2, 5], [1, 4], [3]]),
        (6, [[0], [1, 4], [2, 5], [3]]),
        (1, [[0], [1], [2], [3], [4], [5]]),
    ],
)
def test_groups_are_of_one_dtype_and_of_bounded_size(max_entries, groups):
    assert group_tensors(mixed(), max_entries) == groups


def test_clones_and_copies_keep_values_dtypes_and_memory_formats():
    tensors = [*mixed(), torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last), torch.eye(3).to_sparse()]
    copies = clone_tensors(tensors)
    for tensor, copy in zip(tensors, copies, strict=True):
        assert copy.dtype == tensor.dtype
        assert torch.equal(copy.to_dense(), tensor.to_dense())
        if not tensor.is_sparse:
            assert copy.stride() == tensor.stride()
            assert copy.data_ptr() != tensor.data_ptr()
    zeros = zero_tensors(tensors[:-1])
    copy_values(zeros, tensors[:-1])
    assert all(torch.equal(*pair) for pair in zip(zeros, tensors, strict=False))


def test_constants_have_the_shapes_and_dtypes():
    for tensor, ones in zip(mixed(), full_tensors(mixed(), 1.0), strict=True):
        assert torch.equal(ones, torch.ones_like(tensor))


@pytest.mark.parametrize("as_accelerator", [False, True])
def test_elementwise_functions_are_those_of_each_tensor(as_accelerator):
    tensors = [tensor for tensor in mixed() if tensor.is_floating_point()]
    expected = [tensor.sigmoid() for tensor in tensors]
    if as_accelerator:
        with treat_cpu_as_accelerator():
            results = map_elementwise(torch.sigmoid, tensors)
        torch.testing.assert_close(results, expected)
    else:
        results = map_elementwise(torch.sigmoid, tensors)
        assert all(torch.equal(*pair) for pair in zip(results, expected, strict=True))


def test_noise_on_an_accelerator_is_normal_and_from_the_seed_alone():
    like = [torch.zeros(40, 50), torch.zeros(3000)]
    with treat_cpu_as_accelerator():
        noise, again = draw_normal(like, [7]), draw_normal(like, [7])
        stacked = draw_normal([torch.zeros(2, 40, 50), torch.zeros(2, 3000)], [3, 7], stacked=True)
        drawn = {
            k: values for indices, group in iter_normal_noise(like) for k, values in zip(indices, group, strict=True)
        }
    for tensor, first, second, rows, values in zip(like, noise, again, stacked, drawn.values(), strict=True):
        assert first.shape == values.shape == tensor.shape
        assert torch.equal(first, second)
        assert torch.equal(rows[1], first)
        for sample in (first, values):
            assert abs(sample.mean().item()) < 0.1
            assert abs(sample.std().item() - 1) < 0.1
    assert not torch.equal(noise[0].flatten()[:2000], noise[1][:2000])


@pytest.mark.parametrize("scale", [0.5, torch.tensor(0.5)], ids=["number", "tensor"])
def test_groups_are_perturbed_and_restored_alike(scale, monkeypatch):
    params = [nn.Parameter(tensor) for tensor in mixed() if tensor.is_floating_point()]
    before = [param.detach().clone() for param in params]
    monkeypatch.setattr("flatbayes.core.tensor_lists.MAX_GROUP_ENTRIES", 6)
    with treat_cpu_as_accelerator(), pytest.raises(ArithmeticError):
        memory = [param.data_ptr() for param in params]
        with perturb(params, [torch.ones_like(param) for param in params], scale):
            assert [param.data_ptr() for param in params] == memory
            assert all(torch.equal(param, w + 0.5) for param, w in zip(params, before, strict=True))
            raise ArithmeticError
    assert all(torch.equal(*pair) for pair in zip(params, before, strict=True))


def tied():
    model = network()
    model.append(model[5])  # a module twice
    model.append(nn.Linear(144, 16))
    model[-1].weight = model[5].weight  # a parameter twice
    model.register_module("nothing", None)
    model.own = nn.Parameter(torch.zeros(2))
    return model


@pytest.mark.parametrize(
    "make", [network, tied, lambda: nn.Linear(2, 2), lambda: nn.TransformerDecoderLayer(8, 2, 8)]
)
def test_a_traversal_is_that_of_torch_also_after_a_change(make):
    model = make()
    for _ in range(2):
        assert list_modules(model) == list(model.modules())
        assert list(named_parameters(model).items()) == list(model.named_parameters())
        assert [id(p) for p in list_parameters(model)] == [id(p) for p in model.parameters()]
        model.add_module("0", nn.Linear(3, 3))  # replaces a layer, or adds one
        model.bias = None


def test_a_traversal_respects_a_class_with_parameters_of_its_own():
    class Partial(nn.Linear):
        def named_parameters(self, *args, **kwargs):
            return iter([("weight", self.weight)])

    assert list(named_parameters(Partial(2, 2))) == ["weight"]
    assert len(list_parameters(Partial(2, 2))) == 1
