"""Additional evaluations of every run of a comparison."""

from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import pytest
import torch

from flatbayes.core.spec import to_spec
from flatbayes.data import Arrays, Diabetes, Digits, list_corruptions
from flatbayes.diagnostics import measure_posterior_sharpness
from flatbayes.experiments import Comparison, EvaluationConfig
from flatbayes.experiments.run_result import RunDetails
from flatbayes.flatness import SAM
from flatbayes.metrics import DEFINITIONS, HIGHER_IS_BETTER, METRIC_FAMILIES
from flatbayes.models import MLP
from flatbayes.posteriors import MAP, SWAG
from flatbayes.prediction import FittedPosterior, evaluate, evaluate_recalibration
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
    results = COMPARISON.run(folder, jobs=1)
    assert not results.failures
    return results


def test_every_name_of_every_family_is_there_with_direction_and_definition(results):
    names = {name for family in METRIC_FAMILIES.values() for name in family}
    others = {"dee", *METRIC_FAMILIES["Distance to the exact posterior"]}  # in test_references.py
    others |= {*METRIC_FAMILIES["Ranking of two classes"]}  # in metrics/test_binary.py
    for run in results.runs:
        assert names - others <= set(run.metrics)
    assert names <= set(HIGHER_IS_BETTER) & set(DEFINITIONS)
    for row in results.rows:
        assert row.family == next((f for f, metrics in METRIC_FAMILIES.items() if row.metric in metrics), "")
        assert row.comparison.p_value is row.p_holm is None  # of two seeds


def test_details_have_the_quantities_behind_the_metrics(results):
    run = results.runs[0]
    assert run.details.calibration_temperature > 0
    assert run.details.shift.severity == (0.0, 1.0, 5.0)
    mean = sum(run.details.shift.nll[1:]) / 2
    loss_slice = run.details.loss_slice
    assert loss_slice.distances[10] == pytest.approx(0, abs=1e-6)
    at_draws = run.metrics["train_loss"]
    assert loss_slice.losses[10] == pytest.approx(at_draws, rel=1e-5)
    assert max(loss_slice.losses) > at_draws
    assert run.metrics["shift_nll"] == pytest.approx(mean)


def test_the_numbers_are_those_of_the_functions():
    data = COMPARISON.source.load(0)
    fitted = fit(COMPARISON.model, data, SWAG(rank=2), SAM(rho=0.1), COMPARISON.config, seed=0, show_progress=False)
    metrics, _ = EvaluationConfig(calibration=True).compute_metrics(fitted, data, "test", 2, 0)
    assert metrics["nll_scaled"] == evaluate_recalibration(fitted, data.val, data.test, 2).tempered["nll"]
    assert set(metrics) == set(METRIC_FAMILIES["Calibration"])
    assert EvaluationConfig().compute_metrics(fitted, data, "test", 2, 0) == ({}, RunDetails())
    same = evaluate(fitted, data.test.inputs, data.test.targets, 2).metrics
    assert same == evaluate(fitted, data.test.inputs, data.test.targets, 2).metrics  # no state is left behind


def test_all_evaluations_of_a_run_predict_the_same_inputs_once(monkeypatch):
    evaluations = replace(ALL, severities=(5,), sharpness_rho=None)
    run, predicted = replace(COMPARISON, evaluations=evaluations).list_runs()[0], []
    stream = FittedPosterior.stream_predictions

    def record(fitted, inputs, num_draws, **options):
        if num_draws == run.num_draws:  # the trial before the training predicts too
            predicted.append(inputs)
        return stream(fitted, inputs, num_draws, **options)

    monkeypatch.setattr(FittedPosterior, "stream_predictions", record)
    shared = run.execute()
    count = len(predicted)
    # Test and validation split, a part of the test split, out-of-distribution inputs, corruptions.
    assert count == 4 + len(list_corruptions(1, standard_only=True))
    assert len({id(inputs) for inputs in predicted}) == count
    monkeypatch.setattr(FittedPosterior, "share_predictions", lambda fitted: nullcontext())
    assert run.execute().metrics == shared.metrics
    # Each for itself: the test split four times (metrics, checks, likelihood, calibration), and its part twice.
    assert len(predicted) == 2 * count + 4


def test_sharpness_is_measured_on_training_examples(monkeypatch):
    data = COMPARISON.source.load(0)
    fitted = fit(COMPARISON.model, data, SWAG(rank=2), config=COMPARISON.config, seed=0, show_progress=False)
    inputs = []

    def record(fitted, batch, *args, **options):
        inputs.append(batch)
        return measure_posterior_sharpness(fitted, batch, *args, **options)

    monkeypatch.setattr("flatbayes.experiments.evaluations.measure_posterior_sharpness", record)
    config = EvaluationConfig(sharpness_rho=0.05, max_examples=10, num_sharpness_draws=2)
    config.compute_metrics(fitted, data, "test", 2, 0)
    assert torch.equal(inputs[0], data.train.subsample(10).input_tensor)


def test_temperatures_are_not_evaluated_on_the_split_they_were_fitted_to():
    data = COMPARISON.source.load(0)
    fitted = fit(COMPARISON.model, data, SWAG(rank=2), config=COMPARISON.config, seed=0, show_progress=False)
    with pytest.raises(ValueError, match="fitted to the validation split"):
        EvaluationConfig(calibration=True).compute_metrics(fitted, data, "val", 2, 0)


def test_a_table_has_sharpness_and_no_corruptions(tmp_path):
    table = replace(
        COMPARISON,
        source=Diabetes(),
        evaluations=EvaluationConfig(sharpness_rho=0.1, max_examples=50, num_sharpness_draws=2),
        num_seeds=1,
    )
    table.claim_folder(tmp_path, overwrite=False)
    assert "gap_worst" in table.run(tmp_path, jobs=1).runs[0].metrics
    shifted = replace(table, evaluations=EvaluationConfig(shift=True))
    with pytest.raises(ValueError, match=r"shift=True is for classes or labels of images"):
        shifted.run(tmp_path, jobs=1)


def test_arrays_that_are_out_of_distribution_are_told_apart_by_their_content(tmp_path):
    inputs, labels = torch.randn(60, 3, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 2

    def run(ood):
        comparison = replace(
            COMPARISON, source=Arrays(inputs, labels), posteriors=(MAP(),), evaluations=EvaluationConfig(ood=ood)
        )
        comparison.claim_folder(tmp_path, overwrite=False)
        return [result.metrics["ood_auroc"] for result in comparison.run(tmp_path, jobs=1).runs]

    first, second = Arrays(inputs + 9, labels), Arrays(inputs + 0.01, labels)
    far, near = run(first), run(second)
    assert far != near
    num_files = len([*tmp_path.glob("runs/*.json")])
    assert run(first) == run(Arrays(inputs + 9, labels)) == far
    assert run(second) == near
    assert len([*tmp_path.glob("runs/*.json")]) == num_files == 8
    with pytest.raises(TypeError, match="ood is a source of data, .* got a Tensor"):
        EvaluationConfig(ood=inputs)


def test_sources_that_are_described_by_their_arguments_have_no_fingerprint():
    assert EvaluationConfig(ood=Digits()).describe() == to_spec(EvaluationConfig(ood=Digits()))
    assert EvaluationConfig().describe() == to_spec(EvaluationConfig())
