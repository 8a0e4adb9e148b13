"""Hyperparameters are selected on validation data: settings of plain training first, then the flatness."""

import json
from dataclasses import replace
from functools import partial

import pytest

from flatbayes.data import Digits
from flatbayes.experiments import Comparison, ExperimentRun, Method, select_methods
from flatbayes.flatness import SAM
from flatbayes.models import MLP
from flatbayes.posteriors import MAP
from flatbayes.training import Constant, TrainingConfig

COMMON = Comparison(
    source=Digits(train_size=60, val_size=40),
    model=partial(MLP, hidden=(16,)),
    posteriors=(MAP(),),
    config=TrainingConfig(epochs=3, batch_size=20, num_validations=0, schedule=Constant()),
    num_seeds=2,
)
SLOW = {"optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 1e-6}}}
FAST = {"optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.3}}}


def test_the_best_plain_setting_and_then_the_best_radius(tmp_path, monkeypatch):
    splits = []
    try_execute = ExperimentRun.try_execute
    monkeypatch.setattr(
        ExperimentRun, "try_execute", lambda run, folder: (splits.append(run.split), try_execute(run, folder))[1]
    )
    candidates = {"MAP": [Method(MAP(), config_overrides=SLOW), Method(MAP(), config_overrides=FAST)]}
    (selected,) = select_methods(COMMON, candidates, [SAM(rho=1e3), SAM(rho=0.05)], tmp_path, jobs=1)
    assert selected == Method(MAP(), SAM(rho=0.05), FAST, "MAP")
    assert set(splits) == {"val"}

    record = json.loads((tmp_path / "selection.json").read_text())
    trials = record["trials"]
    assert [trial["variant"] for trial in trials] == ["plain", "plain", "flat", "flat"]
    assert [trial["is_best"] for trial in trials] == [False, True, False, True]
    scores = [replace(run, split="val").execute().metrics["nll"] for run in _plain_runs(selected)]
    assert trials[1]["score"] == pytest.approx(sum(scores) / 2)

    monkeypatch.setattr(ExperimentRun, "try_execute", lambda *a: pytest.fail("a finished run was repeated"))
    assert select_methods(COMMON, candidates, [SAM(rho=1e3), SAM(rho=0.05)], tmp_path, jobs=1) == [selected]


def _plain_runs(method):
    return replace(COMMON, posteriors=(method,)).list_runs()[::2]


def test_a_method_whose_trials_all_fail_is_named(tmp_path):
    diverging = {"optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 1e30}}}
    with pytest.raises(RuntimeError, match="All settings of MAP failed"):
        select_methods(COMMON, {"MAP": [Method(MAP(), config_overrides=diverging)]}, [SAM()], tmp_path, jobs=1)
