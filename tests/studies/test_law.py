"""The rule that predicts when flat wins: synthetic twins, data sets left out, and readers of other studies' files."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flatbayes.diagnostics import flatness_forecast
from studies.law import model, twins
from studies.law.figure import draw_figure
from studies.law.page import END, START, update_page
from studies.law.summary import measure_recovered, summarize

DOCS = Path(__file__).parents[2] / "docs"


def make_twin(data, gap, gain, study="radius", **fields):
    values = {"train_loss": 0.0, "gap": gap, "rise": gap / 2, "sharpness": 0.1, "weights_per_example": 3.0}
    twin = twins.Twin(study, data, "MLP", "MAP", "chosen", 1, 1.0, 1.0 - gain, None, **values)
    return replace(twin, **fields)


@pytest.fixture
def separable():
    """Twelve sets; flat wins where the gap is above 0.3, by as much as the gap."""
    gaps = np.logspace(-2, 1, 12)
    return [make_twin(f"set {i}", gap, gap if gap > 0.3 else -gap) for i, gap in enumerate(gaps)]


def test_a_rule_finds_the_threshold_and_predicts_sets_left_out(separable):
    rule = model.fit_rule(separable, ("gap",))
    assert 0.15 < rule.threshold < 0.6
    probabilities = model.predict_left_out(separable, model.make_predict(("gap",)))
    assert model.measure_accuracy(separable, probabilities) > 0.8  # the two at the threshold are extrapolated
    assert model.score_by_data(separable, probabilities) > 0.6


def test_a_set_is_left_out_with_all_its_twins_and_counts_once(separable):
    seen = []

    def predict(train, test):
        seen.append(({twin.data for twin in train}, {twin.data for twin in test}))
        return [1.0] * len(test)

    repeated = [*separable, *[make_twin("set 0", 5.0, 1.0)] * 30]
    model.predict_left_out(repeated, predict)
    assert all(not train & test and len(test) == 1 for train, test in seen)
    assert model.measure_accuracy(repeated, [1.0] * len(repeated)) == pytest.approx((6 + 30 / 31) / 12)


@pytest.mark.parametrize(
    ("interval", "outcome"), [((-0.1, 0.2), "tie"), ((0.1, 0.2), "flat"), ((-0.2, -0.1), "plain"), (None, "flat")]
)
def test_outcomes_follow_the_interval(interval, outcome):
    assert make_twin("a", 1.0, 0.05, interval=interval).outcome == outcome


def test_several_seeds_without_an_interval_are_a_tie():
    assert make_twin("a", 1.0, 0.05, num_seeds=2).outcome == "tie"


def test_means_are_over_data_sets_without_ties():
    pair = [make_twin("a", 1.0, 0.1), make_twin("a", 1.0, 0.1), make_twin("b", 1.0, 0.1)]
    assert model.average_by_data(pair, np.array([1.0, np.nan, 0.0])).tolist() == [1.0, 0.0]
    assert model.bootstrap_mean(np.array([1.0, 0.0, np.nan])) == (0.0, 1.0)
    assert model.bootstrap_mean(np.array([0.5, 0.5])) == (0.5, 0.5)
    equal = [make_twin("a", 1.0, 0.0)] * 2
    assert model.score_right(equal, [0.5, 0.4]).tolist() == [0.0, 1.0]  # no gain is no win


def test_recovered_parts_are_quartiles_over_data_sets():
    pairs = [
        make_twin(name, 2.0, gain) for name, gain in (("a", 0.1), ("a", 0.3), ("b", 0.4), ("c", 0.8), ("d", 1.0))
    ]
    low = make_twin("e", 0.1, 9.0)  # a rise of 0.05 is below the threshold
    assert measure_recovered([*pairs, low], "rise", 0.5) == pytest.approx(
        {"lower_quartile": 0.35, "median": 0.6, "upper_quartile": 0.85, "data_sets": 4}
    )


def test_features_have_the_floor_of_the_forecast():
    assert model.FLOORS["rise"] == flatness_forecast.MIN_RISE
    rule, forecast = model.Rule(("rise",), 2.64, (1.11,)), flatness_forecast.forecast_flatness
    for rise in (0.0, 5e-4, 0.1):
        expected = forecast(val_nll=rise, lowest_val_nll=0.0).probability
        assert rule.predict([make_twin("a", 2 * rise, 0.1)]) == [pytest.approx(expected)]


def test_readers_pair_seeds_and_use_the_chosen_radius(tmp_path):
    law = {"method": "SWAG", "train_loss": 0.1, "gap": 0.4, "rise": 0.2, "sharpness": None, "weights_per_example": 9}
    record = {**law, "plain_nll": [0.5, 0.7, 0.6], "flat_nll": [0.4, 0.5, 0.45]}
    (tmp_path / "interpolation.json").write_text(json.dumps({"settings": {"digits-mlp": {"law": [record]}}}))
    features = {"train_loss": 0.1, "gap": 0.4, "sharpness": 0.3, "weights_per_example": 5.0}
    trainings = [
        {"trained": "full", "size": 8, "seed": seed, "rho": rho, "test_nll": {"MAP": 1 - rho}, **features}
        for seed in (0, 1)
        for rho in (0.0, 0.1, 0.2)
        if (seed, rho) != (1, 0.2)
    ]
    short = [{**training, "epochs": 2, "test_nll": {"MAP": 9.0}} for training in trainings]
    setting = {"trained": "full", "size": 8, "name": "full-8", "epochs": 4, "selection": {"flat": {"rho": 0.1}}}
    refused = {**setting, "size": 9, "selection": {"flat": {"rho": 0.0}}}
    default = {**setting, "trained": "default", "size": 10}  # the study has chosen nothing
    stopped = [{**training, "trained": "default", "size": 10} for training in trainings]
    sentences = {"settings": [setting, refused, default], "trainings": [*trainings, *short, *stopped]}
    (tmp_path / "sentences.json").write_text(json.dumps(sentences))
    swag, map_ = twins.read_all(tmp_path, {"sentences-full-8": {"rise": 0.3}})
    assert (swag.data, swag.setting, swag.num_seeds, swag.outcome) == ("digits", "digits-mlp", 3, "flat")
    assert swag.gain == pytest.approx(0.15)
    assert (map_.data, map_.num_seeds, map_.rise) == ("sst2", 2, 0.3)
    assert map_.gain == pytest.approx(0.1)


def test_the_radius_is_chosen_on_validation_examples_from_values_above_0(tmp_path):
    nlls = {"val": {"0": 1.0, "0.1": 1.2, "1": 1.1}, "test": [1.0, 0.2, 0.9]}
    sizes = {"train_loss": 0.1, "lowest_val_nll": 0.8, "sharpness": 0.1, "num_weights": 10, "train_size": 5}
    (tmp_path / "radius-forecast.json").write_text(json.dumps({"a": {**nlls, **sizes}}))
    (twin,) = twins.read_all(tmp_path, {})
    assert twin.gain == pytest.approx(0.1)  # of radius 1, although 0.1 is better on test examples
    assert twin.rise == pytest.approx(0.2)


def test_twins_with_default_options_have_the_history_of_plain_training(tmp_path):
    history = {"last_loss": 0.1, "val_nll": 0.9, "lowest_val_nll": 0.7}
    records = {
        "MAP plain": {"history": history, "val": {"nll": 0.8}, "metrics": {"nll": 0.6}},
        "MAP fixed": {"metrics": {"nll": 0.5}},
        "SWAG plain": {"history": history, "val": {"nll": None}, "metrics": {"nll": 0.6}},
        "SWAG fixed": {"metrics": {"nll": 0.5}},  # left out: there is no validation NLL
    }
    jobs = [{"task": task, "train": 20, "records": records} for task in ("a", "b")]
    (tmp_path / "defaults-after.json").write_text(json.dumps({"jobs": jobs}))
    (tmp_path / "radius-forecast.json").write_text(json.dumps({"a": {"error": "diverged", "num_weights": 50}}))
    first, second = twins.read_all(tmp_path, {})
    assert (first.data, first.method, first.radius, first.num_seeds, first.outcome) == (
        "a",
        "MAP",
        "fixed",
        1,
        "flat",
    )
    assert (first.plain_nll, first.flat_nll, first.train_loss) == (0.6, 0.5, 0.1)
    assert (first.gap, first.rise, first.weights_per_example) == (pytest.approx(0.7), pytest.approx(0.2), 2.5)
    assert (second.data, second.weights_per_example) == ("b", None)


def test_comparisons_have_the_gain_of_flat_over_plain_by_seed(tmp_path):
    nlls = {("Plain", 0): 0.9, ("Plain", 1): 0.7, ("Plain", 2): None, ("Plain", 3): 5.0}
    nlls |= {("SAM(rho=0.1)", 0): 0.4, ("SAM(rho=0.1)", 1): 0.6, ("SAM(rho=0.1)", 2): 0.1}
    runs = [
        {"posterior": "SWAG", "flatness": flatness, "seed": seed, "metrics": {"nll": nll}}
        for (flatness, seed), nll in nlls.items()
    ]
    (tmp_path / "uci-energy.json").write_text(json.dumps({"runs": runs}))
    features = dict.fromkeys(twins.FEATURES, 0.5)
    (twin,) = twins.read_all(tmp_path, {"uci-energy": features})
    assert (twin.study, twin.data, twin.method, twin.num_seeds) == ("uci", "energy", "SWAG", 2)
    assert (twin.plain_nll, twin.flat_nll) == (pytest.approx(0.8), pytest.approx(0.5))
    assert not list(twins.read_all(tmp_path, {}))  # without features


def test_summary_figure_and_page_hold_together(separable, tmp_path):
    rules = {name: model.RULES[name] for name in ("gap", "weights per example")}
    tuned = make_twin("cifar10", 1.0, -0.1, study="images")
    results = summarize([*separable, tuned, make_twin("set 0", 1.0, 0.1, radius="fixed")], rules)
    assert results["rule"] == "gap"
    assert results["counts"]["law"] == {
        "twins": 12, "data_sets": 12, "flat": 6, "plain": 6, "tie": 0, "lower_nll_flat": 6,
    }  # fmt: skip
    assert draw_figure(results).startswith("<svg")
    page = tmp_path / "page.md"
    page.write_text(f"above\n{START}\nstale numbers\n{END}\nbelow\n")
    update_page(page, results)
    text = page.read_text()
    assert text.startswith("above")
    assert text.rstrip().endswith("below")
    assert "stale" not in text
    assert "12 pairs of a plain and a flat training on 12 data sets" in text
    assert "The rule is right in 0 of 1 pairs" in text  # the pretrained network, which nothing was fitted to


def test_the_results_in_the_docs_are_those_of_the_rule():
    results = json.loads((DOCS / "results" / "law.json").read_text())
    usable = [twin for twin in results["twins"] if twin["radius"] == "chosen"]
    assert len(usable) == results["counts"]["law"]["twins"]
    assert results["tests"].keys() == {*model.RULES, "best rule of the other sets", "majority guess"}
