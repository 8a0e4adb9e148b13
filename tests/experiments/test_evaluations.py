"""What a comparison measures of every run when asked for more."""

from dataclasses import replace
from functools import partial

import pytest

from flatbayes.data import Diabetes, Digits
from flatbayes.experiments import Comparison, EvaluationConfig
from flatbayes.flatness import SAM
from flatbayes.metrics import DEFINITIONS, HIGHER_IS_BETTER, METRIC_FAMILIES
from flatbayes.models import MLP
from flatbayes.posteriors import SWAG
from flatbayes.prediction import evaluate, evaluate_recalibration
from flatbayes.training import CollectionConfig, TrainingConfig, fit

ALL = EvaluationConfig(
    calibration=True,
    shift=True,
    ood=Digits(),
    sharpness_rho=0.05,
    hessian=True,
    severities=(1, 5),
    max_examples=30,
    num_sharpness_draws=2,
)
COMPARISON = Comparison(
    source=Digits(train_size=60, val_size=40),
    model=partial(MLP, hidden=(8,)),
    posteriors=(SWAG(rank=2),),
    flatness=SAM(rho=0.1),
    config=TrainingConfig(
        epochs=3, batch_size=20, collection=CollectionConfig(start_fraction=0.0), num_validations=0
    ),
    num_seeds=2,
    num_draws=2,
    evaluations=ALL,
)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("measures")
    COMPARISON.claim_folder(folder, overwrite=False)
    found = COMPARISON.run(folder, jobs=1)
    assert not found["failures"]
    return found


def test_every_name_of_every_family_is_there_with_direction_and_definition(results):
    names = {name for family in METRIC_FAMILIES.values() for name in family}
    for run in results["runs"]:
        assert names <= set(run["metrics"])
    assert names <= set(HIGHER_IS_BETTER) & set(DEFINITIONS)
    for row in results["summary"]:
        assert row["family"] == next((f for f, metrics in METRIC_FAMILIES.items() if row["metric"] in metrics), "")
        assert row["p_value"] <= row["p_holm"] <= 1


def test_details_say_what_the_numbers_were_made_of(results):
    details = results["runs"][0]["details"]
    assert details["calibration_temperature"] > 0
    assert details["shift"]["severity"] == [0.0, 1.0, 5.0]
    mean = sum(details["shift"]["nll"][1:]) / 2
    slice_ = details["slice"]
    assert slice_["distance"][10] == pytest.approx(0, abs=1e-6)
    at_draws = results["runs"][0]["metrics"]["train_loss"]
    assert slice_["loss"][10] == pytest.approx(at_draws, rel=1e-5)
    assert max(slice_["loss"]) > at_draws
    assert results["runs"][0]["metrics"]["shift_nll"] == pytest.approx(mean)


def test_the_numbers_are_those_of_the_functions():
    data = COMPARISON.source.load(0)
    fitted = fit(COMPARISON.model, data, SWAG(rank=2), SAM(rho=0.1), COMPARISON.config, seed=0, show_progress=False)
    found, _ = EvaluationConfig(calibration=True).compute_metrics(fitted, data, "test", 2, 0)
    assert found["nll_scaled"] == evaluate_recalibration(fitted, data.val, data.test, 2).tempered["nll"]
    assert set(found) == set(METRIC_FAMILIES["Calibration"])
    assert EvaluationConfig().compute_metrics(fitted, data, "test", 2, 0) == ({}, {})
    same = evaluate(fitted, data.test.inputs, data.test.targets, 2).metrics
    assert same == evaluate(fitted, data.test.inputs, data.test.targets, 2).metrics  # nothing was left behind


def test_temperatures_are_not_judged_on_what_they_were_fitted_to():
    data = COMPARISON.source.load(0)
    fitted = fit(COMPARISON.model, data, SWAG(rank=2), config=COMPARISON.config, seed=0, show_progress=False)
    with pytest.raises(ValueError, match="fitted to the validation part"):
        EvaluationConfig(calibration=True).compute_metrics(fitted, data, "val", 2, 0)


def test_a_table_has_sharpness_and_no_corruptions(tmp_path):
    table = replace(
        COMPARISON,
        source=Diabetes(),
        evaluations=EvaluationConfig(sharpness_rho=0.1, max_examples=50, num_sharpness_draws=2),
        num_seeds=1,
    )
    table.claim_folder(tmp_path, overwrite=False)
    assert "gap_worst" in table.run(tmp_path, jobs=1)["runs"][0]["metrics"]
    shifted = replace(table, evaluations=EvaluationConfig(shift=True))
    assert len(shifted.run(tmp_path, jobs=1)["failures"]) == 2
