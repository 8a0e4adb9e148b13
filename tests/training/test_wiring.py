"""Wiring of the training loop: which step, which seed, which slice and how many, each compared with exact values."""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flatbayes.core import TrainingProgress
from flatbayes.core.process_group import ProcessGroupInfo, contiguous_slice
from flatbayes.core.randomness import Stream, make_generator, seeded_rng, spawn_seed, spawn_seeds
from flatbayes.data import DataSplits, Split
from flatbayes.flatness import Plain
from flatbayes.flatness.gaussian_smoothing import draw_step_noise
from flatbayes.likelihoods import Categorical, Custom
from flatbayes.posteriors import MAP, SWAG, Ensemble
from flatbayes.training import (
    Callback,
    Checkpoints,
    CollectionConfig,
    Cyclical,
    DivergenceWarning,
    History,
    Schedule,
    TrainingConfig,
    fit,
)
from flatbayes.training.batches import ShuffledBatches, VectorizedBatches
from flatbayes.training.checkpoint import CheckpointManager
from flatbayes.training.data import InMemoryData

CONFIG = TrainingConfig(epochs=3, batch_size=10, optimizer=partial(torch.optim.SGD, lr=0.5), num_validations=0)


def make_splits(num_examples=35):
    generator = torch.Generator().manual_seed(0)
    split = Split(inputs=torch.randn(num_examples, 4, generator=generator), targets=torch.arange(num_examples) % 3)
    return DataSplits(
        train=split,
        val=split,
        test=split,
        class_names=("a", "b", "c"),
        feature_names=("p", "q", "r", "s"),
        augment=None,
    )


def make_network():
    return nn.Linear(4, 3)


class StepRecorder(Callback):
    """Stores step, loss and learning rate of every step."""

    def __init__(self):
        self.steps, self.losses, self.lrs = [], [], []

    def on_step_end(self, step, loss, lr):
        self.steps.append(step)
        self.losses.append(float(loss))
        self.lrs.append(lr)


class StepAsFactor(Schedule):
    """A learning rate factor that encodes the step and the total."""

    num_cycles = 1

    def factor(self, step, total_steps):
        return step + total_steps / 1000


def test_learning_rate_of_a_step_is_the_schedule_at_that_step():
    recorder = StepRecorder()
    config = replace(CONFIG, optimizer=partial(torch.optim.SGD, lr=1e-4), schedule=StepAsFactor())
    fit(make_network, make_splits(), MAP(), Plain(), config, callback=recorder)
    assert recorder.steps == list(range(1, 10))
    assert recorder.lrs == pytest.approx([1e-4 * (step + 0.009) for step in range(9)])


def test_optimizer_steps_with_the_learning_rate_of_the_callback():
    seen = []

    class RecordingSGD(torch.optim.SGD):
        def step(self, closure=None):
            seen.append(self.param_groups[0]["lr"])
            return super().step(closure)

    recorder = StepRecorder()
    fit(make_network, make_splits(), MAP(), Plain(), replace(CONFIG, optimizer=RecordingSGD), callback=recorder)
    assert seen == recorder.lrs


def test_epoch_loss_is_the_mean_of_the_step_losses():
    recorder, history = StepRecorder(), History()
    for callback in (recorder, history):
        fit(make_network, make_splits(), MAP(), Plain(), CONFIG, callback=callback)
    means = torch.tensor(recorder.losses).view(3, 3).mean(dim=1).tolist()
    assert [record["loss"] for record in history.records] == pytest.approx(means)
    assert [record["step"] for record in history.records] == [3, 6, 9]
    assert [record["lr"] for record in history.records] == recorder.lrs[2::3]


@pytest.mark.parametrize(("num_requested", "num_expected"), [(1, 1), (2, 2), (3, 3), (4, 3)])
def test_number_of_batches_for_normalization_statistics(num_requested, num_expected):
    config = replace(CONFIG, collection=CollectionConfig(num_norm_batches=num_requested))
    batches = InMemoryData(make_splits()).sample_inputs(config, seed=0)
    assert [len(batch) for batch in batches] == [10] * num_expected


def test_augmentation_has_seeds_of_its_own():
    inputs = torch.arange(6.0)
    batches = ShuffledBatches(inputs, inputs, 2, seed=5)
    assert batches.augmentation_seeds(2) == spawn_seeds(Stream.AUGMENTATION, 5, 2, count=3)
    order_seeds = [spawn_seed(Stream.DATA_ORDER, 5, epoch) for epoch in range(4)]
    augmentation_seeds = [seed for epoch in range(4) for seed in batches.augmentation_seeds(epoch)]
    assert not set(order_seeds) & set(augmentation_seeds)
    assert len(set(augmentation_seeds)) == 12


def test_augmentation_of_a_batch_does_not_depend_on_where_the_epoch_starts():
    inputs = torch.arange(6.0)
    batches = ShuffledBatches(inputs, inputs, 2, seed=5, augment=lambda x, g: x + torch.rand(x.shape, generator=g))
    whole, rest = list(batches.iter_epoch(1)), list(batches.iter_epoch(1, first_batch=1))
    assert [x.tolist() for x, _ in whole[1:]] == [x.tolist() for x, _ in rest]


@pytest.mark.parametrize("augment", [None, lambda x, g: x])
def test_vectorized_batches_are_those_of_each_member(augment):
    inputs = torch.arange(7.0)
    members = [ShuffledBatches(inputs, inputs, 2, seed, augment) for seed in (1, 2)]
    stacked = list(VectorizedBatches(members).iter_epoch(1, first_batch=1))
    assert len(stacked) == 2
    for k, member in enumerate(members):
        for (x, y), (expected_x, expected_y) in zip(stacked, list(member.iter_epoch(1))[1:], strict=True):
            assert torch.equal(x[:, k], expected_x)
            assert torch.equal(y[:, k], expected_y)


def test_contiguous_slices_by_hand():
    slices = [contiguous_slice(7, ProcessGroupInfo(rank, 3)) for rank in range(3)]
    assert [(part.start, part.stop) for part in slices] == [(0, 2), (2, 4), (4, 7)]


@pytest.mark.parametrize(
    ("num_cycles", "expected"), [(1, [7, 8, 9, 10, 11]), (2, [5, 11])], ids=["after the start", "end of each cycle"]
)
def test_snapshots_are_collected_after_the_start_and_at_the_end_of_cycles(num_cycles, expected, monkeypatch):
    monkeypatch.setattr(sys.modules["flatbayes.training.fit"], "run_trial", lambda *args: None)
    collected = []

    class RecordingSWAG(SWAG):
        def collect(self, state):
            collected.append(len(steps) - 1)
            super().collect(state)

        def step(self, state, closure):
            steps.append(len(steps))
            return super().step(state, closure)

    steps: list[int] = []
    schedule = Cyclical(num_cycles=num_cycles)
    collection = CollectionConfig(start_fraction=0.65, snapshots_per_epoch=4) if num_cycles == 1 else None
    collection = collection or CollectionConfig(start_fraction=0.99, snapshots_per_epoch=1)
    config = replace(CONFIG, epochs=3, batch_size=8, schedule=schedule, collection=collection)
    fit(make_network, make_splits(), RecordingSWAG(rank=2), Plain(), config)
    assert collected == expected


@pytest.mark.parametrize(
    ("interval", "last_write_seconds", "passed", "expected"),
    [
        (30.0, 0.0, 29.0, False),
        (30.0, 0.0, 30.0, True),
        (30.0, 2.0, 39.0, False),
        (30.0, 2.0, 40.0, True),
        (0, 9, 0, True),
    ],
)
def test_interval_between_checkpoints(interval, last_write_seconds, passed, expected, tmp_path, monkeypatch):
    monkeypatch.setattr("flatbayes.training.checkpoint.time.monotonic", lambda: 100.0 + passed)
    checkpoints = Checkpoints(tmp_path, min_interval_seconds=interval)
    manager = CheckpointManager(checkpoints, _last_write_time=100.0, _last_write_seconds=last_write_seconds)
    assert manager.is_due(3, epoch_ended=True) is expected


@pytest.mark.parametrize("max_to_keep", [1, 3])
def test_number_of_checkpoints_that_are_kept(max_to_keep, tmp_path):
    manager = CheckpointManager(Checkpoints(Path(tmp_path), max_to_keep=max_to_keep))
    for step in range(1, 6):
        manager.save(0, step, {})
    expected = [f"0000-{step:010d}.pt" for step in range(6 - max_to_keep, 6)]
    assert sorted(path.name for path in tmp_path.glob("*.pt")) == expected


@pytest.mark.parametrize(("step", "expected"), [(3, False), (4, True), (5, False), (8, True)])
def test_checkpoints_within_an_epoch_are_every_n_steps(step, expected, tmp_path):
    manager = CheckpointManager(Checkpoints(tmp_path, every_n_steps=4, min_interval_seconds=0))
    assert manager.is_candidate_step(step, epoch_ended=False) is expected
    assert manager.is_candidate_step(step, epoch_ended=True)


def test_validation_is_on_the_validation_split_after_the_last_epoch():
    history, splits = History(), make_splits()
    splits = replace(splits, val=splits.val.take(torch.arange(5)))
    config = replace(CONFIG, num_validations=1)
    fitted = fit(make_network, splits, MAP(), Plain(), config, callback=history)
    assert ["val_nll" in record for record in history.records] == [False, False, True]
    network = fitted.states[0].model
    inputs = fitted.transform(splits.val.inputs)
    expected = nn.functional.cross_entropy(network(inputs), splits.val.targets)
    assert history.records[-1]["val_nll"] == pytest.approx(float(expected.detach()), rel=1e-6)


@pytest.mark.parametrize("member", [0, 1])
def test_the_first_draw_does_not_repeat_the_random_numbers_of_the_initial_weights(member):
    for seed in range(3):
        with seeded_rng(spawn_seed(Stream.INITIAL_WEIGHTS, seed, member), None):
            initial = torch.randn(2000)
        others = [
            torch.randn(2000, generator=make_generator(Stream.DRAW, seed, member, 0)),
            torch.randn(2000, generator=make_generator(Stream.TRAINING_NOISE, seed, member)),
            *draw_step_noise([torch.zeros(2000)], 0, TrainingProgress(seed=seed, members=(member,))),
        ]
        for noise in others:
            assert abs(float(torch.corrcoef(torch.stack([initial, noise]))[0, 1])) < 0.1


@pytest.mark.parametrize("posterior", [MAP(), Ensemble(size=2), SWAG(rank=2)], ids=str)
def test_a_finite_training_that_diverged_warns(posterior):
    config = replace(CONFIG, optimizer=partial(torch.optim.SGD, lr=1e15), num_validations=1)
    with pytest.warns(DivergenceWarning, match="has probably diverged: its mean .* is .*e\\+.* lower lea"):
        fit(make_network, make_splits(), posterior, Plain(), config)


def test_a_training_that_works_does_not_warn(recwarn):
    fit(make_network, make_splits(), MAP(), Plain(), replace(CONFIG, num_validations=1))
    # Losses of users have units of their own.
    custom = Custom(lambda outputs, targets: 1e6 * F.cross_entropy(outputs, targets), Categorical(3))
    for posterior in (MAP(), Ensemble(size=2)):
        config = replace(CONFIG, optimizer=partial(torch.optim.SGD, lr=1e-9), num_validations=1)
        fit(make_network, make_splits(), posterior, Plain(), config, likelihood=custom)
    assert not [warning for warning in recwarn if "diverged" in str(warning.message)]
