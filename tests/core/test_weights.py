"""Weight edits: values inside the contexts, bit-for-bit restoration, and blocks of the flat vector."""

import pytest
import torch
from torch import nn

from flatbayes.core.devices import is_accelerator
from flatbayes.core.tensor_lists import ReusableMemory, flatten, unflatten
from flatbayes.core.weights import iter_blocks, perturb, swap_values, trainable_parameters, write_blockwise


def params():
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(5))]


def test_perturb_adds_and_restores_bit_for_bit():
    ps = params()
    before = [p.detach().clone() for p in ps]
    directions = [torch.full_like(p, 1e-3) * torch.randn_like(p) for p in ps]
    passed = list(directions)
    with perturb(ps, passed):
        assert not passed  # so that its memory can be freed
        for p, w, e in zip(ps, before, directions, strict=True):
            assert torch.equal(p, w + e)
    assert all(torch.equal(p, w) for p, w in zip(ps, before, strict=True))


@pytest.mark.parametrize("scale", [0.5, torch.tensor(0.5)], ids=["number", "tensor"])
@pytest.mark.parametrize("kind", ["own", "views", "shared", "subclass"])
def test_perturb_is_the_same_for_views_shared_memory_and_subclasses(kind, scale):
    class Special(torch.Tensor):
        pass

    ps = params()
    if kind == "views":  # of one vector, as where parameters are flattened
        vector = flatten(ps)
        for p, view in zip(ps, unflatten(vector, ps), strict=True):
            p.data = view
    elif kind == "shared":
        ps = [*ps, nn.Parameter(torch.zeros(5))]
        ps[2].data = ps[1].data
    elif kind == "subclass":
        ps = [p.detach().as_subclass(Special) for p in ps]
    memory = [p.data_ptr() for p in ps]
    before = [p.detach().clone() for p in ps]
    with perturb(ps, [torch.ones_like(p) for p in ps], scale):
        where = [p.data_ptr() for p in ps]
        assert all(torch.equal(p, w + 0.5) for p, w in zip(ps[:2], before, strict=False))
    assert (where == memory) is (kind != "own" or is_accelerator(ps[0]))
    assert [p.data_ptr() for p in ps] == memory
    assert all(torch.equal(p, w) for p, w in zip(ps, before, strict=True))


def test_swap_values_converts_and_nests():
    ps = params()
    before = [p.detach().clone() for p in ps]
    with swap_values(ps, [torch.ones(3, 4, dtype=torch.float64), torch.ones(5)]):
        assert all((p == 1).all() and p.dtype == torch.float32 for p in ps)
        with swap_values(ps, [torch.zeros(3, 4), torch.zeros(5)]):
            assert all((p == 0).all() for p in ps)
        assert all((p == 1).all() for p in ps)
    assert all(torch.equal(p, w) for p, w in zip(ps, before, strict=True))


@pytest.mark.parametrize("context", [perturb, swap_values])
def test_restores_after_an_exception(context):
    ps = params()
    before = [p.detach().clone() for p in ps]
    with pytest.raises(KeyboardInterrupt), context(ps, [torch.ones_like(p) for p in ps]):
        raise KeyboardInterrupt
    assert all(torch.equal(p, w) for p, w in zip(ps, before, strict=True))


def test_restores_when_the_edit_itself_fails():
    ps = params()
    before = [p.detach().clone() for p in ps]
    with pytest.raises(RuntimeError), perturb(ps, [torch.ones(3, 4), torch.ones(7)]):
        pass
    assert all(torch.equal(p, w) for p, w in zip(ps, before, strict=True))


@pytest.mark.parametrize("whole", [True, False])
def test_write_blockwise_calls_each_block_once_and_restores(whole):
    ps = params()
    if not whole:
        vector = flatten(ps)
        for p, view in zip(ps, unflatten(vector, ps), strict=True):
            p.data = view
    before, slices, values = flatten(ps), [], torch.arange(17.0)

    def make_block(block_slice):
        slices.append((block_slice.start, block_slice.stop))
        return values[block_slice]

    with pytest.raises(KeyboardInterrupt), write_blockwise(ps, make_block, 6):
        assert torch.equal(flatten(ps), values)
        raise KeyboardInterrupt
    assert slices == [(0, 6), (6, 12), (12, 17)]
    assert torch.equal(flatten(ps), before)


def test_flatten_and_unflatten_are_inverse():
    ps = params()
    vector = flatten(ps)
    assert vector.shape == (17,)
    assert all(torch.equal(a, b) for a, b in zip(unflatten(vector, ps), ps, strict=True))
    vector.zero_()
    assert ps[0].abs().sum() > 0


def test_trainable_parameters_leave_out_frozen_ones_and_count_tied_ones_once():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    model[1].bias.requires_grad_(False)
    assert [p.shape for p in trainable_parameters(model)] == [(2, 2), (2,)]


def test_autocast_uses_the_new_weights_inside_its_block():
    layer, x = nn.Linear(4, 4, bias=False), torch.ones(1, 4)
    with torch.autocast("cpu", torch.bfloat16):
        before = layer(x)
        with swap_values([layer.weight], [torch.zeros(4, 4)]):
            assert (layer(x) == 0).all()
        assert torch.equal(layer(x), before)


@pytest.mark.parametrize("size", [1, 3, 5, 12, 16, 17, 100])
def test_blocks_are_slices_of_the_flat_vector(size):
    ps = [*params(), nn.Parameter(torch.randn(()))]
    vector, end = flatten(ps), 0
    for place, pieces in iter_blocks(ps, size):
        assert place.start == end
        end = place.stop
        assert torch.equal(torch.cat(pieces), vector[place])
        assert end - place.start == size or end == len(vector)
    assert end == len(vector)


@pytest.mark.parametrize("size", [4, 100])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_write_blockwise_works_for_any_memory_format(size, order):
    ps = [nn.Parameter(torch.randn(2, 3, 2, 2).to(memory_format=order)), nn.Parameter(torch.randn(5))]
    before, values = [p.detach().clone() for p in ps], torch.randn(29)
    with pytest.raises(KeyboardInterrupt), write_blockwise(ps, lambda place: values[place], size):
        assert torch.equal(flatten(ps), values)
        raise KeyboardInterrupt
    assert all(torch.equal(p, w) for p, w in zip(ps, before, strict=True))


@pytest.mark.cpu_path  # on accelerators the weights keep their memory
@pytest.mark.parametrize("scale", [0.5, torch.tensor(0.5)], ids=["number", "tensor"])
def test_perturbed_weights_overwrite_directions_on_request_only(scale):
    ps = params()
    before, directions = [p.detach().clone() for p in ps], [torch.ones_like(p) for p in ps]
    with perturb(ps, list(directions), scale, memory=ReusableMemory()):
        assert all(torch.equal(p, w + 0.5) for p, w in zip(ps, before, strict=True))
    assert all((d == 1).all() for d in directions)
    transposed = torch.ones(4, 3).T
    directions = [transposed, directions[1]]
    with perturb(ps, list(directions), scale, overwrite=True):
        assert all(torch.equal(p, w + 0.5) for p, w in zip(ps, before, strict=True))
        assert ps[1].data_ptr() == directions[1].data_ptr()
        assert ps[0].is_contiguous()  # whatever the memory format of the direction
    assert all(torch.equal(p, w) for p, w in zip(ps, before, strict=True))


@pytest.mark.cpu_path  # on accelerators the weights keep their memory
def test_weights_are_restored_bit_for_bit_when_memory_is_reused():
    ps, memory = params(), ReusableMemory()
    before, addresses = [p.detach().clone() for p in ps], set()
    for size in (1.0, 2.0, 3.0):
        with perturb(ps, [torch.full_like(p, size) for p in ps], memory=memory):
            assert all(torch.equal(p, w + size) for p, w in zip(ps, before, strict=True))
            addresses.add(ps[0].data_ptr())
        assert all(torch.equal(p, w) for p, w in zip(ps, before, strict=True))
    assert len(addresses) == 1
    assert ps[0].data_ptr() not in addresses


def test_memory_is_reused_for_the_same_layout_by_one_user_at_a_time():
    memory, like = ReusableMemory(), [torch.randn(2, 3, 4, 4), torch.randn(5)]
    first, second = memory.take(like), memory.take(like)
    assert not {t.data_ptr() for t in first} & {t.data_ptr() for t in second}
    memory.put(first)
    assert memory.take(like) is first
    for other in (like[:1], [like[0].double(), like[1]], [like[0].to(memory_format=torch.channels_last), like[1]]):
        memory.put(first)
        taken = memory.take(other)
        assert [(t.dtype, t.shape, t.stride()) for t in taken] == [(t.dtype, t.shape, t.stride()) for t in other]
