"""Peak memory of training, in copies of the weights: posteriors and flatness relative to plain training.

torch's profiler records every allocation and release of tensors, so the numbers are exact and independent of the
machine. Plain SGD with momentum needs a gradient and a momentum beside the weights. The inputs of the wide network
are two images of 8 x 8 pixels, whose activations are negligible.
"""

import json
import tempfile
from pathlib import Path

import torch
from timing import make_row
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from flatbayes import ASAM, LRT, MAP, MSAM, SAM, SGVB, SWAG, LookSAM, Plain
from flatbayes.core import TrainingProgress
from flatbayes.models import WideResNet

WIDTH, LAYERS, STEPS = 600, 6, 4
CASES = {
    "Plain": (MAP(), Plain(), 2.0, None),
    "SAM": (MAP(), SAM(), 3.0, 3.05),
    "ASAM": (MAP(), ASAM(), 3.0, None),
    "MSAM": (MAP(), MSAM(), 4.0, None),
    "LookSAM": (MAP(), LookSAM(period=2), 5.0, None),
    "SWAG-Diag, SAM": (SWAG(rank=0), SAM(), 5.0, None),
    "SWAG of rank 20, SAM": (SWAG(rank=20), SAM(), 25.0, None),
    "SGVB, SAM": (SGVB(), SAM(), 8.0, None),
    "SGVB-LRT, SAM": (LRT(), SAM(), 7.0, None),
}
"""Posterior, flatness, expected number of copies by counting tensors, and target."""

WIDE = {
    "WideResNet-10-2": (10, 2, SWAG(rank=20), 25.0),
    "WideResNet-28-10": (28, 10, SWAG(rank=20), 25.0),
    "WideResNet-28-10, bfloat16": (28, 10, SWAG(rank=20, bfloat16=True), 15.0),
}
"""Depth, width, posterior and expected number of copies, with SAM."""


def make_dense_case():
    """A network of linear layers, and inputs."""
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))), torch.randn(2, WIDTH)


def make_wide_case(depth: int, width: int):
    """A wide residual network, and two small images."""
    torch.manual_seed(0)
    return WideResNet((3, 8, 8), 10, depth=depth, width=width), torch.randn(2, 3, 8, 8)


def measure_peak(posterior, flatness, model, inputs) -> float:
    """Largest memory beyond the weights over a few steps, in copies of the weights."""
    targets = torch.zeros(len(inputs), dtype=torch.int64)
    copy = sum(param.numel() * param.element_size() for param in model.parameters())
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        take_steps(posterior, flatness, model, inputs, targets)
    return get_peak_bytes(recorded) / copy


def take_steps(posterior, flatness, model, inputs, targets) -> None:
    """A few steps of a manual loop, with a snapshot after each."""
    momentum = 0.0 if isinstance(posterior, SGVB | LRT) else 0.9
    state = posterior.init(model, lambda params: torch.optim.SGD(params, lr=1e-4, momentum=momentum), 100)
    network, progress = state.model.train(), TrainingProgress(total_steps=STEPS)

    def closure():
        state.optimizer.zero_grad()
        loss = F.cross_entropy(network(inputs), targets)
        loss.backward()
        return loss.detach()

    for _ in range(STEPS):
        posterior.step(state, flatness(closure, network, progress))
        posterior.collect(state)
        progress.advance()


def get_peak_bytes(recorded: profile) -> int:
    """Peak of the bytes allocated during the recording."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        recorded.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]")
    current = peak = 0
    for _, change in changes:
        current += change
        peak = max(peak, current)
    return peak


def rows(quick: bool) -> list[dict]:
    """Every case."""
    results = [
        make_memory_row(name, measure_peak(posterior, flatness, *make_dense_case()), expected, target)
        for name, (posterior, flatness, expected, target) in list(CASES.items())[: 2 if quick else None]
    ]
    return results + [
        make_memory_row(
            f"SWAG of rank 20, SAM, {name}",
            measure_peak(posterior, SAM(), *make_wide_case(depth, width)),
            expected,
        )
        for name, (depth, width, posterior, expected) in list(WIDE.items())[: 1 if quick else None]
    ]


def make_memory_row(case: str, ratio: float, expected: float, target: float | None = None) -> dict:
    """A row of the common table."""
    note = "copies of the weights, in addition to the weights"
    return make_row("memory", case, ratio, limit=expected, target=target, note=note)
