"""Hyperparameters are selected on validation data: settings of plain training first, then the flatness."""

import json
from dataclasses import replace
from functools import partial

import pytest

from flatbayes.data import Digits
from flatbayes.experiments import Comparison, ExperimentRun, Method, RunResult, SelectionRecord, select_methods
from flatbayes.experiments import run as run_module
from flatbayes.experiments.selection import extend_flatnesses
from flatbayes.flatness import ASAM, LESAM, SAM
from flatbayes.models import MLP
from flatbayes.posteriors import MAP
from flatbayes.reporting.selection import summarize_selection
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
    execute = run_module.execute_together
    monkeypatch.setattr(
        run_module,
        "execute_together",
        lambda runs, *args: (splits.extend(run.split for run in runs), execute(runs, *args))[1],
    )
    candidates = {"MAP": [Method(MAP(), config_overrides=SLOW), Method(MAP(), config_overrides=FAST)]}
    (selected,) = select_methods(
        COMMON, candidates, [SAM(rho=1e3), SAM(rho=0.05)], tmp_path, jobs=1, num_extensions=0
    )
    assert selected == Method(MAP(), SAM(rho=0.05), FAST, "MAP")
    assert set(splits) == {"val"}

    record = json.loads((tmp_path / "selection.json").read_text())
    trials = record["trials"]
    assert [trial["variant"] for trial in trials] == ["plain", "plain", "flat", "flat"]
    assert [trial["is_best"] for trial in trials] == [False, True, False, True]
    scores = [replace(run, split="val").execute().metrics["nll"] for run in _plain_runs(selected)]
    assert trials[1]["score"] == pytest.approx(sum(scores) / 2)

    monkeypatch.setattr(run_module, "execute_together", lambda *a: pytest.fail("a finished run was repeated"))
    assert select_methods(COMMON, candidates, [SAM(rho=1e3), SAM(rho=0.05)], tmp_path, jobs=1, num_extensions=0) == [
        selected
    ]


def test_radii_beyond_the_candidates_and_plain_training_are_tried(tmp_path):
    candidates = {"MAP": [Method(MAP(), config_overrides=FAST)]}
    (selected,) = select_methods(COMMON, candidates, [SAM(rho=2e3), SAM(rho=1e3)], tmp_path, jobs=1, num_extensions=1)
    record = SelectionRecord.load(tmp_path)
    assert [trial.setting.partition("rho=")[2] for trial in record.trials] == ["", "2000)", "1000)", "500)"]
    assert selected.flatness.rho in (500, 1000)
    assert record.list_unpaid() == ["MAP"]
    assert "does not pay for MAP" in summarize_selection(record).text


@pytest.mark.parametrize(
    ("flatnesses", "best", "radius"),
    [
        ([SAM(rho=0.1), SAM(rho=0.2), SAM(rho=0.4)], 2, 0.8),
        ([SAM(rho=0.1), SAM(rho=0.2), SAM(rho=0.4)], 1, None),
        ([LESAM(loss_budget=0.4), LESAM(loss_budget=0.1)], 1, 0.025),
        ([SAM(rho=1e-3), SAM(rho=1.0)], 1, 10.0),
        ([SAM(rho=0.1)], 0, None),
        ([SAM(rho=0.1), ASAM(rho=0.2)], 1, None),
        ([SAM(rho="auto"), SAM(rho=0.2)], 1, None),
    ],
)
def test_a_radius_beyond_the_candidates(flatnesses, best, radius):
    further = extend_flatnesses(flatnesses, best)
    assert (None if further is None else further.radius) == (None if radius is None else pytest.approx(radius))


def _plain_runs(method):
    return replace(COMMON, posteriors=(method,)).list_runs()[::2]


def test_a_method_whose_trials_all_fail_is_named(tmp_path):
    diverging = {"optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 1e30}}}
    with pytest.raises(RuntimeError, match="All settings of MAP failed"):
        select_methods(COMMON, {"MAP": [Method(MAP(), config_overrides=diverging)]}, [SAM()], tmp_path, jobs=1)


def select_by_accuracy(folder, monkeypatch, accuracy):
    """Select among settings whose accuracy is a function of the number of epochs and the seed."""

    def load_result(run, folder):
        value = accuracy(run.config.epochs, run.seed)
        return None if value is None else RunResult("MAP", "Plain", run.seed, {"accuracy": value})

    monkeypatch.setattr("flatbayes.experiments.selection.execute_runs", lambda *args, **options: [])
    monkeypatch.setattr(ExperimentRun, "load_result", load_result)
    candidates = {"MAP": [Method(MAP(), config_overrides={"epochs": epochs}) for epochs in (1, 3, 2)]}
    (selected,) = select_methods(COMMON, candidates, [SAM()], folder, metric="accuracy")
    return selected.config_overrides["epochs"]


def test_the_direction_of_the_metric_decides(tmp_path, monkeypatch):
    assert select_by_accuracy(tmp_path, monkeypatch, lambda epochs, seed: epochs / 10) == 3
    assert select_by_accuracy(tmp_path, monkeypatch, lambda epochs, seed: -epochs) == 1


def test_a_setting_with_a_failed_seed_has_no_score(tmp_path, monkeypatch):
    accuracy = {(3, 0): 0.9, (3, 1): None}
    epochs = select_by_accuracy(tmp_path, monkeypatch, lambda *key: accuracy.get(key, key[0] / 10 + key[1]))
    assert epochs == 2
    scores = {trial.setting: trial.score for trial in SelectionRecord.load(tmp_path).trials}
    assert scores["MAP, epochs=3, Plain"] is None
    assert scores["MAP, epochs=2, Plain"] == pytest.approx((0.2 + 1.2) / 2)
