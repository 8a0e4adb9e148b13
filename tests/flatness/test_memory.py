"""Peak memory of a sharpness-aware gradient, from the profiler."""

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from flatbayes.flatness import ASAM, SAM, Plain
from support import peak_bytes


def measure_peak(flatness, tmp_path) -> float:
    """Peak bytes beyond the weights, in copies of the weights, over two steps of SGD with momentum."""
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
    peak = peak_bytes(recorded, tmp_path / "trace.json")
    return peak / sum(p.numel() * p.element_size() for p in model.parameters())


@pytest.mark.filterwarnings("ignore")  # of the profiler
def test_sharpness_aware_gradients_need_one_copy_of_the_weights_more_than_plain_ones(tmp_path):
    plain = measure_peak(Plain(), tmp_path)
    assert plain == pytest.approx(2.0, abs=0.1)
    assert measure_peak(SAM(), tmp_path) - plain == pytest.approx(1.0, abs=0.1)
    assert measure_peak(ASAM(), tmp_path) - plain < 2.1
