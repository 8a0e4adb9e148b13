"""What a sharp gradient holds at once, counted by the profiler."""

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from flatbayes.flatness import ASAM, SAM, Plain
from support import peak_bytes


def most_held(flatness, tmp_path) -> float:
    """Most bytes beyond the weights, in copies of the weights, over two steps of SGD with momentum."""
    model = nn.Sequential(*(nn.Linear(200, 200) for _ in range(4)))
    x = torch.randn(2, 200)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def closure():
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss.detach()

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        for _ in range(2):
            flatness(closure, model)()
            optimizer.step()
    most = peak_bytes(recorded, tmp_path / "trace.json")
    return most / sum(p.numel() * p.element_size() for p in model.parameters())


@pytest.mark.filterwarnings("ignore")  # of the profiler
def test_sharp_gradients_hold_one_copy_of_the_weights_more_than_plain_ones(tmp_path):
    plain = most_held(Plain(), tmp_path)
    assert plain == pytest.approx(2.0, abs=0.1)
    assert most_held(SAM(), tmp_path) - plain == pytest.approx(1.0, abs=0.1)
    assert most_held(ASAM(), tmp_path) - plain < 2.1
