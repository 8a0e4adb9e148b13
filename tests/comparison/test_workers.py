"""Comparison runs on a Ray cluster are those of this machine."""

import subprocess
import sys
from dataclasses import replace
from functools import partial

import pytest

from flatbayes.comparison import Comparison
from flatbayes.comparison.workers import workers
from flatbayes.data import Digits
from flatbayes.models import MLP
from flatbayes.posteriors import Point
from flatbayes.training import Recipe

COMPARISON = Comparison(
    source=Digits(),
    model=partial(MLP, hidden=[4]),
    posteriors=[Point()],
    recipe=Recipe(epochs=1, batch_size=256, validations=0),
    seeds=1,
    num_draws=1,
)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # of files that ray leaves open
@pytest.mark.filterwarnings("ignore::FutureWarning:ray")
def test_a_ray_cluster_gives_what_this_machine_gives(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # it would leave a token in the home folder
    ray = pytest.importorskip("ray")
    here = COMPARISON.results(tmp_path / "here", jobs=1, progress=False)
    ray.init(num_cpus=2, object_store_memory=100_000_000, include_dashboard=False, log_to_driver=False)
    try:
        there = COMPARISON.results(tmp_path / "there", progress=False, backend="ray")
        assert ray.is_initialized()  # it was not ours to shut down
    finally:
        ray.shutdown()
    assert not there["failures"]
    assert len(there["runs"]) == 2
    assert [run["metrics"] for run in there["runs"]] == [run["metrics"] for run in here["runs"]]


def test_without_ray_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"flatbayes\[cluster\]"), workers("ray"):
        pass


def test_runs_are_each_on_one_device(tmp_path):
    several = replace(COMPARISON, recipe=replace(COMPARISON.recipe, devices=2))
    with pytest.raises(ValueError, match="each on one device"):
        several.results(tmp_path, jobs=1, progress=False)


def test_the_command_line_knows_backends():
    done = subprocess.run(
        [sys.executable, "-m", "flatbayes", "compare", "--data", "digits", "--out", "x", "--backend", "slurm"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "loky" in done.stderr
