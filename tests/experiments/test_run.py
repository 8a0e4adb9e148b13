"""One run: what its cache key depends on, one thread, checkpoints, and equal runs executed once."""

import math
import warnings
from copy import copy
from dataclasses import dataclass, replace
from functools import partial

import joblib
import numpy as np
import pytest
import torch
from torch import nn

from flatbayes.data import DataWarning, Digits, Table
from flatbayes.experiments import Comparison, EvaluationConfig, ExperimentRun, execute_runs, parallel
from flatbayes.experiments import run as run_module
from flatbayes.experiments.comparison import DEFAULT_POSTERIORS
from flatbayes.experiments.fit_options import FitOptions
from flatbayes.experiments.parallel import choose_num_jobs, estimate_seconds
from flatbayes.experiments.run import group_runs, try_execute_together
from flatbayes.experiments.run_result import RunDetails
from flatbayes.flatness import SAM, Flatness, Plain
from flatbayes.likelihoods import Categorical, Custom
from flatbayes.models import MLP
from flatbayes.posteriors import MAP, SWAG, Ensemble
from flatbayes.prediction import evaluate
from flatbayes.training import TrainingConfig, recording
from flatbayes.training.loop import train
from flatbayes.training.sharing import try_fit_together
from reproduction.table_config import TableConfig

RUN = ExperimentRun(
    source=Digits(train_size=40, val_size=20),
    model=partial(MLP, hidden=(4,)),
    posterior=MAP(),
    flatness=Plain(),
    config=TrainingConfig(epochs=2, batch_size=20, num_validations=0),
    seed=0,
    num_draws=2,
)


def test_the_cache_key_depends_on_the_version(monkeypatch):
    key = RUN.cache_key()
    assert key == replace(RUN).cache_key()
    monkeypatch.setattr("flatbayes.experiments.run.get_version", lambda: "0.0")
    assert RUN.cache_key() != key


def test_a_run_has_one_thread_and_restores_the_number(monkeypatch):
    threads = []

    def fit_and_count(*args, **options):
        threads.append(torch.get_num_threads())
        return try_fit_together(*args, **options)

    before = torch.get_num_threads()
    monkeypatch.setattr("flatbayes.experiments.run.try_fit_together", fit_and_count)
    try:
        torch.set_num_threads(2)
        RUN.execute()
        assert (threads, torch.get_num_threads()) == ([1], 2)
    finally:
        torch.set_num_threads(before)


def test_data_with_a_fingerprint_are_read_without_warnings(tmp_path):
    (tmp_path / "t.csv").write_text(",a,y\n" + "".join(f"{row},{row / 7},{'uv'[row % 2]}\n" for row in range(60)))
    run = replace(RUN, source=Table(path=str(tmp_path / "t.csv"), target="y"))
    with pytest.warns(DataWarning, match="is left out"):
        result = run.execute()
    with warnings.catch_warnings(action="error", category=DataWarning):
        assert replace(run, data_fingerprint={"train": "43 rows"}).execute().metrics == result.metrics


def test_a_result_has_the_labels_of_the_run():
    result = replace(RUN, posterior_name="mine", flatness=SAM(rho=0.1), seed=3, split="val").execute()
    assert (result.posterior, result.flatness, result.seed, result.split) == ("mine", "SAM(rho=0.1)", 3, "val")
    assert (result.data, result.model) == ("Digits(train_size=40, val_size=20)", "MLP(hidden=[4])")


def test_the_history_of_an_ensemble_is_that_of_its_first_member():
    result = replace(RUN, posterior=Ensemble(size=2)).execute()
    assert result.history.epoch == (1, 2)
    assert len(result.history.loss) == 2


def test_draws_and_evaluations_have_the_seed_and_split_of_the_run(monkeypatch):
    calls = []

    def record(fitted, inputs, targets, num_draws, *, seed):
        calls.append((len(inputs), num_draws, seed))
        return evaluate(fitted, inputs, targets, num_draws, seed=seed)

    def compute_metrics(self, fitted, data, split_name, num_draws, seed):
        calls.append((split_name, num_draws, seed))
        return {"extra": 1.0}, RunDetails()

    monkeypatch.setattr("flatbayes.experiments.run.evaluate", record)
    monkeypatch.setattr(EvaluationConfig, "compute_metrics", compute_metrics)
    result = replace(RUN, seed=3, split="val").execute()
    assert calls == [(20, 2, 3), ("val", 2, 3)]
    assert result.metrics["extra"] == 1.0


@pytest.mark.parametrize("error", [RuntimeError, ValueError])
def test_a_failed_run_leaves_no_checkpoints(tmp_path, monkeypatch, error):
    def fail(*args, checkpoints, **options):
        checkpoints.folder.mkdir(parents=True)
        (checkpoints.folder / "0000.pt").write_text("")
        raise error("no")

    monkeypatch.setattr("flatbayes.experiments.run.try_fit_together", fail)
    assert try_execute_together([RUN], tmp_path) == [(RUN, "no")]
    assert not list(tmp_path.iterdir())


def test_an_interrupted_run_keeps_its_checkpoints(tmp_path, monkeypatch):
    def interrupt(*args, checkpoints, **options):
        checkpoints.folder.mkdir(parents=True)
        raise KeyboardInterrupt

    monkeypatch.setattr("flatbayes.experiments.run.try_fit_together", interrupt)
    with pytest.raises(KeyboardInterrupt):
        try_execute_together([RUN], tmp_path)
    assert list(tmp_path.glob("*.checkpoints"))


def test_equal_runs_are_executed_once(tmp_path, monkeypatch):
    executed = []
    execute = run_module.execute_together
    monkeypatch.setattr(
        run_module,
        "execute_together",
        lambda runs, *args: (executed.extend(run.name for run in runs), execute(runs, *args))[1],
    )
    assert execute_runs([RUN, replace(RUN), replace(RUN, seed=1)], tmp_path, jobs=1, show_progress=False) == []
    assert executed == ["MAP Plain seed 0", "MAP Plain seed 1"]
    assert execute_runs([RUN], tmp_path, jobs=1, show_progress=False) == []
    assert len(executed) == 2


@pytest.mark.parametrize(
    ("seconds", "max_jobs", "expected"),
    [
        ([1.0, 1.0], 2, 1),  # 2 s here, 1 s and the start of the workers there
        ([60.0, 60.0], 2, 2),
        ([60.0, 0.1, 0.1], 2, 1),  # as long as its longest run
        ([2.0] * 8, 64, 64),
        ([math.nan, math.nan], 2, 2),
        ([100.0, 100.0], 1, 1),
    ],
)
def test_workers_are_started_where_they_save_time(seconds, max_jobs, expected):
    assert choose_num_jobs(seconds, max_jobs) == expected


def test_estimated_work_is_a_few_steps_times_their_number(monkeypatch):
    flat = replace(RUN, flatness=SAM(), posterior=Ensemble(size=3))
    measured = estimate_seconds([[RUN], [flat]])
    assert 0 < measured[0] < measured[1]
    monkeypatch.setattr(parallel, "measure_step_seconds", lambda *_, **options: 0.5)  # a gradient on 20 examples
    num_test = len(RUN.load_data().test)
    evaluation = 0.5 / 20 * 2 * num_test / 3
    assert estimate_seconds([[RUN], [flat]]) == pytest.approx([2 + evaluation, 2 * 2 * 3 + evaluation])
    assert estimate_seconds([[flat], [RUN]]) == pytest.approx([6 + evaluation / 2, 1 + evaluation / 2])
    shared = estimate_seconds([[RUN, replace(RUN, posterior=Ensemble(size=2))]])  # of two trainings
    assert shared == pytest.approx([4 + 2 * evaluation])
    monkeypatch.undo()
    assert all(map(math.isnan, estimate_seconds([[replace(RUN, source=Digits(train_size=5000))]] * 2)))


def test_the_estimate_of_the_work_does_not_warn_of_a_divergence():
    diverging = replace(RUN, config=replace(RUN.config, optimizer=partial(torch.optim.SGD, lr=1e3)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (seconds,) = estimate_seconds([[diverging]])
    assert seconds > 0


@pytest.mark.parametrize(("seconds", "expected"), [(None, 1), (1e4, 2)])
def test_the_default_number_of_processes_depends_on_the_work(tmp_path, monkeypatch, seconds, expected):
    started = []

    class SequentialParallel(joblib.Parallel):
        def __init__(self, n_jobs, return_as, **options):
            started.append(n_jobs)
            super().__init__(n_jobs=1, return_as=return_as)

    monkeypatch.setattr("joblib.Parallel", SequentialParallel)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    if seconds is not None:
        monkeypatch.setattr(parallel, "estimate_seconds", lambda runs: [seconds] * len(runs))
    state = torch.get_rng_state()
    assert execute_runs([RUN, replace(RUN, seed=1)], tmp_path, show_progress=False) == []
    assert started == [expected]
    assert torch.equal(torch.get_rng_state(), state)


def test_failures_are_sorted_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "execute_together", lambda runs, *args: [RuntimeError("no") for _ in runs])
    runs = [replace(RUN, seed=seed) for seed in (2, 0, 1)]
    failures = execute_runs(runs, tmp_path, jobs=1, show_progress=False)
    assert failures == [f"MAP Plain seed {seed}: no" for seed in range(3)]


def test_the_data_split_has_the_seed_of_the_run(monkeypatch):
    inputs = []

    def fit_and_record(model, data, *args, **options):
        inputs.append(data.train.inputs)
        return try_fit_together(model, data, *args, **options)

    monkeypatch.setattr("flatbayes.experiments.run.try_fit_together", fit_and_record)
    replace(RUN, seed=3).execute()
    assert torch.equal(inputs[0], RUN.source.load(3).train.inputs)


SHARED = [
    replace(RUN, posterior=MAP()),
    replace(RUN, posterior=SWAG(rank=2)),
    replace(RUN, posterior=SWAG(rank=2), num_draws=3, split="val"),
    replace(RUN, posterior=Ensemble(size=2)),
    replace(RUN, posterior=Ensemble(size=3), config=RUN.config.with_options(**{"collection.num_norm_batches": 3})),
    replace(RUN, posterior=MAP(), config=RUN.config.with_options(epochs=3)),
    replace(RUN, posterior=MAP(), seed=1),
    replace(RUN, posterior=MAP(), flatness=SAM()),
    replace(RUN, posterior=MAP(), model=partial(MLP, hidden=(5,))),
]


@pytest.fixture
def trainings(monkeypatch):
    """Every training of a network, by the posterior that takes the steps."""
    trained = []
    monkeypatch.setattr(
        recording, "train", lambda run, *args: (trained.append(run.leader.posterior), train(run, *args))[1]
    )
    return trained


@dataclass(frozen=True)
class OwnOptimizer(MAP):
    """A posterior that makes its optimizer from its own hyperparameters."""

    lr: float = 0.1

    @property
    def default_optimizer(self):
        return lambda params: torch.optim.SGD(params, lr=self.lr)


def test_runs_share_no_training_where_an_optimizer_cannot_be_written_down(tmp_path):
    runs = [replace(RUN, posterior=posterior) for posterior in (OwnOptimizer(), OwnOptimizer(lr=0.2), MAP())]
    assert group_runs(runs) == [[run] for run in runs]
    assert execute_runs(runs, tmp_path, jobs=1, show_progress=False) == []


def test_runs_of_different_networks_in_memory_share_no_training():
    first, second = nn.Linear(64, 10), nn.Linear(64, 10)
    runs = [replace(RUN, model=model, posterior=p) for model in (first, second) for p in (MAP(), SWAG(rank=2))]
    assert group_runs(runs) == [runs[:2], runs[2:]]


def test_networks_that_several_runs_need_are_trained_once(tmp_path, trainings):
    assert [len(group) for group in group_runs(SHARED)] == [5, 1, 1, 1, 1]
    assert execute_runs(SHARED, tmp_path / "shared", jobs=1, show_progress=False) == []
    assert len(trainings) == 3 + 4
    trainings.clear()
    alone = tmp_path / "alone"
    assert execute_runs(SHARED, alone, jobs=1, show_progress=False, share_trainings=False) == []
    assert len(trainings) == 3 + 5 + 4
    for run in SHARED:
        shared, result = run.load_result(tmp_path / "shared"), run.load_result(alone)
        assert replace(shared, cost=result.cost) == result
        assert shared.cost.gradients == result.cost.gradients
    costs = [run.load_result(tmp_path / "shared").cost.num_posteriors for run in SHARED]
    assert costs == [4, 4, 4, 4, 4, 1, 1, 1, 1]


def test_only_the_missing_runs_of_a_training_are_executed(tmp_path, trainings):
    SHARED[0].execute(tmp_path)
    assert execute_runs(SHARED[:4], tmp_path, jobs=1, show_progress=False) == []
    assert trainings == [MAP(), SWAG(rank=2), Ensemble(size=2)]
    assert not list(tmp_path.glob("*.checkpoints"))


@pytest.mark.parametrize("share_trainings", [True, False])
def test_runs_of_several_processes_have_checkpoints_of_their_own(tmp_path, monkeypatch, share_trainings):
    folders = []

    def fit_and_record(*args, checkpoints, **options):
        folders.append(checkpoints.folder)
        return try_fit_together(*args, checkpoints=checkpoints, **options)

    monkeypatch.setattr(run_module, "try_fit_together", fit_and_record)
    execute_runs(SHARED[:2], tmp_path, jobs=1, show_progress=False, share_trainings=share_trainings)
    for rank in (3, 4):  # as processes do that tune in one folder
        try_execute_together([replace(RUN, posterior=SWAG(rank=rank))], tmp_path)
    assert len(set(folders)) == len(folders) == (3 if share_trainings else 4)


def test_a_run_that_fails_leaves_the_results_of_those_that_share_its_training(tmp_path, monkeypatch):
    evaluate_run = ExperimentRun.evaluate

    def evaluate_or_fail(run, *args):
        if run is SHARED[1]:
            raise ValueError("no")
        return evaluate_run(run, *args)

    monkeypatch.setattr(ExperimentRun, "evaluate", evaluate_or_fail)
    failures = execute_runs(SHARED[:3], tmp_path, jobs=1, show_progress=False)
    assert failures == ["SWAG(rank=2) Plain seed 0: no"]
    assert [run.load_result(tmp_path) is None for run in SHARED[:3]] == [False, True, False]


def test_the_evaluations_of_a_trained_group_continue_without_training(tmp_path, monkeypatch, trainings):
    def interrupt(run, *args):
        raise KeyboardInterrupt

    monkeypatch.setattr("flatbayes.experiments.run.CHECKPOINT_INTERVAL_SECONDS", 0.0)
    monkeypatch.setattr(ExperimentRun, "evaluate", interrupt)
    with pytest.raises(KeyboardInterrupt):
        execute_runs(SHARED[:4], tmp_path, jobs=1, show_progress=False)
    monkeypatch.undo()
    (folder,) = tmp_path.glob("*.checkpoints")
    assert len(trainings) == 2
    monkeypatch.setattr(recording, "train", lambda *args: pytest.fail("it was trained again"))
    assert execute_runs(SHARED[1:4], tmp_path, jobs=1, show_progress=False) == []
    assert not folder.exists()
    monkeypatch.undo()
    assert SHARED[1].load_result(tmp_path).metrics == SHARED[1].execute().metrics


@pytest.mark.parametrize(
    ("runs", "alone", "shared"),
    [
        (Comparison(Digits(), MLP, DEFAULT_POSTERIORS, num_seeds=1, data_fingerprint={}).list_runs(), 16, 12),
        (TableConfig("cifar10", cell_pattern="wrn28x10-*").make_runs(), 18, 10),
    ],
    ids=["compare", "paper"],
)
def test_number_of_trainings(runs, alone, shared):
    assert sum(run.posterior.num_members for run in runs) == alone
    assert sum(max(run.posterior.num_members for run in group) for group in group_runs(runs)) == shared


class OwnFlatness(Flatness):
    """As in docs/two-axes.md; it counts its steps."""

    def __init__(self, rho):
        self.rho, self.num_steps = rho, 0

    def __call__(self, closure, model, progress=None):
        self.num_steps += 1
        return Plain()(closure, model, progress)


def with_value(component, name, value):
    """A copy with another value, past the checks of types that the tests add."""
    component = copy(component)
    object.__setattr__(component, name, value)
    return component


def weighted(weight):
    return Custom(nn.CrossEntropyLoss(torch.full((10,), weight)), Categorical(10))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"flatness": OwnFlatness(0.1)}, {"flatness": OwnFlatness(0.5)}),
        ({"flatness": with_value(SAM(), "rho", np.float32(0.25))}, {"flatness": SAM(0.5)}),
        ({"config": with_value(RUN.config, "epochs", np.int64(1))}, {"config": TrainingConfig(epochs=2)}),
        ({"options": FitOptions(likelihood=weighted(1.0))}, {"options": FitOptions(likelihood=weighted(2.0))}),
        ({"model": partial(MLP, (28, 28))}, {"model": partial(MLP, (28, 29))}),
    ],
)
def test_runs_that_differ_in_an_object_have_other_keys(one, other):
    first, second = replace(RUN, **one), replace(RUN, **other)
    assert first.cache_key() != second.cache_key() != replace(RUN, **one).cache_key()
    assert first.training_key() != second.training_key()


def test_numpy_numbers_have_the_key_and_the_name_of_plain_ones():
    posterior, flatness = with_value(SWAG(), "rank", np.int64(6)), with_value(SAM(), "rho", np.float32(0.5))
    run = replace(RUN, posterior=posterior, flatness=flatness)
    plain = replace(RUN, posterior=SWAG(rank=6), flatness=SAM(0.5))
    assert (run.cache_key(), run.training_key()) == (plain.cache_key(), plain.training_key())
    assert run.name == "SWAG(rank=6) SAM(rho=0.5) seed 0"


def test_a_flatness_that_changes_while_training_keeps_the_key(tmp_path):
    run = replace(RUN, flatness=OwnFlatness(0.1))
    key = run.cache_key()
    assert execute_runs([run], tmp_path, jobs=1) == []
    assert run.flatness.num_steps > 0
    assert run.load_result(tmp_path) is not None
    assert run.cache_key() == key
