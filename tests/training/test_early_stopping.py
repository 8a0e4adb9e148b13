"""Early stopping: the best weights of point methods, and snapshots from them on."""

import time
from dataclasses import replace
from functools import partial
from typing import ClassVar

import pytest
import torch
from torch import nn

from flatbayes import (
    IVON,
    LRT,
    MAP,
    SAM,
    SGLD,
    SGVB,
    SWAG,
    Delayed,
    Ensemble,
    Laplace,
    MCDropout,
    Plain,
    evaluate,
    fit,
)
from flatbayes.data import DataSplits, Split
from flatbayes.training import (
    Callback,
    Checkpoints,
    CollectionConfig,
    ConsoleLogger,
    Constant,
    Cosine,
    Cyclical,
    History,
    SWALinear,
    TrainingConfig,
)
from flatbayes.training.early_stopping import (
    Shortened,
    count_first_epochs,
    is_collection_over,
    is_first_part_over,
    list_validation_epochs,
    shorten,
    truncate,
)
from flatbayes.training.identity import describe_training
from flatbayes.training.sharing import try_fit_together

CONFIG = TrainingConfig(min_epochs=40, min_steps=1, batch_size=20, optimizer=partial(torch.optim.SGD, lr=0.5))
POSTERIORS = {
    "MAP": MAP(),
    "MCDropout": MCDropout(rate=0.1),
    "Laplace": Laplace(tune="evidence"),
    "SGVB": SGVB(temperature=0.001),
    "LRT": LRT(temperature=0.001),
    "SWAG": SWAG(rank=2),
    "SGLD": SGLD(temperature=0.001),
    "Ensemble": Ensemble(MAP(), size=2),
}


def make_data():
    """Noisy labels, which networks memorise: the validation NLL rises soon."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(160, 10, generator=generator)
    targets = (inputs[:, 0] + torch.randn(160, generator=generator) > 0).long()
    rows = {"train": slice(60), "val": slice(60, 110), "test": slice(110, 160)}
    return DataSplits(
        **{name: Split(inputs=inputs[r], targets=targets[r]) for name, r in rows.items()},
        class_names=("no", "yes"),
        feature_names=tuple("abcdefghij"),
        augment=None,
    )


def make_network():
    return nn.Sequential(nn.Linear(10, 50), nn.ReLU(), nn.Dropout(0.1), nn.Linear(50, 2))


class Validations(Callback):
    """Validation NLL of all evaluations, also of epochs that are given up."""

    def __init__(self):
        self.losses = []

    def on_epoch_end(self, record):
        if "val_nll" in record:
            self.losses.append(record["val_nll"])


@pytest.mark.parametrize("posterior", POSTERIORS.values(), ids=POSTERIORS)
def test_overfitted_epochs_are_given_up(posterior):
    data, validations = make_data(), Validations()
    fitted = fit(make_network, data, posterior, Plain(), CONFIG, callback=validations)
    whole = fit(make_network, data, posterior, Plain(), CONFIG.with_options(early_stopping=False))
    training = fitted.info["training"]
    assert max(training["last_epochs"]) < 40 == training["epochs"]
    assert evaluate(fitted, data.val).metrics["nll"] < evaluate(whole, data.val).metrics["nll"]
    if isinstance(posterior, MAP):
        nll = evaluate(fitted, data.val).metrics["nll"]
        assert nll == pytest.approx(min(validations.losses), rel=1e-5)  # of all evaluations
    assert "best_epochs" not in whole.info["training"]


@pytest.mark.parametrize(
    "posterior", [MAP(), SGVB(temperature=0.001), IVON(temperature=0.001)], ids=lambda p: type(p).__name__
)
def test_the_best_weights_have_the_statistics_of_their_epoch(posterior):
    config = CONFIG.with_options(schedule=Constant())
    if isinstance(posterior, SGVB):
        config = config.with_options(optimizer=partial(torch.optim.Adam, lr=0.02))
    best = fit(make_network, make_data(), posterior, Plain(), config)
    (epoch,) = best.info["training"]["best_epochs"]
    assert epoch < max(best.info["training"]["last_epochs"])
    until_best = fit(make_network, make_data(), posterior, Plain(), config.with_options(epochs=epoch))
    for state, expected in zip(best.states, until_best.states, strict=True):
        assert state.statistics.keys() == expected.statistics.keys()
        for name, statistic in expected.statistics.items():
            assert torch.equal(state.statistics[name], statistic), name
        for param, value in zip(state.model.parameters(), expected.model.parameters(), strict=True):
            assert torch.equal(param, value)


def test_a_training_that_is_best_at_its_end_is_the_whole_training():
    inputs = torch.randn(60, 3, generator=torch.Generator().manual_seed(1))
    targets = (inputs[:, 0] > 0).long()
    split = Split(inputs=inputs, targets=targets)  # validation examples that are the training examples
    data = replace(make_data(), train=split, val=split, feature_names=("a", "b", "c"))
    config = CONFIG.with_options(optimizer=partial(torch.optim.SGD, lr=0.01), batch_size=60)
    stopped, whole = (
        fit(lambda: nn.Linear(3, 2), data, SWAG(rank=2), Plain(), config.with_options(early_stopping=early))
        for early in (True, False)
    )
    assert torch.equal(stopped.states[0].statistics["mean"], whole.states[0].statistics["mean"])


def test_a_training_that_collects_from_its_first_epoch_stops_early():
    config = CONFIG.with_options(
        schedule=Constant(), collection=CollectionConfig(start_fraction=0.0, snapshots_per_epoch=3), min_epochs=60
    )
    data, validations = make_data(), Validations()
    fitted = fit(make_network, data, SWAG(rank=2, scale=0.5), Plain(), config, callback=validations)
    training = fitted.info["training"]
    (best,), (last,) = training["best_epochs"], training["last_epochs"]
    assert min(validations.losses) == validations.losses[best - 1]
    assert 60 > last >= max(3 * best, 34)  # 100 steps of 3
    until_then = fit(
        make_network, data, SWAG(rank=2, scale=0.5), Plain(), config.with_options(epochs=last, early_stopping=False)
    )
    assert int(fitted.states[0].statistics["count"]) == 3 * last
    assert torch.equal(fitted.states[0].statistics["mean"], until_then.states[0].statistics["mean"])
    assert f"stopped after {last}" in fitted.summary()
    alone = fit(make_network, data, MAP(), Plain(), config)
    until_best = fit(make_network, data, MAP(), Plain(), config.with_options(epochs=best, early_stopping=False))
    assert torch.equal(next(alone.states[0].model.parameters()), next(until_best.states[0].model.parameters()))
    outcomes = try_fit_together(make_network, data, [(MAP(), config), (SWAG(rank=2, scale=0.5), config)], Plain())
    means = [outcome.fitted.predict(data.test.inputs).mean for outcome in outcomes]
    for mean, other in zip(means, (alone, fitted), strict=True):
        assert torch.equal(mean, other.predict(data.test.inputs).mean)


def test_when_a_training_that_collects_from_its_first_epoch_ends():
    config = TrainingConfig(
        epochs=40, early_stopping=True, collection=CollectionConfig(start_fraction=0.0, snapshots_per_epoch=2)
    )
    ends = [epoch for epoch in range(1, 41) if is_collection_over(config, epoch, 7, 100)]
    assert ends[0] == 21
    assert 40 not in ends
    assert not is_collection_over(config, 9, 1, 100)  # a quarter of the training
    assert is_collection_over(config, 10, 1, 100)
    assert not is_collection_over(config, 19, 1, 5)  # 100 steps
    sparse = replace(config, collection=CollectionConfig(start_fraction=0.0, snapshots_per_epoch=0.5))
    assert not is_collection_over(sparse, 19, 1, 100)  # 10 snapshots
    assert not is_collection_over(replace(config, schedule=Cyclical()), 30, 1, 100)
    assert not is_collection_over(replace(config, collection=CollectionConfig()), 30, 1, 100)
    automatic = replace(config, collection=CollectionConfig(start_fraction=0.0))
    assert [truncate(automatic, 3).is_collection_step(step, 8) for step in range(24)] == [
        automatic.is_collection_step(step, 8) for step in range(24)
    ]
    shares = [
        describe_training(posterior, options)
        for posterior, options in ((MAP(), config), (SWAG(), config), (SWAG(), sparse))
    ]
    assert shares[0] == shares[1] != shares[2]


def test_the_console_says_that_a_training_ends():
    lines = []
    config = CONFIG.with_options(schedule=Constant(), collection=CollectionConfig(start_fraction=0.0))
    fitted = fit(make_network, make_data(), SWAG(rank=2), Plain(), config, callback=ConsoleLogger(lines.append))
    (last,) = fitted.info["training"]["last_epochs"]
    assert f"early stopping: training ends after epoch {last}" in lines[-1]


def test_explicit_epochs_and_no_evaluations_turn_it_off():
    assert TrainingConfig().stops_early
    assert TrainingConfig().resolve_epochs(3).stops_early
    assert TrainingConfig(epochs=60, early_stopping=True).stops_early
    for config in (
        TrainingConfig(epochs=60),
        TrainingConfig(early_stopping=False),
        TrainingConfig(num_validations=0),
        TrainingConfig(early_stopping=False).resolve_epochs(3),
    ):
        assert not config.stops_early


class Interrupt(Callback):
    """Ends the training like a crash, once."""

    def __init__(self, step):
        self.count, self.step = 0, step

    def on_step_end(self, step, loss, lr):
        self.count += 1
        if self.count == self.step:
            raise OSError("stopped")


FROM_THE_START = CONFIG.with_options(schedule=Constant(), collection=CollectionConfig(start_fraction=0.0))
FLAT = {
    "late": {"posterior": SWAG(rank=2), "flatness": Delayed(SAM(rho=0.05), start=0.7), "config": CONFIG},
    "from the start": {"posterior": SWAG(rank=2), "flatness": SAM(rho=0.05), "config": FROM_THE_START},
}


@pytest.fixture(scope="module", params=FLAT)
def reference(request):
    return request.param, fit(make_network, make_data(), **FLAT[request.param])


@pytest.mark.parametrize("step", [7, 45, 70])
def test_it_continues_from_a_checkpoint(tmp_path, step, reference):
    data, (name, reference) = make_data(), reference
    checkpoints = Checkpoints(tmp_path, every_n_steps=1, min_interval_seconds=0.0)
    with pytest.raises(OSError, match="stopped"):
        fit(make_network, data, **FLAT[name], checkpoints=checkpoints, callback=Interrupt(step))
    again = fit(make_network, data, **FLAT[name], checkpoints=checkpoints)
    assert again.info["training"]["last_epochs"] == reference.info["training"]["last_epochs"]
    assert again.info["training"]["best_epochs"] == reference.info["training"]["best_epochs"]
    assert torch.equal(again.states[0].statistics["mean"], reference.states[0].statistics["mean"])


def test_a_training_that_has_ended_early_does_not_go_on_when_it_is_resumed(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, every_n_steps=1, min_interval_seconds=0.0)
    fit_again = partial(fit, make_network, make_data(), **FLAT["from the start"], checkpoints=checkpoints)

    def fail(*args):
        raise OSError("stopped after the last step")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="after the last step"):
        patch.setattr("flatbayes.training.group.finalize_states", fail)
        fit_again()
    (last,) = fit_again().info["training"]["last_epochs"]
    assert [last] == fit(make_network, make_data(), **FLAT["from the start"]).info["training"]["last_epochs"]
    assert last < CONFIG.min_epochs


class RecordedSAM(SAM):
    """Keeps the steps at which it runs."""

    steps: ClassVar = []

    def __call__(self, closure, model, progress=None):
        self.steps.append(progress.step)
        return super().__call__(closure, model, progress)


class Rollback(Callback):
    """Keeps the step to which early stopping goes back, and the number of steps from then on."""

    def on_rollback(self, records, total_steps):
        self.step, self.total_steps = records[-1]["step"], total_steps


def test_all_snapshots_are_those_of_a_late_flatness():
    flat, RecordedSAM.steps, rollback = Delayed(RecordedSAM(rho=0.01), start=0.7), [], Rollback()
    config = CONFIG.with_options(schedule=Constant())
    fit(make_network, make_data(), SGLD(temperature=0.001), flat, config, callback=rollback)
    assert rollback.step < 0.7 * rollback.total_steps
    assert RecordedSAM.steps[1:] == list(range(rollback.step, rollback.total_steps))  # after that of the trial


class Clock(Callback):
    """A clock on which every step takes 1,000 seconds, and nothing else takes any."""

    def __init__(self):
        self.start = self.now = time.monotonic()

    def on_step_end(self, step, loss, lr):
        self.now += 1000.0


def test_the_time_of_epochs_that_are_given_up_counts_once(monkeypatch):
    clock, methods = Clock(), [(MAP(), CONFIG), (SWAG(rank=2), CONFIG)]
    monkeypatch.setattr("flatbayes.training.run.time.monotonic", lambda: clock.now)
    for outcome in try_fit_together(make_network, make_data(), methods, Plain(), callback=clock):
        assert "best_epochs" in outcome.fitted.info["training"]
        assert outcome.fitted.info["cost"]["train_seconds"] == pytest.approx(clock.now - clock.start, rel=0.01)


def test_posteriors_share_it():
    data, recordings = make_data(), {}
    methods = [(MAP(), CONFIG), (SWAG(rank=2), CONFIG), (Laplace(tune="evidence"), CONFIG)]
    alone = [fit(make_network, data, posterior, Plain(), config) for posterior, config in methods]
    means = [fitted.predict(data.test.inputs).mean for fitted in alone]
    for _ in range(2):  # the second time from the recordings
        outcomes = try_fit_together(make_network, data, methods, Plain(), recordings=recordings)
        for (posterior, _), outcome, mean in zip(methods, outcomes, means, strict=True):
            assert torch.equal(outcome.fitted.predict(data.test.inputs).mean, mean), posterior
    assert all(recording.is_complete for recording in recordings.values())


def test_the_history_has_every_epoch_once():
    history = History()
    fit(make_network, make_data(), SWAG(rank=2), Plain(), CONFIG, callback=history)
    epochs = [record["epoch"] for record in history.records]
    assert epochs == sorted(set(epochs)) == list(range(1, len(epochs) + 1))


def test_a_shortened_training_collects_after_the_best_epoch_only():
    for epochs in (10, 40, 100):
        config = TrainingConfig(epochs=epochs, early_stopping=True)
        for best in range(1, count_first_epochs(config) + 1):
            for steps in (1, 7, 20):
                short = shorten(config, best, steps)
                ends = [short.is_collection_step(best * steps - 1, steps)]
                ends += [short.is_collection_step(short.num_epochs * steps - 1, steps)]
                assert ends == [False, True], (epochs, best, steps)
    assert count_first_epochs(replace(config, collection=CollectionConfig(start_fraction=0.29))) == 29


def test_the_shortened_training():
    config = TrainingConfig(epochs=100, early_stopping=True, schedule=SWALinear(end_factor=0.1))
    assert count_first_epochs(config) == 70
    assert count_first_epochs(replace(config, schedule=Cyclical())) == 0
    assert {1, 2, 3, 4, 6, 8, 70, 100} <= list_validation_epochs(config, 10)
    assert not is_first_part_over(config, 70, 70)
    assert is_first_part_over(config, 70, 60)
    assert [is_first_part_over(config, epoch, 5) for epoch in (17, 18, 20)] == [False, False, True]
    short = shorten(config, 14, 50)
    assert short.num_epochs == 20  # 14 : 6 as 70 : 30
    assert [short.schedule.factor(step, 1000) for step in (700, 999)] == [0.1, 0.1]
    assert next(step for step in range(1000) if short.is_collection_step(step, 50)) >= 700
    tiny = shorten(config, 1, 2)
    assert tiny.num_epochs == 31  # at most as long as in the whole training
    wave = shorten(replace(config, schedule=Cosine()), 14, 50).schedule
    assert wave.factor(700, 1000) == pytest.approx(Cosine().factor(70, 100), abs=1e-5)
    assert Shortened(Constant(), 10, 0.5).factor(12, 20) == 1
    fraction = replace(config, collection=CollectionConfig(snapshots_per_epoch=0.1))
    assert shorten(fraction, 14, 50).collection.snapshots_per_epoch is None
