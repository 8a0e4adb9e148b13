"""Trainings in workers are those of one process, whoever starts the workers."""

import os
import signal
import sys
import time
from concurrent.futures import BrokenExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import processes
from flatbayes.cli import main
from flatbayes.data import Digits
from flatbayes.experiments import Comparison
from flatbayes.flatness import SAM
from flatbayes.likelihoods import Categorical
from flatbayes.models import MLP
from flatbayes.posteriors import MAP, SWAG, Ensemble
from flatbayes.training import Checkpoints, History, TrainingConfig, fit
from flatbayes.training.distributed.workers import (
    default_num_jobs,
    exit_with_parent,
    get_worker_options,
    parallel_backend,
    share_devices,
)
from processes import CONFIG, data, smooth

COMPARISON = Comparison(
    source=Digits(),
    model=partial(MLP, hidden=[4]),
    posteriors=[MAP()],
    config=TrainingConfig(epochs=1, batch_size=256, num_validations=0),
    num_seeds=1,
    num_draws=1,
)


def ensemble(members, **options):
    watch = History()
    training_config = CONFIG.with_options(distribution={"members": members}, epochs=2)
    fitted = fit(
        smooth,
        data(),
        Ensemble(SWAG(rank=2), size=3),
        SAM(),
        training_config,
        show_progress=False,
        callback=watch,
        **options,
    )
    return fitted, watch.records


def same(one, other):
    (fitted, records), (expected, expected_records) = one, other
    assert records == expected_records
    assert fitted.info["cost"]["gradients"] == expected.info["cost"]["gradients"] > 0
    for state, expected_state in zip(fitted.states, expected.states, strict=True):
        for kind in ("model", "statistics"):
            for name, tensor in expected_state.state_dict()[kind].items():
                assert torch.equal(state.state_dict()[kind][name], tensor), name


@pytest.mark.slow
def test_members_in_workers_are_those_of_one_process(tmp_path):
    expected = ensemble("one_by_one")
    found = ensemble("workers", checkpoints=Checkpoints(tmp_path / "kept"))
    same(found, expected)
    assert len(list((tmp_path / "kept").glob("*.pt"))) == 3


def test_members_in_workers_need_data_and_one_device():
    loader = DataLoader(TensorDataset(torch.zeros(4, 32), torch.zeros(4, dtype=torch.int64)))
    training_config = CONFIG.with_options(distribution={"members": "workers"})
    with pytest.raises(ValueError, match="from data rather than from a loader"):
        fit(smooth, loader, Ensemble(size=2), SAM(), training_config, likelihood=Categorical(3))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # of files that ray leaves open
@pytest.mark.filterwarnings("ignore::FutureWarning:ray")
def test_a_ray_cluster_gives_what_this_machine_gives(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # it would leave a token in the home folder
    ray = pytest.importorskip("ray")
    paths = [str(Path(processes.__file__).parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))  # where workers find the networks
    here = COMPARISON.run(tmp_path / "here", jobs=1, show_progress=False)
    ray.init(num_cpus=2, object_store_memory=100_000_000, include_dashboard=False, log_to_driver=False)
    try:
        there = COMPARISON.run(tmp_path / "there", show_progress=False, backend="ray")
        assert ray.is_initialized()  # it was not ours to shut down
        with parallel_backend("ray"):
            members = ensemble("workers")
    finally:
        ray.shutdown()
    same(members, ensemble("one_by_one"))
    assert not there.failures
    assert len(there.runs) == 2
    assert [run.metrics for run in there.runs] == [run.metrics for run in here.runs]


def test_without_ray_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"flatbayes\[cluster\]"), parallel_backend("ray"):
        pass


def test_runs_are_each_on_one_device(tmp_path):
    several = replace(COMPARISON, config=COMPARISON.config.with_options(distribution={"devices": 2}))
    with pytest.raises(ValueError, match="is trained on one device"):
        several.run(tmp_path, jobs=1, show_progress=False)


def test_the_command_line_knows_backends(capsys):
    assert main(["compare", "--data", "digits", "--out", "x", "--backend", "slurm"]) == 2
    assert "loky" in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(os, "fork"), reason="starts processes by fork")
def test_a_worker_ends_with_the_process_that_started_it():
    reading, writing = os.pipe()
    parent = os.fork()
    if parent == 0:
        if os.fork() == 0:
            exit_with_parent(os.getppid())
            os.write(writing, b"started")
            time.sleep(60)
        signal.pause()
    os.close(writing)
    assert os.read(reading, 7) == b"started"
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    began = time.monotonic()
    assert os.read(reading, 1) == b""  # the end of file, once the worker has ended
    assert time.monotonic() - began < 10
    os.close(reading)


def test_a_killed_worker_ends_in_a_message(monkeypatch):
    def fail(*args, **kwargs):
        raise BrokenExecutor("killed")

    monkeypatch.setattr("joblib.Parallel.__call__", fail)
    with pytest.raises(RuntimeError, match="trains members of the ensemble was killed"):
        ensemble("workers")


@pytest.fixture
def machine(monkeypatch):
    """Sets the number of CUDA devices of this machine."""
    monkeypatch.delenv("FLATBAYES_ACCELERATOR", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    return lambda count: monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)


def test_there_is_one_process_per_gpu_or_per_core(machine):
    machine(3)
    assert default_num_jobs() == default_num_jobs("cuda") == 3
    assert default_num_jobs("cpu") == os.cpu_count()


@pytest.mark.parametrize(("visible", "expected"), [(None, ["0", "1", "0", "1"]), ("4,GPU-7", ["4", "GPU-7"] * 2)])
def test_workers_take_the_devices_in_turn(machine, monkeypatch, visible, expected):
    machine(2)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with share_devices() as devices:
        taken = []
        for _ in expected:
            taken.append(devices.take_device())
            assert os.environ["CUDA_VISIBLE_DEVICES"] == taken[-1]
    assert taken == expected


def test_one_device_or_none_is_not_divided(machine):
    machine(1)
    with share_devices() as devices:
        assert devices is None
    machine(2)
    with share_devices("cpu") as devices:
        assert devices is None


def see_device(_):
    time.sleep(0.5)  # long enough for the other worker to start
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def test_each_worker_sees_one_device(machine):
    from joblib import Parallel, delayed

    machine(2)
    with share_devices() as devices:
        seen = Parallel(n_jobs=2, **get_worker_options(devices))(delayed(see_device)(k) for k in range(4))
    assert set(seen) == {"0", "1"}
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
