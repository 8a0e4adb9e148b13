"""Options that only draws depend on: what they do, and their choice on validation examples after training."""

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from flatbayes import IVON, LRT, MAP, SGHMC, SGLD, SGVB, SWAG, Ensemble, Laplace, MCDropout, Plain, evaluate, fit
from flatbayes.calibration.map_fitting import compute_example_losses
from flatbayes.data import DataSplits, Split
from flatbayes.data.checks import DataWarning
from flatbayes.likelihoods import Categorical, CategoricalPredictive
from flatbayes.posteriors.draw_options import COVARIANCE_SCALE, MARGIN, DrawOption, list_auto_options, replace_option
from flatbayes.prediction import FittedPosterior
from flatbayes.training import CollectionConfig, TrainingConfig, draw_choice
from flatbayes.training.draw_choice import plan_choice
from flatbayes.training.draw_search import ExampleLosses, compare_values
from flatbayes.training.loader_data import LoaderData
from flatbayes.training.sharing import try_fit_together

CONFIG = TrainingConfig(epochs=2, batch_size=20, collection=CollectionConfig(0.0, 3), num_validations=0)
SCALED = {
    "SWAG": SWAG(rank=3),
    "SWAG-Diag": SWAG(rank=0),
    "last_layer": Laplace(),
    "kron": Laplace(structure="kron"),
    "diag": Laplace(structure="diag", predictive="sampled"),
    "SGVB": SGVB(),
    "IVON": IVON(),
    "LRT": LRT(),
    "SGLD": SGLD(),
    "SGHMC": SGHMC(),
}
AUTO = {name: replace(posterior, scale="auto") for name, posterior in SCALED.items()} | {
    "MCDropout": MCDropout(rate=0.3, draw_rate="auto"),
    "Ensemble": Ensemble(SWAG(scale="auto", rank=2), size=2),
}

WINDOW = {"burn_in": "auto", "scale": "auto"}
SEVERAL_OPTIONS = {
    "SWAG": SWAG(rank=3, end_fraction="auto", **WINDOW),
    "Ensemble": Ensemble(SWAG(rank=3, end_fraction="auto", **WINDOW), size=2),
    "SGLD": SGLD(**WINDOW),
    "SGHMC": SGHMC(**WINDOW),
}


def make_data(*, num_val=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(140, 4, generator=generator)
    targets = (inputs[:, 0] + torch.randn(140, generator=generator) > 0).long()
    val = slice(100 - num_val, 100)
    rows = {"train": slice(60), "val": val, "test": slice(100, 140)}
    return DataSplits(
        **{name: Split(inputs=inputs[rows], targets=targets[rows]) for name, rows in rows.items()},
        class_names=("no", "yes"),
        feature_names=tuple("abcd"),
        augment=None,
    )


def make_network():
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 2))


@pytest.mark.parametrize("posterior", SCALED.values(), ids=SCALED)
def test_deviations_grow_with_the_root_of_the_scale(posterior):
    data = make_data()
    fitted = fit(nn.Linear(4, 2), data, posterior, Plain(), CONFIG)  # outputs are linear in its weights

    def draw(scale):
        scaled = replace(fitted, posterior=replace(posterior, scale=scale))
        networks = scaled.sample_networks(3)
        return torch.stack([network(data.val.inputs).detach() for network in networks])

    one, four, nine = draw(1.0), draw(4.0), draw(9.0)
    torch.testing.assert_close(nine - four, four - one, rtol=1e-3, atol=1e-5)
    assert float((four - one).norm()) > 1e-4
    if posterior.draw_options["scale"].default == 1:
        assert torch.equal(one, torch.stack([n(data.val.inputs).detach() for n in fitted.sample_networks(3)]))


@pytest.mark.parametrize("posterior", AUTO.values(), ids=AUTO)
def test_auto_is_the_widest_of_the_best_candidates_on_the_validation_examples(posterior, tmp_path):
    data = make_data()
    (outcome,) = try_fit_together(make_network, data, [(posterior, CONFIG)], Plain())
    fitted = outcome.fitted
    ((name, choice),) = fitted.info["training"]["draw_options"].items()
    losses = dict(map(tuple, choice["val_nll"]))
    lowest = min(losses, key=losses.get)
    wide = [value for value, loss in losses.items() if value is not None and loss <= losses[lowest] + MARGIN]
    assert choice["value"] == (None if lowest is None else max(wide))
    assert len(losses) >= 4
    assert not list_auto_options(fitted.posterior.draw_options, fitted.posterior)
    assert evaluate(fitted, data.val).metrics["nll"] == pytest.approx(losses[choice["value"]])
    assert f"{name} " in fitted.summary()
    assert "the largest within 0.003 of the lowest validation NLL of" in fitted.summary()
    given = fit(make_network, data, replace_option(posterior, name, choice["value"]), Plain(), CONFIG)
    assert torch.equal(given.predict(data.test.inputs).mean, fitted.predict(data.test.inputs).mean)
    loaded = FittedPosterior.load(fitted.save(tmp_path), make_network)
    assert torch.equal(loaded.predict(data.test.inputs).mean, fitted.predict(data.test.inputs).mean)


def test_the_test_split_is_not_read():
    data, posterior = make_data(), SWAG(scale="auto", rank=2)
    other = replace(data, test=replace(data.test, targets=1 - data.test.targets))
    choices = [
        fit(make_network, d, posterior, Plain(), CONFIG).info["training"]["draw_options"] for d in (data, other)
    ]
    assert choices[0] == choices[1]


def test_without_validation_examples_the_default_is_used_and_the_summary_says_so():
    data = make_data(num_val=0)
    fitted = fit(make_network, data, SWAG(scale="auto", rank=2), Plain(), CONFIG)
    assert fitted.posterior.scale == 0.5
    assert "scale 0.5 (the default: no validation examples)" in fitted.summary()
    arrays = fit(make_network, (data.train.inputs, data.train.targets), SWAG(scale="auto"), Plain(), CONFIG)
    assert arrays.posterior.scale == 0.5


def test_a_loader_has_validation_batches_too():
    data = make_data()
    loader = list(zip(data.train.inputs.split(10), data.train.targets.split(10), strict=True))
    val = list(zip(data.val.inputs.split(10), data.val.targets.split(10), strict=True))
    fitted = fit(make_network, loader, SWAG(scale="auto", rank=2), Plain(), CONFIG, val=val)
    assert fitted.info["training"]["draw_options"]["scale"]["val_nll"]


def test_many_validation_batches_are_thinned_evenly():
    data = make_data()
    val = [(data.val.inputs[k : k + 4], data.val.targets[k : k + 4]) for k in range(0, 40, 4)]
    loader = LoaderData(val, val=val)
    assert loader.has_validation
    assert loader.num_validation == 40
    assert loader.sample_validation(40) is val
    sampled = list(loader.sample_validation(15))  # of 40: every third batch of 4
    assert [targets.tolist() for _, targets in sampled] == [val[k][1].tolist() for k in (0, 3, 6, 9)]
    without = LoaderData(val)
    assert (without.has_validation, without.num_validation, without.sample_validation(9)) == (False, 0, None)


@pytest.mark.parametrize(
    ("epochs", "num_val", "expected"),
    [
        (12, 120, (5, 120)),  # a short fine-tuning on 200 examples: 6 values x 5 networks, not 10 x 30
        (12, 5000, (5, 200)),
        (40, 120, (16, 120)),
        (2000, 5000, (30, 2000)),
        (0, 120, (5, 120)),  # no training at all
    ],
)
def test_the_choice_for_a_large_network_does_not_outlast_its_training(epochs, num_val, expected, monkeypatch):
    state = MAP().init(nn.Linear(4, 3), None, num_data=200)
    fitted = FittedPosterior(MAP(), [state], Categorical(3), info={"training": {"epochs": epochs}})
    stopped = replace(fitted, info={"training": {"epochs": 4000, "last_epochs": [epochs]}})
    assert plan_choice(fitted, num_val) == (30, 2000, True)
    monkeypatch.setattr(draw_choice, "LARGE_NETWORK", 15)
    assert plan_choice(fitted, num_val) == plan_choice(stopped, num_val) == (*expected, False)


def test_several_options_and_running_statistics_leave_time_for_fewer_draws(monkeypatch):
    monkeypatch.setattr(draw_choice, "LARGE_NETWORK", 15)
    state = MAP().init(nn.Linear(4, 3), None, num_data=200)
    fitted = FittedPosterior(MAP(), [state], Categorical(3), info={"training": {"epochs": 40}})
    assert plan_choice(fitted, 120, 3) == (10, 120, False)  # 10 values in place of 6
    normalized = replace(fitted, statistics_inputs=[torch.zeros(60, 4), torch.zeros(20, 4)])
    assert plan_choice(normalized, 120) == (10, 120, False)  # of 200 passes in place of 120


@pytest.mark.parametrize("name", SEVERAL_OPTIONS)
def test_what_is_known_from_one_option_is_not_measured_again_for_the_next(name, monkeypatch):
    data, posterior = make_data(), SEVERAL_OPTIONS[name]
    calls, measure = [], draw_choice.measure_example_losses

    def record_call(fitted, *args):
        calls.append(fitted.posterior)
        return measure(fitted, *args)

    monkeypatch.setattr(draw_choice, "measure_example_losses", record_call)
    fitted = fit(make_network, data, posterior, Plain(), CONFIG.with_options(epochs=4))
    records = fitted.info["training"]["draw_options"]
    assert len(records) == len(posterior.draw_options) > 1
    assert len(calls) == sum(len(record["val_nll"]) for record in records.values()) - len(records) + 1
    options = posterior.draw_options
    for (earlier, record), later in zip(records.items(), [*records][1:], strict=False):
        chosen = dict(map(tuple, record["val_nll"]))[record["value"]]
        assert dict(map(tuple, records[later]["val_nll"]))[options[later].default] == chosen
        posterior = replace_option(posterior, earlier, record["value"])
        unmeasured = replace(fitted, posterior=replace_option(posterior, later, options[later].default))
        assert evaluate(unmeasured, data.val).metrics["nll"] == pytest.approx(chosen)


@pytest.mark.parametrize(
    ("option", "best", "num_tried"),
    [
        (COVARIANCE_SCALE, 1.0, 5),
        (COVARIANCE_SCALE, 0.01, 7),
        (COVARIANCE_SCALE, 300.0, 7),
        (MCDropout().draw_options["draw_rate"], 0.04, 6),
        (MCDropout().draw_options["draw_rate"], 0.5, 6),
    ],
)
def test_a_descent_finds_the_value_of_all_candidates(option, best, num_tried):
    def measure(value):
        tried.append(value)
        return 0.1 * abs(math.log10((0.1 if value is None else value) / best))

    tried = []
    everywhere = compare_values(option, measure)["value"]
    tried.clear()
    assert compare_values(option, measure, with_all=False)["value"] == everywhere
    assert len(tried) == len(set(tried)) == num_tried


@pytest.mark.parametrize(
    ("gain", "spread", "value"),
    [(0.1, 0.5, 0.25), (0.1, 2.0, 0.0), (-0.1, 0.0, 0.0), (0.1, 0.0, 0.25), (math.nan, 0.0, 0.0)],
)
def test_the_default_is_kept_unless_another_value_is_better_by_a_standard_error(gain, spread, value):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(100, generator=generator, dtype=torch.float64)
    noise = (noise - noise.mean()) / noise.std()

    def predict(fraction):
        losses = 10.0 - (gain if fraction == 0.25 else 0.0) + spread * noise * (fraction == 0.25)
        if fraction == 0.5:
            losses = losses + 1
        log_probs = torch.stack([-losses, torch.zeros_like(noise)], 1).expand(100, 2)
        return CategoricalPredictive(log_probs, noise, log_probs), torch.zeros(100, dtype=torch.long)

    option = DrawOption(0.0, (0.0, 0.25, 0.5), has_means=False, keeps_default=True)
    record = compare_values(option, ExampleLosses(lambda value: compute_example_losses(*predict(value))))
    assert record["value"] == value
    json.dumps(record, allow_nan=False)
    if not math.isnan(gain):
        assert dict(record["standard_errors"]) == pytest.approx({0.25: spread / 10, 0.5: 0.0}, abs=1e-9)
        assert dict(record["val_nll"]) == pytest.approx({0.0: 10.0, 0.25: 10 - gain, 0.5: 11.0})


def test_values_are_checked():
    for value in (-1.0, float("inf"), float("nan")):
        for posterior in SCALED.values():
            with pytest.raises(ValueError, match="scale multiplies the covariance"):
                replace(posterior, scale=value)
    with pytest.raises(ValueError, match="draw_rate"):
        MCDropout(draw_rate=1.0)
    assert MAP().draw_options == {}
    assert COVARIANCE_SCALE.default == 1
    assert SWAG().get_draw_option("scale") == 0.5 == SWAG(scale="auto").get_draw_option("scale")


def test_what_nobody_has_set_is_chosen_where_the_budget_is_automatic():
    data, automatic = make_data(), TrainingConfig(min_epochs=3, min_steps=6, batch_size=20)
    fitted = fit(make_network, data, SWAG(rank=2), Plain(), automatic)
    assert fitted.posterior.scale is not None
    assert fitted.info["training"]["draw_options"]["scale"]["val_nll"]
    for posterior, config in ((SWAG(rank=2, scale=2.0), automatic), (SWAG(rank=2), CONFIG)):
        fitted = fit(make_network, data, posterior, Plain(), config)
        assert fitted.posterior == posterior
        assert "draw_options" not in fitted.info["training"]
    with pytest.warns(DataWarning, match="no validation examples"):
        arrays = fit(make_network, (data.train.inputs, data.train.targets), SWAG(rank=2), Plain(), automatic)
    assert arrays.posterior.scale is None
