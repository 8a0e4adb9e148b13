"""What a sharpness-aware step costs in plain steps: the limit is two, plus one pass over the weights.

    make bench

Compare medians of one run; the absolute times are the machine's.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flatbayes import ASAM, SAM, Plain, PreResNet

torch.set_num_threads(1)


def mlp():
    layers = [nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)]
    return nn.Sequential(*layers), torch.randn(64, 64)


def preresnet():
    return PreResNet((3, 32, 32), 10, depth=20), torch.randn(64, 3, 32, 32)


@pytest.mark.parametrize("make", [mlp, preresnet])
@pytest.mark.parametrize("flat", [Plain(), SAM(), ASAM()], ids=lambda f: type(f).__name__)
def test_step(benchmark, make, flat):
    torch.manual_seed(0)
    model, x = make()
    y = torch.randint(0, 10, (len(x),))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss.detach()

    def step():
        flat(closure, model)()
        optimizer.step()

    benchmark.group = make.__name__
    benchmark(step)
