"""Training: fits with one seed share everything but flatness; precision and devices follow the configuration."""

import json
import math
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from flatbayes.data import DataSplits, Split
from flatbayes.flatness import SAM, Plain
from flatbayes.likelihoods import Categorical
from flatbayes.models import MLP, ConvNet
from flatbayes.posteriors import MAP, SWAG, Ensemble, Laplace, MCDropout
from flatbayes.training import (
    Callback,
    CollectionConfig,
    Constant,
    Cosine,
    History,
    Interrupted,
    TrainingConfig,
    dry_run,
    fit,
)
from flatbayes.training.batches import ShuffledBatches
from flatbayes.training.callbacks.console import ProgressBar
from flatbayes.training.callbacks.loggers import JSONLinesLogger
from flatbayes.training.training_examples import make_training_data


def blobs(n=90, images=False):
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(n) % 3
    if images:
        inputs = torch.randint(0, 100, (n, 1, 8, 8), generator=generator).to(torch.uint8)
        inputs += (targets * 70).to(torch.uint8).view(-1, 1, 1, 1)
    else:
        inputs = torch.randn(n, 4, generator=generator) + 2 * nn.functional.one_hot(targets, 4)
    parts = [Split(inputs=i, targets=t) for i, t in zip(inputs.split(n // 3), targets.split(n // 3), strict=True)]
    return DataSplits(
        train=parts[0],
        val=parts[1],
        test=parts[2],
        class_names=("a", "b", "c"),
        feature_names=(),
        augment=None,
    )


SHORT = TrainingConfig(epochs=4, batch_size=10, collection=CollectionConfig(start_fraction=0.0), num_validations=2)


def weights(fitted):
    return torch.cat([p.detach().flatten() for s in fitted.states for p in s.model.parameters()])


@pytest.mark.parametrize("posterior", [MAP(), MCDropout(rate=0.2), SWAG(rank=2), Ensemble(size=2)])
def test_twins_share_everything_but_flatness(posterior):
    data = blobs(images=True)
    plain = fit(ConvNet, data, posterior, Plain(), SHORT, seed=5)
    zero = fit(ConvNet, data, posterior, SAM(rho=0.0), SHORT, seed=5)
    flat = fit(ConvNet, data, posterior, SAM(rho=0.1), SHORT, seed=5)
    other = fit(ConvNet, data, posterior, Plain(), SHORT, seed=6)
    assert torch.equal(weights(plain), weights(zero))
    assert not torch.equal(weights(plain), weights(flat))
    assert not torch.equal(weights(plain), weights(other))
    assert zero.info["cost"]["gradients"] == 2 * plain.info["cost"]["gradients"] == 2 * 4 * 3 * posterior.num_members
    assert len({float(w.sum()) for w in weights(plain).chunk(posterior.num_members)}) == posterior.num_members


def test_the_callers_randomness_is_left_alone():
    before = torch.get_rng_state()
    fit(MLP, blobs(), MAP(), SAM(), SHORT)
    assert torch.equal(torch.get_rng_state(), before)


def test_it_learns_and_predicts():
    data = blobs()
    optimizer = partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-3)
    fitted = fit(MLP, data, SWAG(rank=5), SAM(rho=0.05), replace(SHORT, epochs=30, optimizer=optimizer))
    predictive = fitted.predict(data.test.inputs)
    assert (predictive.top_class == data.test.targets).float().mean() > 0.75
    assert fitted.info["class_names"] == ["a", "b", "c"]
    assert fitted.info["model"]["init_args"] == {"input_shape": [4], "num_classes": 3}
    assert not any(m.training for s in fitted.states for m in s.model.modules())
    assert all(s.optimizer is None for s in fitted.states)


HALF = pytest.param("16-mixed", marks=pytest.mark.gpu)


@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed", HALF])
@pytest.mark.parametrize("posterior", [SWAG(rank=2), MAP(prior_precision=0.1)])
def test_precisions(precision, posterior):
    data = blobs()
    optimizer = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
    accelerator = "cuda" if precision == "16-mixed" else "cpu"
    config = SHORT.with_options(
        precision={"mode": precision}, distribution={"accelerator": accelerator}, epochs=15, optimizer=optimizer
    )
    fitted = fit(MLP, data, posterior, SAM(), config)
    assert fitted.info["precision"] == precision
    assert fitted.info["device"].split()[0] == accelerator
    assert (fitted.predict(data.test.inputs).top_class == data.test.targets).float().mean() > 0.6
    assert fitted.dtype == (torch.float64 if precision == "64-true" else torch.float32)


def test_accumulation_is_the_whole_batch():
    runs = [
        fit(
            MLP,
            blobs(),
            MAP(),
            SAM(rho=0.1),
            SHORT.with_options(optimization={"accumulation_steps": k}, precision={"mode": "64-true"}),
        )
        for k in (1, 4)
    ]
    torch.testing.assert_close(weights(runs[0]), weights(runs[1]))


def test_clipping_bounds_every_step():
    moved = []
    for clip in (None, 1e-3):
        optimizer = partial(torch.optim.SGD, lr=1.0)
        config = SHORT.with_options(
            optimization={"clip_norm": clip}, optimizer=optimizer, schedule=Constant(), epochs=1, batch_size=30
        )
        start = fit(MLP, blobs(), MAP(), SAM(), replace(config, optimizer=partial(torch.optim.SGD, lr=0.0)))
        moved.append((weights(fit(MLP, blobs(), MAP(), SAM(), config)) - weights(start)).norm().item())
    assert moved[1] == pytest.approx(1e-3, rel=1e-3)
    assert moved[0] > 0.01


def test_a_network_of_the_users_is_copied():
    model = nn.Linear(4, 3)
    before = model.weight.detach().clone()
    fitted = fit(model, blobs(), MAP(), SAM(), SHORT)
    assert torch.equal(model.weight, before)
    assert not torch.equal(fitted.states[0].model.weight, before)
    with pytest.raises(ValueError, match="was given one network. Pass its class"):
        fit(model, blobs(), Ensemble(size=2), SAM(), SHORT)


def test_functions_get_what_they_take():
    seen = []

    def make(num_classes, width=5):
        seen.append((num_classes, width))
        return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, num_classes))

    fit(partial(make, width=7), blobs(), MAP(), SAM(), SHORT)
    fit(lambda: nn.Linear(4, 3), blobs(), MAP(), SAM(), SHORT)
    assert set(seen) == {(3, 7)}
    with pytest.raises(TypeError, match=r"must build a torch\.nn\.Module, and returned a int"):
        fit(lambda: 3, blobs(), MAP(), SAM(), SHORT)
    with pytest.raises(TypeError, match="Expected a network"):
        fit(3, blobs(), MAP(), SAM(), SHORT)


def test_a_loader_of_the_users():
    data = blobs()
    loader = DataLoader(TensorDataset(data.train.inputs, data.train.targets), batch_size=10, shuffle=True)

    def make():
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))

    fitted = fit(make, loader, SWAG(rank=2), SAM(), SHORT, likelihood=Categorical(3))
    assert fitted.states[0].num_data == 30
    assert len(fitted.statistics_inputs) == 3
    assert fitted.predict(data.test.inputs, 4).mean.shape == (30, 3)
    assert fit(make, loader, SWAG(rank=2), SAM(), SHORT).likelihood == Categorical(3)


def test_a_loss_that_is_not_finite_names_the_epoch_and_what_to_try():
    config = replace(SHORT, optimizer=partial(torch.optim.SGD, lr=1e12))
    with pytest.raises(
        RuntimeError, match=r"(?s)The loss is nan in epoch \d of 4.*lower learning rate.*SAM\(rho=0.3\)"
    ):
        fit(MLP, blobs(), MAP(), SAM(rho=0.3), config)


class StopAt(Callback):
    def __init__(self, run, epoch):
        self.at, self.run = (run, epoch), -1

    def on_run_start(self, run, runs, total_steps):
        self.run = run

    def on_epoch_end(self, record):
        if (self.run, record["epoch"]) == self.at:
            raise KeyboardInterrupt


def test_ctrl_c_hands_over_what_was_fitted():
    data = blobs()
    with pytest.raises(Interrupted, match="after 4 of 4 epochs of member 1 of 1") as caught:
        fit(MLP, data, SWAG(rank=2), SAM(), SHORT, callback=StopAt(0, 4))
    fitted = caught.value.fitted
    assert isinstance(caught.value, KeyboardInterrupt)
    assert fitted.predict(data.test.inputs, 3).mean.shape == (30, 3)
    assert "interrupted" in fitted.info


def test_ctrl_c_in_an_ensemble_keeps_the_complete_runs():
    with pytest.raises(Interrupted) as caught:
        fit(MLP, blobs(), Ensemble(size=3), SAM(), SHORT, callback=StopAt(2, 1))
    assert len(caught.value.fitted.states) == 2


def test_curves_and_logs(tmp_path):
    curves = History()
    fit(MLP, blobs(), MAP(), SAM(), SHORT, callback=curves)
    assert [(r["member"], r["epoch"]) for r in curves.records] == [(0, 1), (0, 2), (0, 3), (0, 4)]
    assert ["val_nll" in r for r in curves.records] == [False, True, False, True]
    assert curves.records[-1]["step"] == 12
    fit(MLP, blobs(), MAP(), SAM(), SHORT, callback=JSONLinesLogger(tmp_path / "m.jsonl"))
    assert [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()] == curves.records


def test_the_bar_shows_loss_rate_and_time(capsys):
    from rich.console import Console

    console = Console(force_terminal=True, width=120)
    bar = ProgressBar(console, min_refresh_seconds=0.0)
    with bar:
        bar.on_run_start(1, 3, 100)
        bar.on_step_end(50, torch.tensor(0.25), 0.1)
        bar.on_epoch_end({"epoch": 5, "step": 60, "loss": 0.2, "lr": 0.05, "val_nll": 0.3})
    shown = capsys.readouterr().out
    for text in ("training 2 of 3", "60%", "loss 0.2000", "lr 0.05", "val nll 0.3000", "left"):
        assert text in shown


def test_rehearsal_finds_what_training_would_die_of():
    data = blobs()
    before = torch.get_rng_state()
    dry_run(MLP, data, SWAG(rank=2), SAM(), SHORT)
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(ValueError, match="there are 3 classes"):
        dry_run(lambda: nn.Linear(4, 2), data, MAP(), SAM(), SHORT)
    with pytest.raises(ValueError, match="at least 2 collected snapshots .* this configuration .* collects 1"):
        dry_run(MLP, data, SWAG(), SAM(), TrainingConfig(epochs=1))
    with pytest.raises(ValueError, match="Name the output to use: output=0"):
        dry_run(nn.LSTM(4, 3), data, MAP(), SAM(), SHORT)
    with pytest.raises(ValueError, match="needs dropout layers, and Linear has none"):
        dry_run(lambda: nn.Linear(4, 3), data, MCDropout(), SAM(), SHORT)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": -1}, "epochs must be at least 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"collection.start_fraction": 1.0}, "start_fraction is a fraction"),
        ({"optimization.clip_norm": 0.0}, "clip_norm must be positive"),
        ({"optimization.clip_norm": math.nan}, "clip_norm must be positive"),
        ({"num_validations": -1}, "num_validations must be at least 0"),
        ({"optimization.accumulation_steps": 0}, "accumulation_steps must be at least 1"),
    ],
)
def test_recipes_that_make_no_sense(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig().with_options(**changes)


def test_batches_are_functions_of_seed_and_epoch():
    x = torch.arange(25)
    batches = ShuffledBatches(x, x, 10, seed=3)
    assert len(batches) == 2
    first = [y.tolist() for _, y in batches.iter_epoch(0)]
    assert first == [y.tolist() for _, y in batches.iter_epoch(0)]
    assert first != [y.tolist() for _, y in batches.iter_epoch(1)]
    assert first != [y.tolist() for _, y in ShuffledBatches(x, x, 10, seed=4).iter_epoch(0)]
    seen = {value for epoch in range(10) for _, y in batches.iter_epoch(epoch) for value in y.tolist()}
    assert len(seen) == 25
    assert all(len(y) == 10 for _, y in batches.iter_epoch(0))


def test_augmentation_sees_each_batch_once():
    calls = []

    def augment(inputs, generator):
        calls.append(torch.rand(1, generator=generator).item())
        return inputs + 1

    x = torch.zeros(20, 1)
    batches = ShuffledBatches(x, torch.arange(20), 10, seed=3, augment=augment)
    assert all((inputs == 1).all() for inputs, _ in batches.iter_epoch(0))
    list(batches.iter_epoch(0))
    assert calls[:2] == calls[2:]
    assert calls[0] != calls[1]


def test_without_validation_examples_nothing_is_measured():
    curves, data = History(), blobs()
    fit(MLP, replace(data, val=data.val.take(torch.arange(0))), MAP(), Plain(), SHORT, callback=curves)
    assert all(set(record) == {"member", "epoch", "step", "loss", "lr"} for record in curves.records)


class RecordingSGD(torch.optim.SGD):
    """Keeps the learning rate of every parameter group at every step."""

    def __init__(self, params, rates):
        first, *others = params
        super().__init__([{"params": [first], "lr": 0.1}, {"params": others, "lr": 0.02}])
        self.rates = rates

    def step(self, closure=None):
        self.rates.append([group["lr"] for group in self.param_groups])
        return super().step(closure)


def test_the_optimizer_steps_with_the_learning_rates_of_the_schedule():
    rates, schedule = [], Cosine(end_factor=0.1, warmup=0.2)
    config = replace(SHORT, optimizer=partial(RecordingSGD, rates=rates), schedule=schedule)
    fit(MLP, blobs(), MAP(), Plain(), config)
    factors = [schedule.factor(step, 12) for step in range(12)]
    assert rates == [[0.1 * factor, 0.02 * factor] for factor in factors]


def test_num_norm_batches_are_kept():
    data = blobs()
    config = SHORT.with_options(collection={"num_norm_batches": 2})
    loader = DataLoader(TensorDataset(data.train.inputs, data.train.targets), batch_size=10)
    for source in (data, loader):
        batches = make_training_data(source).sample_inputs(config, seed=0)
        assert [len(batch) for batch in batches] == [10, 10]


def test_augmentation_and_order_have_independent_seeds():
    first_words = []

    def augment(inputs, generator):
        first_words.append(generator.initial_seed())
        return inputs

    x = torch.arange(200)
    batches = ShuffledBatches(x, x, 100, seed=3, augment=augment)
    for epoch in range(4):
        list(batches.iter_epoch(epoch))
    orders = [batches.shuffle_indices(epoch) for epoch in range(4)]
    assert len(set(first_words)) == 8
    for seed in first_words:
        permutation = torch.randperm(200, generator=torch.Generator().manual_seed(seed))
        assert not any(torch.equal(permutation, order) for order in orders)


def test_snapshots_are_collected_after_the_configured_steps(monkeypatch):
    monkeypatch.setattr(sys.modules["flatbayes.training.fit"], "run_trial", lambda *args: None)
    steps, collected = [], []
    monkeypatch.setattr(SWAG, "collect", lambda self, state: collected.append(len(steps)))

    class CountSteps(Callback):
        def on_step_end(self, step, loss, lr):
            steps.append(step)

    config = SHORT.with_options(collection={"start_fraction": 0.5, "snapshots_per_epoch": 1})
    with pytest.raises(RuntimeError):
        fit(MLP, blobs(), SWAG(rank=2), Plain(), config, callback=CountSteps()).predict(blobs().test.inputs, 2)
    assert collected == [8, 11]


def test_the_loss_of_an_epoch_is_the_mean_over_its_steps():
    losses, curves = [], History()

    class KeepLosses(Callback):
        def on_step_end(self, step, loss, lr):
            losses.append(float(loss))

        def on_epoch_end(self, record):
            curves.records.append(record)

    fit(MLP, blobs(), MAP(), Plain(), SHORT, callback=KeepLosses())
    means = [sum(losses[k : k + 3]) / 3 for k in range(0, 12, 3)]
    assert [record["loss"] for record in curves.records] == pytest.approx(means)


@pytest.mark.parametrize("posterior", [SWAG(rank=2), Laplace(prior_precision=1.0)], ids=lambda p: type(p).__name__)
def test_a_fit_within_no_grad_is_as_outside(posterior):
    def train():
        return fit(MLP, blobs(), posterior, SAM(), SHORT)

    expected = train()
    with torch.no_grad():
        assert torch.equal(weights(train()), weights(expected))
        assert not torch.is_grad_enabled()
    with torch.inference_mode(), pytest.raises(ValueError, match=r"no gradients within torch.inference_mode\(\)"):
        train()
