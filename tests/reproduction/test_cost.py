"""Estimated costs of cells against counts and recorded allocations."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from flatbayes.core import TrainingProgress
from flatbayes.data import CIFAR10
from flatbayes.models import WideResNet
from reproduction import TableConfig, estimate_cost, load_cells
from reproduction.cost import count_training_examples
from support import peak_bytes

COPIES = {
    "map-plain": 3, "map-flat": 4, "mc-dropout-flat": 4, "ensemble-flat": 4, "swag-diag-flat": 6, "swag-plain": 25,
    "swag-flat": 26,
}  # fmt: skip


def cell(name, table="cifar10"):
    (found,) = load_cells(table, name)
    return found


@pytest.mark.parametrize(("name", "copies"), COPIES.items())
def test_copies_of_the_weights(name, copies):
    cost = estimate_cost(cell(f"wrn28x10-{name}"))
    assert cost.num_params == 36_479_194
    assert cost.weight_copies == pytest.approx(copies, abs=1e-6)
    assert cost.gigabytes == pytest.approx(copies * 0.146, rel=1e-3)


def test_copies_of_variational_weights():  # BatchNorm has no distribution
    assert estimate_cost(cell("resnet18-sgvb-flat")).weight_copies == pytest.approx(10, abs=0.01)
    assert estimate_cost(cell("resnet18-sgvb-lrt-flat")).weight_copies == pytest.approx(9, abs=0.01)


def test_gradients():
    steps = 300 * (45_000 // 128)
    assert estimate_cost(cell("preresnet164-swag-plain")).num_gradients == steps
    assert estimate_cost(cell("preresnet164-ensemble-flat")).num_gradients == 6 * steps
    few = TableConfig(table="cifar10", cell_pattern="preresnet164-swag-flat", max_examples=64, epochs=3)
    assert estimate_cost(few.cells[0]).num_gradients == 2 * 3 * 8
    assert count_training_examples(CIFAR10(val_size=0.1)) == 45_000


@pytest.mark.filterwarnings("ignore")  # of the profiler
def test_recorded_memory_of_training_equals_the_estimate(tmp_path):
    small = replace(cell("wrn28x10-swag-flat"), model=partial(WideResNet, depth=10, width=4))
    torch.manual_seed(0)
    network = small.model(input_shape=(3, 8, 8), num_classes=10)
    x, y = torch.randn(1, 3, 8, 8), torch.zeros(1, dtype=torch.int64)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        state, course = small.posterior.init(network, small.config.optimizer, 100), TrainingProgress(total_steps=3)

        def closure():
            state.optimizer.zero_grad()
            loss = F.cross_entropy(network(x), y)
            loss.backward()
            return loss.detach()

        network.eval()
        for _ in range(3):
            small.posterior.step(state, small.flatness(closure, network, course))
            small.posterior.collect(state)
            course.advance()
    most = peak_bytes(recorded, tmp_path / "trace.json")
    weights = 4 * sum(param.numel() for param in network.parameters())
    decayed = 4 * max(param.numel() for param in network.parameters())  # gradient plus weight decay, in the optimizer
    assert (most - decayed) / weights + 1 == pytest.approx(estimate_cost(small).weight_copies, abs=0.15)
