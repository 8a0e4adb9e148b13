"""The pretend device refuses what a device refuses, and counts what reaches it."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from accelerator.pretend_device import BACKEND, DEVICE, PretendDeviceError, pretend_device


@pytest.mark.parametrize(
    "mix_devices",
    [
        lambda here, there: here + there,
        lambda here, there: torch.cat([here, there]),
        lambda here, there: F.linear(there, torch.ones(3, 4)),
        lambda here, there: there.index_select(0, torch.zeros(1, dtype=torch.int64)),
        lambda here, there: torch._foreach_add([there], [here]),
        lambda here, there: torch._foreach_mul([there], torch.tensor(2.0)),
        lambda here, there: torch.randn(3, generator=torch.Generator(), device=DEVICE),
        lambda here, there: torch.randn(3, generator=torch.Generator(DEVICE)),
        lambda here, there: here.mul_(there.sum()),
    ],
    ids=["add", "cat", "linear", "index", "list", "list and scale", "generator", "generator of the device", "0-dim"],
)
def test_operations_over_two_devices_are_refused(mix_devices):
    with pretend_device():
        here, there = torch.ones(2, 4), torch.ones(2, 4).to(DEVICE)
        with pytest.raises(RuntimeError, match=r"device"):
            mix_devices(here, there)


def test_scales_without_dimensions_may_be_on_the_cpu():
    with pretend_device() as device:
        there = torch.ones(2, device=DEVICE) * torch.tensor(2.0)
    assert there.device == DEVICE
    assert not device.waits


@pytest.mark.parametrize(
    ("read", "kind"),
    [
        (lambda x: x.sum().item(), "read of a value"),
        (lambda x: bool((x > 0).all()), "read of a value"),
        (lambda x: x.cpu(), "copy to the host"),
        (lambda x: x.sum().tolist(), "read of a value"),
        (lambda x: torch.empty(3).copy_(x), "copy to the host"),
        (lambda x: x.to("cpu", non_blocking=True), "copy to the host"),  # memory of the host is not pinned
        (lambda x: torch.ones(3).to(x.device), "copy to the device"),
        (lambda x: x.copy_(torch.ones(3)), "copy to the device"),
        (lambda x: torch._foreach_copy_([x], [torch.ones(3)]), "copy to the device"),
        (lambda x: torch.equal(x, x), "equal"),
        (lambda x: x.nonzero(), "nonzero"),
        (lambda x: x[x > 0], "index by a mask"),
        (lambda x: torch.tensor(2.0, device=x.device), "copy to the device"),
    ],
)
def test_reads_and_copies_are_waits(read, kind):
    with pretend_device() as device:
        x = torch.ones(3, device=DEVICE)
        before = device.waits.total()
        read(x)
    assert device.waits.total() == before + 1
    assert any(kind in place for place in device.waits)


def test_asynchronous_copies_and_computations_are_no_waits():
    with pretend_device() as device:
        x = torch.ones(3).to(DEVICE, non_blocking=True)
        x.add_(1).sum()
        x[x > 0] = 1.0
        torch.full((), 2.0, device=DEVICE)
    assert not device.waits


@pytest.mark.parametrize(
    ("lists", "launches"),
    [
        (lambda: ([torch.ones(3), torch.ones(2, 2)], [torch.ones(3), torch.ones(2, 2)]), 1),
        (lambda: ([torch.ones(3), torch.ones(2).double()], [torch.ones(3), torch.ones(2).double()]), 2),
        (lambda: ([torch.ones(2, 2), torch.ones(3)], [torch.ones(2, 2).t(), torch.ones(3)]), 1),
        (lambda: ([torch.ones(2, 3), torch.ones(3)], [torch.ones(3, 2).t(), torch.ones(3)]), 2),
    ],
    ids=["one dtype", "two dtypes", "equal strides", "other strides"],
)
def test_list_operations_are_one_kernel_where_a_device_has_one(lists, launches):
    left, right = lists()
    if launches == 1 and left[0].ndim == 2:
        right[0] = right[0].contiguous()
    with pretend_device() as device:
        left, right = ([tensor.to(DEVICE) for tensor in tensors] for tensors in (left, right))
        before = device.launches.total()
        torch._foreach_add_(left, right)
    assert device.launches.total() == before + launches


def test_counters_and_checks_for_nan_are_known():
    with pretend_device():
        count = torch.zeros((), dtype=torch.int64, device=DEVICE)
        for expected in (1, 2, 3):
            assert int(count.add_(1)) == expected
        x = torch.randn(3, device=DEVICE)
        assert bool(x.isfinite().all())
        assert int((~x.isfinite()).sum()) == 0
        assert not bool(x.isnan().any())
        assert 0.5 <= float(x.sum()) <= 1.5


def test_training_steps_and_moves_keep_tied_weights():
    with pretend_device():
        model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 4, bias=False))
        model[2].weight = model[0].weight
        model.to(DEVICE)
        assert model[2].weight is model[0].weight
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        F.mse_loss(model(torch.ones(2, 4, device=DEVICE)), torch.ones(2, 4, device=DEVICE)).backward()
        optimizer.step()
        assert model[0].weight.grad.device == DEVICE
        assert next(model.to("cpu").parameters()).device.type == "cpu"


def test_generators_of_the_device_are_advanced_and_seeded():
    with pretend_device():
        BACKEND.manual_seed_all(3)
        before = BACKEND.get_rng_state(DEVICE)
        F.dropout(torch.ones(3, device=DEVICE))
        assert not torch.equal(BACKEND.get_rng_state(DEVICE), before)
        assert torch.equal(BACKEND.get_rng_state(1), before)
        torch.manual_seed(3)
        assert torch.equal(BACKEND.get_rng_state(DEVICE), before)


def test_a_device_without_float64_refuses_it():
    with pretend_device(has_float64=False):
        x = torch.ones(3, device=DEVICE)
        for make_float64 in (
            lambda: x.double(),
            lambda: torch.ones(3, device=DEVICE, dtype=torch.float64),
            lambda: torch.ones(3, dtype=torch.float64).to(DEVICE),
        ):
            with pytest.raises(PretendDeviceError, match="no float64"):
                make_float64()
