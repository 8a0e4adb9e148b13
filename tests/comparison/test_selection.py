"""Hyperparameters are chosen on validation data: the plain twin's first, then the flatness."""

import json
from dataclasses import replace
from functools import partial

import pytest

from flatbayes.comparison import Comparison, Method, Task, select
from flatbayes.data import Digits
from flatbayes.flatness import SAM
from flatbayes.models import MLP
from flatbayes.posteriors import Point
from flatbayes.training import Constant, Recipe

COMMON = Comparison(
    source=Digits(train_size=60, val_size=40),
    model=partial(MLP, hidden=(16,)),
    posteriors=(Point(),),
    recipe=Recipe(epochs=3, batch_size=20, validations=0, schedule=Constant()),
    seeds=2,
)
SLOW = {"optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 1e-6}}}
FAST = {"optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.3}}}


def test_the_best_plain_setting_and_then_the_best_radius(tmp_path, monkeypatch):
    parts = []
    attempt = Task.attempt
    monkeypatch.setattr(Task, "attempt", lambda task, folder: (parts.append(task.part), attempt(task, folder))[1])
    candidates = {"MAP": [Method(Point(), recipe=SLOW), Method(Point(), recipe=FAST)]}
    (chosen,) = select(COMMON, candidates, [SAM(rho=1e3), SAM(rho=0.05)], tmp_path, jobs=1)
    assert chosen == Method(Point(), SAM(rho=0.05), FAST, "MAP")
    assert set(parts) == {"val"}

    record = json.loads((tmp_path / "selection.json").read_text())
    trials = record["trials"]
    assert [trial["twin"] for trial in trials] == ["plain", "plain", "flat", "flat"]
    assert [trial["chosen"] for trial in trials] == [False, True, False, True]
    scores = [replace(task, part="val").execute()["metrics"]["nll"] for task in _plain_tasks(chosen)]
    assert trials[1]["score"] == pytest.approx(sum(scores) / 2)

    monkeypatch.setattr(Task, "attempt", lambda *a: pytest.fail("a kept run was done again"))
    assert select(COMMON, candidates, [SAM(rho=1e3), SAM(rho=0.05)], tmp_path, jobs=1) == [chosen]


def _plain_tasks(method):
    return replace(COMMON, posteriors=(method,)).tasks()[::2]


def test_a_method_of_which_nothing_survives_is_named(tmp_path):
    diverging = {"optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 1e30}}}
    with pytest.raises(RuntimeError, match="No setting of MAP came to an end"):
        select(COMMON, {"MAP": [Method(Point(), recipe=diverging)]}, [SAM()], tmp_path, jobs=1)
