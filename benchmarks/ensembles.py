"""Training the networks of an ensemble as one, against one after the other: the same steps, the same results.

A ratio below one is a gain. Both ways take turns in one process; only ratios within one run compare.
"""

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from timing import seconds
from torch import nn

from flatbayes.data import Dataset, Part
from flatbayes.flatness import SAM, Flatness, Plain
from flatbayes.models import MLP, ConvNet
from flatbayes.posteriors import Ensemble
from flatbayes.training import Recipe, Watch
from flatbayes.training.material import material
from flatbayes.training.model import builder
from flatbayes.training.processes.launch import fabric_of
from flatbayes.training.runs import Runs
from flatbayes.training.together import chosen

BATCH, STEPS = 64, 8
OPTIMIZER = partial(torch.optim.SGD, lr=0.01, momentum=0.9, weight_decay=5e-4)
CASES: dict[str, tuple[Callable[..., nn.Module], tuple[int, ...], bool]] = {
    "MLP 8-50-1": (partial(MLP, hidden=(50,)), (8,), False),
    "MLP 64-128-128-10": (partial(MLP, hidden=(128, 128)), (64,), True),
    "MLP 64-256-256-10": (partial(MLP, hidden=(256, 256)), (64,), True),
    "MLP 64-512-512-10": (partial(MLP, hidden=(512, 512)), (64,), True),
    "ConvNet(8) 8x8": (partial(ConvNet, width=8), (1, 8, 8), True),
    "ConvNet(16) 16x16": (partial(ConvNet, width=16), (1, 16, 16), True),
}
TARGETS = {"MLP 8-50-1": 0.7, "MLP 64-128-128-10": 1.05}
"""Largest ratio where `auto` trains together; there it must gain, up to the noise of a busy machine."""


def rows(quick: bool) -> list[dict[str, Any]]:
    """One row per network, size of the ensemble and flatness."""
    sizes = (5,) if quick else (5, 20)
    names = list(TARGETS) if quick else list(CASES)
    return [row(name, size, flat, 5) for name in names for size in sizes for flat in (Plain(), SAM())]


def row(name: str, size: int, flat: Flatness, rounds: int) -> dict[str, Any]:
    """Seconds per step of all networks, median over rounds in which both ways take turns."""
    model, shape, classes = CASES[name]
    runs = prepared(model, random_data(shape, classes), size, flat)
    fabric = fabric_of(runs.recipe)
    together, one_by_one = [], []
    for _ in range(rounds + 1):
        job = runs.together(range(size), fabric)
        together.append(seconds(lambda job=job: job.train(fabric, Watch())))
        jobs = [runs.alone(run, fabric) for run in range(size)]
        one_by_one.append(seconds(lambda jobs=jobs: [job.train(fabric, Watch()) for job in jobs]))
    ours, baseline = (statistics.median(times[1:]) / STEPS for times in (together, one_by_one))
    as_one, _ = chosen(runs, size)
    return {
        "group": "ensembles",
        "case": f"{name}, {size} networks, {type(flat).__name__}",
        "threads": torch.get_num_threads(),
        "ours": ours,
        "baseline": baseline,
        "ratio": ours / baseline,
        "limit": None,
        "target": TARGETS.get(name),
        "peers": {},
        "note": f"together against one by one; auto takes {'together' if as_one else 'one by one'}",
    }


def prepared(model: Callable[..., nn.Module], data: Dataset, size: int, flat: Flatness) -> Runs:
    """The runs of an ensemble of points, one epoch each."""
    source = material(data)
    recipe = Recipe(epochs=1, batch_size=BATCH, validations=0, optimizer=OPTIMIZER, members="auto")
    build = builder(model, source.known)
    return Runs(Ensemble(size=size), flat, source.likelihood(), source, recipe, build, seed=0)


def random_data(shape: tuple[int, ...], classes: bool) -> Dataset:
    """Enough noise for the steps of one epoch."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(BATCH * STEPS, *shape, generator=generator)
    targets = torch.arange(len(inputs)) % 10 if classes else torch.randn(len(inputs), generator=generator)
    part = Part(inputs=inputs, targets=targets)
    names = tuple(map(str, range(10))) if classes else ()
    return Dataset(
        train=part,
        val=part,
        test=part,
        class_names=names,
        target_names=() if classes else ("y",),
        feature_names=(),
        augment=None,
    )
