"""Training time of the networks of an ensemble: vectorized in one run, compared with one run after the other.

Both do the same steps with the same results. A ratio below one is a gain. Both take turns in one process, and only
ratios within one process compare.
"""

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from timing import make_row, seconds
from torch import nn

from flatbayes.data import DataSplits, Split
from flatbayes.flatness import SAM, Flatness, Plain
from flatbayes.models import MLP, ConvNet
from flatbayes.posteriors import Ensemble
from flatbayes.training import Callback, DistributionConfig, TrainingConfig
from flatbayes.training.checkpoint import CheckpointManager
from flatbayes.training.distributed.launch import make_fabric
from flatbayes.training.loop import train
from flatbayes.training.model_builder import make_model_builder
from flatbayes.training.run_factory import RunFactory
from flatbayes.training.session import make_session
from flatbayes.training.training_examples import make_training_data
from flatbayes.training.vectorization_trial import should_vectorize

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
    fabric = make_fabric(runs.config)
    vectorized, one_by_one = [], []

    def train_all(groups: list[list[int]]) -> None:
        for members in groups:
            session = make_session(runs.config, fabric, CheckpointManager(), members[0])
            train(runs.create_run(members, fabric), session, Callback())

    for _ in range(rounds + 1):
        vectorized.append(seconds(partial(train_all, [list(range(size))])))
        one_by_one.append(seconds(partial(train_all, [[member] for member in range(size)])))
    ours, baseline = (statistics.median(times[1:]) / STEPS for times in (vectorized, one_by_one))
    as_one, _ = should_vectorize(runs, size)
    return make_row(
        "ensembles",
        f"{name}, {size} networks, {type(flat).__name__}",
        ours / baseline,
        ours=ours,
        baseline=baseline,
        target=TARGETS.get(name),
        note=f"vectorized compared with one by one; auto takes {'vectorized' if as_one else 'one by one'}",
    )


def prepared(model: Callable[..., nn.Module], data: DataSplits, size: int, flat: Flatness) -> RunFactory:
    """The runs of an ensemble of points, one epoch each."""
    source = make_training_data(data)
    config = TrainingConfig(
        epochs=1,
        batch_size=BATCH,
        num_validations=0,
        optimizer=OPTIMIZER,
        distribution=DistributionConfig(members="auto"),
    )
    build = make_model_builder(model, source.model_arguments)
    return RunFactory(Ensemble(size=size), flat, source.infer_likelihood(), source, config, build, seed=0)


def random_data(shape: tuple[int, ...], classes: bool) -> DataSplits:
    """Enough noise for the steps of one epoch."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(BATCH * STEPS, *shape, generator=generator)
    targets = torch.arange(len(inputs)) % 10 if classes else torch.randn(len(inputs), generator=generator)
    part = Split(inputs=inputs, targets=targets)
    names = tuple(map(str, range(10))) if classes else ()
    return DataSplits(
        train=part,
        val=part,
        test=part,
        class_names=names,
        target_names=() if classes else ("y",),
        feature_names=(),
        augment=None,
    )
