"""Peak memory of a sharpness-aware step, from the profiler, on the CPU and as on an accelerator."""

from contextlib import nullcontext
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from flatbayes.core import TrainingProgress, subset_batch, tensor_lists
from flatbayes.core.devices import treat_cpu_as_accelerator
from flatbayes.core.spec import short_name
from flatbayes.flatness import LESAM, MSAM, SAM, Plain
from support import FLAT, distribute_all_weights, innermost, named, peak_bytes

TWO_COPIES = {"MSAM", "VaSSO", "FriendlySAM", "WSAM", "GSAM", "StableSAM", "MSharpness"}
COPIES_MORE = {**dict.fromkeys(TWO_COPIES, 2.0), "LookSAM": 4.0}
"""Copies of the weights beyond those of a plain step, where these are not one: some store a sum or average of
gradients, hold the plain gradient, or the sum over sub-batches. LookSAM stores a direction, and holds the plain
gradient and intermediate results of its projection."""


def find_copies(flat) -> float:
    """Copies of the weights beyond those of a plain step."""
    return max(COPIES_MORE.get(type(kind).__name__, 1.0) for kind in (flat, innermost(flat)))


@cache
def measure_plain_peak(as_accelerator: bool) -> float:
    """What every flatness is compared with; `as_accelerator` says how the code runs."""
    return measure_peak(Plain())


def measure_peak(flatness) -> float:
    """Peak bytes beyond the weights, in copies of the weights, over three steps of SGD with momentum."""
    model = nn.Sequential(*(nn.Linear(100, 100) for _ in range(20)))
    x = torch.randn(4, 100)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, foreach=False)
    progress = TrainingProgress(total_steps=3)

    def closure():
        optimizer.zero_grad()
        loss = model(*subset_batch(x)).square().mean()
        loss.backward()
        return loss.detach()

    measured = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    with distribute_all_weights(model), measured as recorded:
        for _ in range(3):
            flatness(closure, model, progress)()
            optimizer.step()
            progress.advance()
    with TemporaryDirectory() as folder:
        peak = peak_bytes(recorded, Path(folder) / "trace.json")
    return peak / sum(p.numel() * p.element_size() for p in model.parameters())


@pytest.mark.filterwarnings("ignore")  # of the profiler
@pytest.mark.parametrize("as_accelerator", [False, True], ids=["cpu", "accelerator"])
@pytest.mark.parametrize("flat", FLAT, ids=named(FLAT))
def test_a_step_needs_one_copy_of_the_weights_more_than_a_plain_one(flat, as_accelerator, monkeypatch):
    monkeypatch.setattr(tensor_lists, "MAX_GROUP_ENTRIES", 10_100)  # a layer: a twentieth of the weights
    with treat_cpu_as_accelerator() if as_accelerator else nullcontext():
        plain = measure_plain_peak(as_accelerator)
        more = measure_peak(flat) - plain
    assert plain == pytest.approx(2.0, abs=0.1)
    assert more < find_copies(flat) + 0.3


@pytest.mark.cpu_path  # an accelerator's weights keep their memory
@pytest.mark.parametrize("flat", [SAM(), LESAM(), MSAM(), SAM(ascent_steps=2)], ids=short_name)
def test_perturbed_weights_have_the_same_memory_in_every_step(flat):
    layer, progress, addresses, others = nn.Linear(50, 50), TrainingProgress(), [], []

    def closure():
        addresses.append(layer.weight.data_ptr())
        others.append(torch.empty(50, 50))  # takes the memory that the last pass has freed
        layer.zero_grad()
        loss = layer(torch.ones(1, 50)).square().mean()
        loss.backward()
        return loss.detach()

    for _ in range(4):
        flat(closure, layer, progress)()
        progress.advance()
    assert len(set(addresses)) == 2
