"""A comparison is a pure function of its configuration: cached, continued, and reproducible after an interruption."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from flatbayes.data import Digits, Npz
from flatbayes.experiments import Comparison, ComparisonResult, EvaluationConfig
from flatbayes.experiments import run as run_module
from flatbayes.experiments.folder_lock import unlock_folders
from flatbayes.flatness import SAM, Plain, RandomPerturbation
from flatbayes.models import MLP
from flatbayes.posteriors import MAP, SWAG, MCDropout
from flatbayes.training import CollectionConfig, TrainingConfig
from flatbayes.training.sharing import try_fit_together

SMALL = Comparison(
    source=Digits(train_size=60, val_size=40),
    model=partial(MLP, hidden=(16,)),
    posteriors=(MAP(), SWAG(rank=2)),
    flatness=SAM(rho=0.1),
    config=TrainingConfig(
        epochs=3, batch_size=20, collection=CollectionConfig(start_fraction=0.0), num_validations=1
    ),
    num_seeds=2,
    num_draws=3,
)


def outcome(results):
    return [(run.posterior, run.flatness, run.seed, run.metrics, run.reliability) for run in results.runs]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    SMALL.claim_folder(folder, overwrite=False)
    return folder, SMALL.run(folder, jobs=1)


def test_results_have_every_run_and_the_documented_keys(finished):
    folder, results = finished
    data = json.loads((folder / "results.json").read_text(), parse_constant=pytest.fail)  # no NaN in the file
    assert set(data) == {"schema", "flatbayes", "environment", "config", "runs", "summary", "failures", "notes"}
    assert len(results.runs) == 2 * 2 * 2
    for run, run_data in zip(results.runs, data["runs"], strict=True):
        assert {"data", "model", "posterior", "flatness", "seed", "split", "metrics", "cost"} <= set(run_data)
        assert {"accuracy", "nll", "ece", "brier"} <= set(run.metrics)
        assert run.cost.train_seconds > 0
        assert run.cost.gradients == (9 if run.flatness == "Plain" else 18)
        assert (run.split, run.history.epoch) == ("test", (1, 2, 3))
    assert {run.posterior for run in results.runs} == {"MAP", "SWAG(rank=2)"}
    assert {run.flatness for run in results.runs} == {"Plain", "SAM(rho=0.1)"}
    for row in data["summary"]:
        assert {"posterior", "metric", "plain", "flat", "difference", "interval", "winner"} <= set(row)
    assert len(results.rows) == 2 * 6
    assert ComparisonResult.load(folder) == results


def test_finished_runs_are_loaded_without_training(finished, monkeypatch):
    folder, results = finished
    monkeypatch.setattr(run_module, "execute_together", lambda *a: pytest.fail("a finished run was repeated"))
    SMALL.claim_folder(folder, overwrite=False)
    assert SMALL.run(folder).runs == results.runs


def test_an_interrupted_comparison_ends_the_same(finished, tmp_path):
    _, results = finished
    for task in SMALL.list_runs()[:3]:
        task.execute(tmp_path / "runs")
    damaged = tmp_path / "runs" / f"{SMALL.list_runs()[1].cache_key()}.json"
    damaged.write_text('{"half')
    SMALL.claim_folder(tmp_path, overwrite=False)
    assert outcome(SMALL.run(tmp_path, jobs=2)) == outcome(results)


def test_more_posteriors_and_seeds_may_be_added(finished):
    folder, results = finished
    more = replace(SMALL, num_seeds=3, posteriors=(MAP(), SWAG(rank=2), MCDropout(rate=0.1)))
    more.claim_folder(folder, overwrite=False)
    assert outcome(more.run(folder, jobs=1))[0] == outcome(results)[0]
    SMALL.claim_folder(folder, overwrite=False)
    assert outcome(SMALL.run(folder)) == outcome(results)


def test_the_folder_of_another_comparison_is_refused(finished, tmp_path):
    folder, _ = finished
    other = replace(SMALL, num_draws=4)
    with pytest.raises(ValueError, match=r"already holds another run \(it differs in num_draws\).*--overwrite"):
        other.claim_folder(folder, overwrite=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        SMALL.claim_folder(tmp_path / "file", overwrite=False)
    (tmp_path / "own.txt").write_text("mine")
    SMALL.claim_folder(tmp_path, overwrite=False)
    (tmp_path / "results.json").write_text("{}")
    other.claim_folder(tmp_path, overwrite=True)
    unlock_folders(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "file", "own.txt"]


def test_the_test_split_is_the_same_for_all_seeds_and_differs_from_validation():
    first, second = (SMALL.source.load(seed) for seed in (0, 1))
    assert torch.equal(first.test.inputs, second.test.inputs)
    assert not torch.equal(first.train.inputs, second.train.inputs)
    task = SMALL.list_runs()[0]
    assert task.execute().metrics != replace(task, split="val").execute().metrics


def test_the_training_split_can_be_evaluated():
    task = replace(SMALL.list_runs()[0], split="train")
    result = task.execute()
    assert (sum(result.reliability.counts), result.split) == (60, "train")


def test_overwriting_leaves_nothing_of_another_kind_of_run(tmp_path):
    (tmp_path / "runs").mkdir()
    ours = (
        "posterior.json",
        f"posterior-{'0' * 16}.safetensors",
        "posterior.safetensors",
        "metrics.jsonl",
        "report.html",
        "runs/0123456789abcdef.json",
    )
    for name in (*ours, "own.txt", "runs/own.json"):
        (tmp_path / name).write_text("{}")
    SMALL.claim_folder(tmp_path, overwrite=True)
    unlock_folders(tmp_path)
    left = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert left == ["config.json", "own.txt", "runs/own.json"]


def test_cache_keys_differ_between_runs():
    tasks = SMALL.list_runs()
    changed = [replace(t, num_draws=5) for t in tasks] + [replace(t, split="val") for t in tasks]
    assert len({t.cache_key() for t in tasks + changed}) == 3 * len(tasks)
    assert tasks[0].cache_key() == SMALL.list_runs()[0].cache_key()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_seeds": 0}, "at least 1 seed"),
        ({"num_draws": 0}, "at least 1 draw"),
        ({"posteriors": ()}, "at least one posterior"),
        ({"flatness": Plain()}, "against Plain"),
        ({"split": "all"}, "split must be test, val, train"),
        ({"evaluations": EvaluationConfig(ood=SMALL.source)}, "inputs are those of the training data"),
    ],
)
def test_bad_comparisons_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **changes)


def test_a_failed_run_does_not_stop_the_others_and_is_repeated_by_the_next_call(tmp_path, monkeypatch):
    def fit_or_fail(model, data, methods, flatness, **options):
        if isinstance(flatness, SAM) and options["seed"] == 1:
            raise RuntimeError("The loss is nan")
        return try_fit_together(model, data, methods, flatness, **options)

    monkeypatch.setattr("flatbayes.experiments.run.try_fit_together", fit_or_fail)
    results = replace(SMALL, posteriors=(MAP(),)).run(tmp_path, jobs=1)
    assert results.failures == ("MAP SAM(rho=0.1) seed 1: The loss is nan",)
    assert len(results.runs) == 3
    assert results.rows[0].comparison.num_seeds == 1
    monkeypatch.undo()
    again = replace(SMALL, posteriors=(MAP(),)).run(tmp_path, jobs=1)
    assert len(again.runs) == 4
    assert again.failures == ()
    assert not list((tmp_path / "runs").glob("*.checkpoints"))


def test_a_random_perturbation_is_a_flatness_like_any_other(tmp_path):
    control = replace(SMALL, flatness=RandomPerturbation(rho=0.1), posteriors=(MAP(),), num_seeds=1)
    assert {run.flatness for run in control.run(tmp_path, jobs=1).runs} == {"Plain", "RandomPerturbation(rho=0.1)"}


def test_results_on_other_content_of_the_same_file_are_not_mixed(tmp_path):
    random = np.random.default_rng(0)
    path, folder = tmp_path / "data.npz", tmp_path / "out"

    def write(offset):
        x = random.normal(size=(60, 3))
        np.savez(path, x=x + offset, y=x.argmax(1))

    write(0.0)
    comparison = replace(SMALL, source=Npz(path=str(path)), posteriors=(MAP(),), num_seeds=1)
    comparison.claim_folder(folder, overwrite=False)
    first = comparison.run(folder, jobs=1, show_progress=False)
    write(1.0)
    with pytest.raises(ValueError, match=r"have changed since its training: train has other values in its \d+ rows"):
        comparison.claim_folder(folder, overwrite=False)
    second = comparison.run(folder, jobs=1, show_progress=False)
    assert len(list((folder / "runs").glob("*.json"))) == 4
    assert first.runs[0].metrics != second.runs[0].metrics
