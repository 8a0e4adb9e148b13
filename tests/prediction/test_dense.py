"""What takes predictions of a class at each position: calibration, evaluations, compilation, checks, refusals."""

import matplotlib.pyplot as plt
import pytest
import torch
from torch import nn

from flatbayes import (
    SWAG,
    Arrays,
    Categorical,
    DenseCategorical,
    FittedPosterior,
    Plain,
    TrainingConfig,
    calibrate,
    compare,
    conformalize,
    distill,
    evaluate,
    fit,
)
from flatbayes.calibration import CalibrationMap, fit_abstention, fit_calibration
from flatbayes.calibration.map_fitting import compute_example_losses
from flatbayes.certification import certify
from flatbayes.checks.calibration_tests import run_temperature_test
from flatbayes.checks.evidence import Evidence
from flatbayes.checks.reliability import check_confidence
from flatbayes.core import State
from flatbayes.data import Split
from flatbayes.estimators import FlatBayesClassifier
from flatbayes.experiments import EvaluationConfig
from flatbayes.likelihoods import DenseCategoricalPredictive
from flatbayes.metrics import classification_metrics, fit_temperature, mean_iou
from flatbayes.posteriors import MAP, SGLD
from flatbayes.prediction import evaluate_corruptions, evaluate_ood, evaluate_recalibration
from flatbayes.prediction.inputs import iter_chunks
from flatbayes.prediction.position_stream import stream_example_losses
from flatbayes.training import fit_cross_conformal

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randn(30, 3, 4, 5, generator=GENERATOR)
MASKS = (IMAGES + torch.randn(IMAGES.shape, generator=GENERATOR)).argmax(1)
MASKS[0, :2] = -100
CONFIG = TrainingConfig(epochs=2, batch_size=10)
IDENTITY = nn.Conv2d(3, 3, 1, bias=False)
IDENTITY.weight.data = 2 * torch.eye(3)[..., None, None]


def make_fitted():
    """The posterior of one network, whose outputs are twice its inputs."""
    return FittedPosterior(MAP(), [State(IDENTITY, None, 30)], DenseCategorical(3))


def flat_examples():
    log_probs = (2 * IMAGES).movedim(1, -1)[MASKS >= 0].double().log_softmax(-1)
    return log_probs, MASKS[MASKS >= 0]


def test_metrics_are_those_of_the_labelled_positions():
    log_probs, labels = flat_examples()
    expected = classification_metrics(log_probs, labels)
    expected["mean_iou"] = mean_iou(log_probs.argmax(-1), labels, 3)
    assert evaluate(make_fitted(), IMAGES, MASKS).metrics == pytest.approx(expected, rel=1e-6)
    batches = [(IMAGES[:20], MASKS[:20]), (IMAGES[20:, :, :3], MASKS[20:, :3])]  # images of several sizes
    ragged = evaluate(make_fitted(), batches).metrics
    masks = MASKS.clone()
    masks[20:, 3:] = -100
    assert ragged == pytest.approx(evaluate(make_fitted(), IMAGES, masks).metrics, rel=1e-6)


def test_losses_of_examples_have_the_mean_of_all_positions():
    predictive = make_fitted().predict(IMAGES)
    losses = compute_example_losses(predictive, MASKS)
    log_probs, labels = flat_examples()
    assert losses.shape == (30,)
    assert float(losses.mean()) == pytest.approx(-float(log_probs.gather(1, labels[:, None]).mean()))
    assert float(losses[0] / losses[1:].mean()) < 0.9  # half of its positions have no label


@pytest.mark.filterwarnings("ignore:30 examples are too few for the calibration map 'isotonic'")
@pytest.mark.parametrize("method", ["temperature", "vector", "dirichlet", "isotonic"])
def test_calibration_is_that_of_all_labelled_positions(method, tmp_path):
    fitted, (log_probs, _) = make_fitted(), flat_examples()
    calibrated = calibrate(fitted, IMAGES, MASKS, method=method)
    flat = Categorical(3).predictive([log_probs])
    expected = calibrated.calibration
    assert isinstance(expected, CalibrationMap)
    assert expected.num_examples == 30
    predictive = calibrated.predict(IMAGES)
    assert isinstance(predictive, DenseCategoricalPredictive)
    torch.testing.assert_close(predictive.mean[MASKS >= 0], expected.apply(flat).mean, rtol=1e-3, atol=1e-4)
    evaluation = evaluate(calibrated, IMAGES, MASKS)
    assert evaluation.metrics["nll"] < evaluation.raw_metrics["nll"]
    compiled = calibrated.compile()(IMAGES)
    for name in ("mean", "entropy", "mutual_information"):
        torch.testing.assert_close(compiled[name].double(), getattr(predictive, name), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("class_dim", [1, -1])
def test_compiled_posteriors_have_the_shapes_of_predictions(class_dim):
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Identity())
    outputs = IMAGES
    if class_dim == -1:
        network, outputs = nn.Linear(3, 3), IMAGES.movedim(1, -1).contiguous()
    data = (list(outputs.split(10)), list(MASKS.split(10)))
    fitted = fit(network, list(zip(*data, strict=True)), SWAG(), Plain(), CONFIG)
    assert fitted.likelihood.class_dim == class_dim
    compiled, predictive = fitted.compile(4)(outputs), fitted.predict(outputs, 4)
    for name in ("mean", "entropy", "mutual_information"):
        torch.testing.assert_close(compiled[name].double(), getattr(predictive, name), rtol=1e-3, atol=1e-5)


@pytest.mark.filterwarnings("ignore:30 examples are too few for the calibration map 'isotonic'")
@pytest.mark.parametrize("method", ["temperature", "vector", "dirichlet", "isotonic"])
def test_positions_that_repeat_each_other_are_no_further_examples(method):
    """The map of images whose pixels are all alike is that of one pixel of each, with the same prior."""
    rows, labels = IMAGES[:, :, 0, 0], MASKS[:, 3, 3]
    images, masks = rows[..., None, None].expand(-1, -1, 4, 5), labels[:, None, None].expand(-1, 4, 5)
    calibration = fit_calibration(DenseCategorical(3).predictive([images]), masks, method)
    expected = fit_calibration(Categorical(3).predictive([rows]), labels, method)
    assert calibration.weights == pytest.approx(expected.weights, rel=1e-4)
    assert calibration.num_examples == expected.num_examples == 30
    result = evaluate_recalibration(make_fitted(), (images, masks), (images, masks))
    one_pixel = evaluate_recalibration(
        make_fitted(), *(2 * [(images[..., :1, :1].contiguous(), masks[..., :1, :1].contiguous())])
    )
    assert result.temperature == pytest.approx(one_pixel.temperature, rel=1e-6)


def test_confidence_is_tested_by_examples():
    """Images whose pixels are all alike, with labels drawn from the predictions: as certain as one pixel of each."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(60, 3, generator=generator)
    labels = torch.multinomial(rows.softmax(1), 1, generator=generator)
    images, masks = rows[..., None, None].expand(-1, -1, 40, 40), labels[..., None].expand(-1, 40, 40)
    predictive = DenseCategorical(3).predictive([images])
    flat, positions = predictive.select_labelled(masks)
    assert run_temperature_test(flat.log_probs, positions).p_value < 1e-6
    finding = check_confidence(Evidence(make_fitted(), predictive, masks, None, 1))
    assert finding.p_value > 0.05
    assert finding.value == pytest.approx(fit_temperature(rows.log_softmax(1), labels[:, 0], 0), rel=1e-6)
    wrong = DenseCategorical(3).predictive([9 * images])
    assert check_confidence(Evidence(make_fitted(), wrong, masks, None, 1)).p_value < 1e-4


def test_reliability_of_positions_is_that_of_examples():
    """Of images whose pixels are right or wrong together as many predictions count as there are images."""
    same, masks = IMAGES[:, :, :1, :1].expand(-1, -1, 4, 5), MASKS[:, 3:, 3:4].expand(-1, 4, 5)
    for data in ((same, masks), [(same[:20], masks[:20]), (same[20:], masks[20:])]):
        assert evaluate(make_fitted(), data).reliability.design_effect == pytest.approx(20 * 30 / 29)
    assert evaluate(make_fitted(), IMAGES, MASKS).reliability.design_effect < 2


def test_temperature_scaling_and_shift_are_those_of_positions():
    fitted, (log_probs, labels) = make_fitted(), flat_examples()
    result = evaluate_recalibration(fitted, (IMAGES, MASKS), (IMAGES, MASKS))
    assert result.raw["nll"] == pytest.approx(classification_metrics(log_probs, labels)["nll"])
    assert result.tempered["nll"] < result.raw["nll"]
    raw = Split(inputs=torch.rand(6, 3, 32, 32), targets=torch.randint(3, (6, 32, 32)))
    rows = evaluate_corruptions(fitted, raw, ["fog"], [3])
    assert [row.corruption for row in rows] == ["clean", "fog"]


def test_corruptions_that_move_what_an_image_shows_are_left_out():
    raw = Arrays(torch.rand(12, 3, 32, 32), torch.randint(3, (12, 32, 32)), test_size=2, val_size=2)
    with pytest.raises(ValueError, match="zoom_blur moves what an image shows.*with_moving=False"):
        evaluate_corruptions(make_fitted(), raw.load(seed=0).test, ["fog", "zoom_blur"], [3])
    evaluations = EvaluationConfig(shift=True, severities=[1])
    result = compare(nn.Conv2d(3, 3, 1), raw, [MAP()], config=CONFIG, num_seeds=1, evaluations=evaluations)
    assert "shift_nll" in set(result.to_pandas()["metric"])


def test_images_out_of_the_distribution_have_means_over_positions():
    evaluation = evaluate_ood(make_fitted(), IMAGES, 0.1 * IMAGES)
    assert evaluation.scores["entropy"].auroc == 1


def test_checks_use_the_positions():
    fitted = fit(nn.Conv2d(3, 3, 1), (IMAGES, MASKS), SWAG(), Plain(), TrainingConfig(epochs=20, batch_size=10))
    report = fitted.check(IMAGES, MASKS)
    names = {finding.name for finding in report.findings}
    assert names >= {"diverged", "one_network", "wide_posterior", "confidence"}


def test_what_has_no_meaning_is_refused():
    fitted = make_fitted()
    predictive = fitted.predict(IMAGES)
    with pytest.raises(TypeError, match="no sets with a guarantee for a class at each position.*calibrate"):
        conformalize(fitted, IMAGES, MASKS)
    with pytest.raises(TypeError, match="no sets with a guarantee for a class at each position"):
        fit_cross_conformal(nn.Conv2d(3, 3, 1), (IMAGES, MASKS), config={"epochs": 9999})
    with pytest.raises(TypeError, match="Compare its entropy with a threshold"):
        fit_abstention(predictive, MASKS, risk=0.1)
    with pytest.raises(TypeError, match="abstain_below is a confidence of one class of each example"):
        fitted.predict(IMAGES, abstain_below=0.5)
    with pytest.raises(TypeError, match="no student for a DenseCategorical"):
        distill(fitted, IDENTITY, (IMAGES, MASKS))
    with pytest.raises(ValueError, match="Certificates exist for one class of each example"):
        certify(nn.Conv2d(3, 3, 1), Arrays(IMAGES, MASKS))
    with pytest.raises(ValueError, match=r"for a class at each position likelihood=DenseCategorical"):
        FlatBayesClassifier(nn.Conv2d(3, 3, 1)).fit(IMAGES.numpy(), MASKS.numpy())


def test_chunks_have_inputs_of_one_shape_and_large_examples_smaller_batches(monkeypatch):
    batches = [torch.zeros(2, 4), torch.zeros(3, 4), torch.zeros(2, 5)]
    assert [len(chunk) for chunk in iter_chunks(batches, 8, has_positions=True)] == [2, 1]
    assert [len(chunk) for chunk in iter_chunks(batches, 8)] == [3]
    monkeypatch.setattr("flatbayes.prediction.inputs.MAX_BATCH_ELEMENTS", 3 * 60)
    assert [len(batch) for batch in next(iter(iter_chunks(IMAGES, 8, has_positions=True)))] == [3] * 10
    assert [len(batch) for batch in next(iter(iter_chunks(IMAGES, 8)))] == [8, 8, 8, 6]


def test_a_comparison_has_the_metrics_of_positions(monkeypatch):
    monkeypatch.setattr("flatbayes.experiments.calibrated_nll.predict_labelled", None)  # of all examples at once
    result = compare(nn.Conv2d(3, 3, 1), (IMAGES, MASKS), [MAP()], config=CONFIG, num_seeds=1)
    assert list(result.to_pandas()["metric"]) == ["accuracy", "nll", "ece", "brier", "auroc_correct", "mean_iou"]


def test_a_part_of_the_examples_is_predicted_at_a_time(monkeypatch):
    """Metrics, losses of examples and checks do not depend on the memory that predictions may take."""
    fitted = calibrate(make_fitted(), IMAGES, MASKS)
    loader = [(IMAGES[:7], MASKS[:7]), (IMAGES[7:], MASKS[7:])]
    whole = evaluate(fitted, IMAGES, MASKS)
    losses = compute_example_losses(fitted.predict(IMAGES), MASKS)
    monkeypatch.setattr("flatbayes.prediction.inputs.MAX_CHUNK_BYTES", 4 * 64 * 3 * 60)
    assert [len(p.mean) for p in fitted.stream_predictions(IMAGES, batch_size=2)] == [4] * 7 + [2]
    for data in ((IMAGES, MASKS), (IMAGES.numpy(), MASKS.numpy()), loader):
        part = evaluate(fitted, data, batch_size=2)
        assert part.metrics == pytest.approx(whole.metrics, rel=1e-6)
        assert part.raw_metrics == pytest.approx(whole.raw_metrics, rel=1e-6)
        torch.testing.assert_close(stream_example_losses(fitted, data, 1, 2), losses)
    monkeypatch.setattr("flatbayes.prediction.position_stream.MAX_PREDICTED_VALUES", 10 * 60)
    assert fitted.check(IMAGES, MASKS).num_examples == 10


def test_snapshots_of_a_chain_are_followed():
    config = TrainingConfig(epochs=10, batch_size=10)
    fitted = fit(nn.Conv2d(3, 3, 1), (IMAGES, MASKS), SGLD(), Plain(), config)
    assert "mixing" in {finding.name for finding in fitted.check(IMAGES, MASKS).findings}


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (MASKS[:20], "30 inputs and 20 targets"),
        (torch.full_like(MASKS, -100), "no labelled positions"),
        (MASKS[:, :2], r"shape \(30, 4, 5\), and targets of the shape \(30, 2, 5\)"),
    ],
    ids=["count", "unlabelled", "positions"],
)
def test_targets_that_do_not_match_are_refused(masks, message):
    with pytest.raises(ValueError, match=message):
        evaluate(make_fitted(), IMAGES, masks)


def test_plots_of_images_and_texts():
    predictive = make_fitted().predict(IMAGES)
    axes = predictive.plot(IMAGES, MASKS, num_examples=2)
    assert [label.get_text() for label in axes.get_xticklabels()] == [
        "input",
        "target",
        "most probable class",
        "entropy",
    ]
    uncertain = predictive.entropy.mean((1, 2)).argsort(descending=True)[:2]
    assert [label.get_text() for label in axes.get_yticklabels()] == [str(int(row)) for row in uncertain]
    tagger = DenseCategorical(3, class_dim=-1)
    texts = DenseCategoricalPredictive.concatenate(
        [tagger.predictive([IMAGES[:5, :, 0].mT]), tagger.predictive([IMAGES[5:7, :, 0, :3].mT])]
    )
    assert len(texts.plot(num_examples=7).get_yticklabels()) == 7
    with pytest.raises(ValueError, match="in a line or in an image"):
        DenseCategorical(3).predictive([torch.zeros(2, 3, 4, 4, 4)]).plot()
    plt.close("all")
