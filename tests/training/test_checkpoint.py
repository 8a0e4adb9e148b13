"""Checkpoints: a training that was stopped ends as if it had not been, bit for bit; a full disk costs nothing."""

import errno
import json
import os
import random
import resource
import subprocess
import sys
import warnings
import zipfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from torch import nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from flatbayes.data import Augment, Digits
from flatbayes.flatness import SAM, Flatness, LookSAM, Plain
from flatbayes.likelihoods import Categorical, Custom
from flatbayes.models import MLP, ConvNet
from flatbayes.posteriors import MAP, SWAG, Ensemble, MCDropout
from flatbayes.training import Callback, Checkpoints, CollectionConfig, History, TrainingConfig, fit
from flatbayes.training.batches import LoaderBatches
from flatbayes.training.callbacks.loggers import JSONLinesLogger
from flatbayes.training.checkpoint import CheckpointManager
from flatbayes.training.fabric import SingleDevice
from flatbayes.training.loader_data import LoaderData
from flatbayes.training.schedules import Schedule
from support import FLATNESSES, POSTERIORS, explain_refusal, network, pair_params

SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
CONFIG = TrainingConfig(
    epochs=3, batch_size=16, collection=CollectionConfig(start_fraction=0.3), num_validations=3, optimizer=SGD
)
DATA = Digits(train_size=64).load(seed=1)
KILLING = Path(__file__).with_name("killing.py")


class Stop(Callback):
    """The plug is pulled after a number of steps, over all runs."""

    def __init__(self, after):
        self.left = after

    def on_step_end(self, step, loss, lr):
        self.left -= 1
        if self.left < 0:
            raise ConnectionError("the plug was pulled")


def outcome(fitted):
    tensors = [{**s.model.state_dict(), **s.statistics} for s in fitted.states]
    return tensors, fitted.info["cost"]["gradients"]


def assert_same(one, other):
    torch.testing.assert_close(outcome(one), outcome(other), rtol=0, atol=0, equal_nan=True)


def stopped(train, after, checkpoints):
    with pytest.raises(ConnectionError):
        train(checkpoints=checkpoints, callback=Stop(after))


@pytest.mark.parametrize("kills", [6, pytest.param(20, marks=pytest.mark.slow)])
def test_kills_change_nothing(kills, tmp_path):
    kill_and_compare("SWAG-SAM", tmp_path, kills)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["SGLD", "SGVB", "IVON", "ensemble", "SWAG-LookSAM", "LRT", "dropout", "Laplace", "ensemble-together"]
)
def test_nor_do_they_for_other_methods(name, tmp_path):
    kill_and_compare(name, tmp_path, 20)


def kill_and_compare(name, folder, kills):
    command = [sys.executable, str(KILLING), name, str(folder), str(kills), "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["same"]
    assert found["killed"] == kills
    assert found["places"] > kills / 6, "it was always killed at the same place"


PAIRS = pair_params(POSTERIORS, [SAM()]) + pair_params([SWAG(rank=2)], FLATNESSES)


@pytest.mark.parametrize(("posterior", "flat"), PAIRS)
def test_every_method_goes_on_where_it_was(posterior, flat, tmp_path):
    config = TrainingConfig(
        epochs=2,
        batch_size=16,
        collection=CollectionConfig(start_fraction=0.0),
        optimizer=lambda p: torch.optim.SGD(p, lr=0.05),
    )
    if explain_refusal(posterior, flat, config) is not None:
        pytest.skip("not a pair")
    inputs, targets = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(2)), torch.arange(64) % 3
    part = replace(DATA.train, inputs=(100 + 50 * inputs).clamp(0, 255).to(torch.uint8), targets=targets)
    data = replace(DATA, train=part, val=part, test=part, class_names=("a", "b", "c"))
    train = partial(fit, network, data, posterior, flat, config, seed=3)
    checkpoints = Checkpoints(tmp_path, every_n_steps=3, min_interval_seconds=0)
    stopped(train, 8 * posterior.num_members - 1, checkpoints)
    stopped(train, 1, checkpoints)
    assert_same(train(checkpoints=checkpoints), train())


@pytest.mark.parametrize("after", [0, 1, 3, 4, 6, 11])
@pytest.mark.parametrize(("members", "flat"), [("one_by_one", LookSAM()), ("vectorized", SAM())])
def test_whenever_it_is_stopped(after, members, flat, tmp_path):
    data = replace(DATA, augment=Augment(flip=True, pad=1))
    config = CONFIG.with_options(distribution={"members": members})
    posterior = Ensemble(SWAG(rank=2), size=2)
    one, other, checkpoints = History(), History(), Checkpoints(tmp_path, every_n_steps=1, min_interval_seconds=0)
    train = partial(fit, partial(MLP, hidden=(8,)), data, posterior, flat, config, seed=3)
    stopped(train, after * (2 if members == "one_by_one" else 1), checkpoints)
    assert_same(train(checkpoints=checkpoints, callback=one), train(callback=other))
    assert one.records == other.records


class Shaken(Dataset):
    """Examples depend on the randomness of torch and NumPy (that of Python is used by the tests' type checks)."""

    def __len__(self):
        return 64

    def __getitem__(self, k):
        noise = torch.randn(4) + torch.from_numpy(np.random.randn(4)).float()  # noqa: NPY002
        return noise + k % 3, k % 3


@pytest.mark.parametrize("own", [False, True], ids=["", "own generator"])
def test_a_loader_of_the_users_own_goes_on_at_an_epoch(own, tmp_path):
    def train(**more):
        np.random.seed(5)  # noqa: NPY002
        generator = torch.Generator().manual_seed(5) if own else None
        loader = DataLoader(Shaken(), batch_size=16, shuffle=True, generator=generator)
        net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))
        net.load_state_dict({k: torch.full_like(v, 0.1) for k, v in net.state_dict().items()})
        return fit(net, loader, MCDropout(), SAM(), CONFIG, likelihood=Categorical(3), seed=3, **more)

    checkpoints = Checkpoints(tmp_path, every_n_steps=1, min_interval_seconds=0)
    stopped(train, 6, checkpoints)
    assert [path.name for path in sorted(tmp_path.glob("*.pt"))] == ["0000-0000000004.pt"]
    assert_same(train(checkpoints=checkpoints), train())


class WrappingFabric:
    """One of two processes, without the other, whose loaders have the wrapper of Fabric."""

    global_rank, world_size = 0, 2

    def setup_dataloaders(self, loader, **options):
        return Fabric(accelerator="cpu").setup_dataloaders(loader, **options)


@pytest.mark.parametrize("fabric", [SingleDevice(torch.device("cpu")), WrappingFabric()], ids=["one", "several"])
def test_a_distributed_sampler_goes_on_at_an_epoch(fabric):
    def make_batches():
        loader = DataLoader(Shaken(), 16, sampler=DistributedSampler(Shaken(), num_replicas=2, rank=0))
        data = LoaderData(loader, given_num_data=64, likelihood=Categorical(3))
        return data.make_batches(CONFIG, 0, fabric)

    batches, resumed = make_batches(), make_batches()
    orders = [torch.cat([targets for _, targets in batches.iter_epoch(epoch)]).tolist() for epoch in range(3)]
    resumed.load_state_dict(batches.state_dict())
    assert torch.cat([targets for _, targets in resumed.iter_epoch(2)]).tolist() == orders[2]
    assert orders[0] != orders[1] != orders[2]


def test_the_randomness_of_python_is_kept_too():
    batches = LoaderBatches(DataLoader(Shaken()))
    saved = batches.state_dict()
    before = random.random()
    batches.load_state_dict(saved)
    assert random.random() == before


def test_the_log_has_every_epoch_once(tmp_path):
    train = partial(fit, partial(MLP, hidden=(8,)), DATA, Ensemble(MAP(), size=2), Plain(), CONFIG, seed=3)
    checkpoints, log = Checkpoints(tmp_path / "c", min_interval_seconds=0), tmp_path / "m.jsonl"
    for after in (2, 5, 9, 9):
        with pytest.raises(ConnectionError):
            train(checkpoints=checkpoints, callback=Both(JSONLinesLogger(log), Stop(after)))
        with log.open("a") as file:
            file.write('{"member": 1, "ep')  # killed while it wrote a line
    train(checkpoints=checkpoints, callback=JSONLinesLogger(log))
    train(callback=JSONLinesLogger(tmp_path / "other.jsonl"))
    assert log.read_text() == (tmp_path / "other.jsonl").read_text()


class Both(Callback):
    def __init__(self, log, stop):
        self.on_run_start, self.on_epoch_end, self.on_resume, self.on_step_end = (
            log.on_run_start,
            log.on_epoch_end,
            log.on_resume,
            stop.on_step_end,
        )


def test_checkpoints_of_steps_that_early_stopping_gives_up_are_removed(tmp_path):
    manager = CheckpointManager(Checkpoints(tmp_path, max_to_keep=2))
    for step in (10, 20, 30, 12):
        manager.save(0, step, {"value": step})
    manager.save(1, 40, {"value": 40})
    assert manager.load_latest(0)["value"] == 12
    manager.save(0, 14, {"value": 14})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"{k:04d}-{n:010d}.pt" for k, n in ((0, 12), (0, 14), (1, 40))
    ]


def test_old_checkpoints_are_pruned_and_all_removed(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", every_n_steps=1, min_interval_seconds=0, max_to_keep=3)
    train = partial(fit, partial(MLP, hidden=(8,)), DATA, MAP(), Plain(), CONFIG)
    stopped(train, 9, checkpoints)
    (tmp_path / "c" / ".0000-0000000010.pt.1.tmp").write_text("torn")
    names = [f"0000-{step:010d}.pt" for step in (7, 8, 9)]
    assert sorted(path.name for path in (tmp_path / "c").glob("*.pt")) == names
    train(checkpoints=checkpoints)
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["0000.pt", "training.json"]
    checkpoints.remove()
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 torn", None])
def test_damaged_ones_are_left_out(damage, tmp_path):
    checkpoints = Checkpoints(tmp_path, every_n_steps=1, min_interval_seconds=0)
    train = partial(fit, partial(MLP, hidden=(8,)), DATA, SWAG(), SAM(), CONFIG)
    stopped(train, 6, checkpoints)
    older, newer = sorted(tmp_path.glob("*.pt"))
    newer.write_bytes(newer.read_bytes()[:-700] if damage is None else damage)
    with pytest.warns(UserWarning, match=r"0000-0000000006.pt is damaged and skipped"):
        found = train(checkpoints=checkpoints)
    assert_same(found, train())
    checkpoints.remove()
    stopped(train, 6, checkpoints)
    for path in (older, newer):
        path.write_bytes(b"")
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(ValueError, match="Remove that folder"):
        train(checkpoints=checkpoints)


def test_checkpoints_of_another_training_are_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path, min_interval_seconds=0)
    model = partial(MLP, hidden=(8,))
    fit(model, DATA, MAP(), Plain(), CONFIG, checkpoints=checkpoints)
    others = [
        ({"seed": 1}, "seed"),
        ({"flatness": SAM()}, "flatness"),
        ({"config": replace(CONFIG, epochs=4)}, "epochs"),
        ({"posterior": SWAG()}, "posterior"),
        ({"model": MLP}, "model"),
    ]
    usual = {"model": model, "data": DATA, "posterior": MAP(), "flatness": Plain(), "config": CONFIG, "seed": 0}
    for change, name in others:
        with pytest.raises(ValueError, match=f"of another training: {name} differ"):
            fit(**{**usual, **change}, checkpoints=checkpoints)
    changed = {**usual, "data": Digits(train_size=64).load(seed=2)}
    with pytest.raises(ValueError, match=r"changed since the checkpoints .* train has other values in its 64"):
        fit(**changed, checkpoints=checkpoints)
    fit(**changed, checkpoints=replace(checkpoints, allow_changed_data=True))


class OwnFlatness(Flatness):
    def __init__(self, rho):
        self.rho = rho

    def __call__(self, closure, model, progress=None):
        return Plain()(closure, model, progress)


class Halving(Schedule):
    num_cycles = 1

    def __init__(self, start):
        self.start = start

    def factor(self, step, total_steps):
        return 1.0 if step < self.start * total_steps else 0.5


def weighted(weight):
    return Custom(nn.CrossEntropyLoss(torch.full((10,), weight)), Categorical(10))


def network_with(rate):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Dropout(rate), nn.Linear(64, 10))


@pytest.mark.parametrize(
    ("name", "argument", "make"),
    [
        ("flatness", "flatness", OwnFlatness),
        ("likelihood", "likelihood", weighted),
        ("schedule", "config", lambda value: replace(CONFIG, schedule=Halving(value))),
        ("start", "model", network_with),
    ],
)
def test_checkpoints_of_another_object_of_the_same_class_are_refused(name, argument, make, tmp_path):
    checkpoints = Checkpoints(tmp_path, min_interval_seconds=0)
    usual = {"model": partial(MLP, hidden=(8,)), "flatness": Plain(), "config": CONFIG}
    train = partial(fit, data=DATA, posterior=MAP(), checkpoints=checkpoints)
    first = train(**{**usual, argument: make(0.2)})
    assert_same(train(**{**usual, argument: make(0.2)}), first)
    with pytest.raises(ValueError, match="started from other weights" if name == "start" else f"{name} differ"):
        train(**{**usual, argument: make(0.4)})


def test_a_full_disk_leaves_the_last_one_good(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, every_n_steps=1, min_interval_seconds=0, max_to_keep=1)
    train = partial(fit, partial(MLP, hidden=(8,)), DATA, SWAG(rank=2), SAM(), CONFIG)
    stopped(train, 6, checkpoints)
    before = [(path.name, path.read_bytes()) for path in sorted(tmp_path.iterdir())]

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"cannot be written: .*No space left.*Earlier checkpoints"):
            train(checkpoints=checkpoints)
    assert [(path.name, path.read_bytes()) for path in sorted(tmp_path.iterdir())] == before
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))  # the file cannot grow as far as it has to
    try:
        with pytest.raises(OSError, match="cannot be written"):
            train(checkpoints=checkpoints)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [(path.name, path.read_bytes()) for path in sorted(tmp_path.iterdir())] == before
    assert_same(train(checkpoints=checkpoints), train())


def test_they_are_written_no_oftener_than_worth_it(tmp_path, monkeypatch):
    now = 0.0
    monkeypatch.setattr("flatbayes.training.checkpoint.time.monotonic", lambda: now)
    keeper = CheckpointManager.open(Checkpoints(tmp_path, every_n_steps=10, min_interval_seconds=30), {})
    assert not keeper.is_due(10, epoch_ended=True)
    now = 31.0
    assert [keeper.is_due(10, epoch_ended=False), keeper.is_due(11, epoch_ended=False)] == [True, False]
    assert keeper.is_due(11, epoch_ended=True)
    save = torch.save

    def slow(*args):
        nonlocal now
        save(*args)
        now += 5.0

    monkeypatch.setattr(torch, "save", slow)
    keeper.save(0, 10, {})
    now += 99.0
    assert not keeper.is_due(20, epoch_ended=False)
    now += 1.0
    assert keeper.is_due(20, epoch_ended=False)
    assert not CheckpointManager().is_due(20, epoch_ended=True)
    every = CheckpointManager.open(Checkpoints(tmp_path / "other", min_interval_seconds=0), {})
    assert every.is_due(1, epoch_ended=True)
    assert not every.is_due(1, epoch_ended=False)


def test_time_that_was_lost_does_not_count(tmp_path, monkeypatch):
    now = 0.0
    monkeypatch.setattr("flatbayes.training.checkpoint.time.monotonic", lambda: now)
    wanted = Checkpoints(tmp_path, min_interval_seconds=0)
    first = CheckpointManager.open(wanted, {})
    now = 7.0
    first.save(0, 1, {})
    now = 1000.0
    second = CheckpointManager.open(wanted, {})
    second.load_latest(0)
    now = 1003.0
    assert second.elapsed_seconds() == 10.0


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"every_n_steps": 0}, "every_n_steps"),
        ({"max_to_keep": 0}, "max_to_keep"),
        ({"min_interval_seconds": -1.0}, "min_interval_seconds"),
    ],
)
def test_nonsense_is_refused(fields, what, tmp_path):
    with pytest.raises(ValueError, match=what):
        Checkpoints(tmp_path, **fields)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        CheckpointManager.open(Checkpoints(tmp_path / "file"), {})


def test_half_precision_keeps_its_place(tmp_path):
    config = CONFIG.with_options(precision={"mode": "bf16-mixed"})
    train = partial(fit, partial(ConvNet, width=2), DATA, SWAG(rank=2), SAM(), config, seed=3)
    checkpoints = Checkpoints(tmp_path, every_n_steps=1, min_interval_seconds=0)
    stopped(train, 5, checkpoints)
    assert_same(train(checkpoints=checkpoints), train())


def test_single_bits_of_a_checkpoint_are_protected(tmp_path):
    content = {"weights": torch.arange(300.0), "records": [{"loss": 0.5}], "lr": 0.1}
    manager = CheckpointManager.open(Checkpoints(tmp_path, min_interval_seconds=0), {})
    manager.save(0, 1, {**content, "step": 1})
    manager.save(0, 2, {**content, "step": 2})
    path = tmp_path / "0000-0000000002.pt"
    data, generator = path.read_bytes(), random.Random(0)
    steps = []
    for _ in range(300):
        flipped = bytearray(data)
        flipped[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        path.write_bytes(flipped)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            loaded = manager.load_latest(0)
        steps.append(loaded["step"])
        assert torch.equal(loaded["weights"], content["weights"])
        assert loaded["records"] == content["records"]
        assert (loaded["step"] == 1) == any("is damaged and skipped" in str(warning.message) for warning in caught)
    assert steps.count(1) > 150  # the others are in places that hold nothing, such as padding


def test_checkpoints_that_expand_are_skipped(tmp_path):
    manager = CheckpointManager(Checkpoints(tmp_path))
    manager.save(0, 1, {"a": torch.zeros(3)})
    path = tmp_path / "0000-0000000002.pt"
    with zipfile.ZipFile(tmp_path / "0000-0000000001.pt") as source:
        contents = {entry: source.read(entry) for entry in source.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry, content in contents.items():
            archive.writestr(entry, content)
    with pytest.warns(UserWarning, match="it is compressed, as checkpoints never are"):
        assert manager.load_latest(0)["a"].tolist() == [0, 0, 0]
