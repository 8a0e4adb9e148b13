"""Split conformal prediction: ranks, quantiles, scores, regions, guarantee and coverage."""

import json
import math
import warnings

import numpy as np
import pytest
import torch
from scipy.stats import beta, betabinom, binom, kstest

from flatbayes.calibration import (
    APS,
    LAC,
    RAPS,
    CalibrationWarning,
    ConformalPredictor,
    NormalizedResidual,
    QuantileResidual,
    conformal_quantile,
    conformal_rank,
    fit_conformal,
)
from flatbayes.calibration.quantiles import _mix, hash_to_uniforms, required_examples, sample_coverage_interval
from flatbayes.calibration.scores import adaptive_scores, interval_residuals, normalized_residuals
from flatbayes.likelihoods import CategoricalPredictive, Gaussian, GaussianPredictive

pytestmark = pytest.mark.filterwarnings("ignore::flatbayes.calibration.CalibrationWarning")

CLASS_SCORES = [LAC(), APS(), APS(randomized=False), RAPS(penalty=0.05), RAPS(randomized=False, k_reg=2)]
NUMBER_SCORES = [NormalizedResidual(), QuantileResidual()]


def make_predictive(probs):
    log_probs = torch.as_tensor(probs, dtype=torch.float64).log()
    return CategoricalPredictive(log_probs, torch.zeros(len(log_probs)), torch.zeros_like(log_probs))


def make_classes(num_examples, num_classes=4, seed=0):
    """Predictions that are too confident, and classes."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_examples, num_classes, generator=generator, dtype=torch.float64)
    targets = torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)
    return make_predictive((3 * logits).softmax(1)), targets


def make_numbers(num_examples, num_targets=None, seed=0):
    """Mixtures of two normal distributions that are too narrow, and skewed heteroscedastic targets."""
    generator = torch.Generator().manual_seed(seed)
    shape = (num_examples,) if num_targets is None else (num_examples, num_targets)
    means = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    stds = 0.2 + torch.rand(2, *shape, generator=generator, dtype=torch.float64)
    noise = torch.empty(shape, dtype=torch.float64).exponential_(generator=generator)
    return GaussianPredictive(means, stds), means.mean(0) + 2 * stds.mean(0) * noise


@pytest.mark.parametrize("level", [0.5, 0.7, 0.9, 0.95, 0.99])
def test_the_rank_is_the_smallest_that_reaches_the_level(level):
    hundredths = round(100 * level)
    for num_examples in range(300):
        rank = conformal_rank(num_examples, level)
        assert (rank - 1) * 100 < hundredths * (num_examples + 1) <= rank * 100  # in integers
        assert (rank <= num_examples) == (num_examples >= required_examples(level))


@pytest.mark.parametrize("level", [0, 1, -0.1, 1.5, math.nan])
def test_a_level_outside_0_and_1_is_refused(level):
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        conformal_rank(10, level)


def test_the_quantile_is_an_order_statistic_and_infinite_for_few_scores():
    scores = torch.tensor([5.0, 2.0, 2.0, 9.0])
    expected = {0.2: 2.0, 0.21: 2.0, 0.4: 2.0, 0.41: 5.0, 0.6: 5.0, 0.61: 9.0, 0.8: 9.0, 0.81: math.inf}
    assert {level: conformal_quantile(scores, level).item() for level in expected} == expected
    assert conformal_quantile(scores[:0], 0.5).item() == math.inf
    by_target = conformal_quantile(torch.stack([scores, -scores], 1), 0.6)
    assert by_target.tolist() == [5.0, -2.0]
    with pytest.raises(ValueError, match="1 score of calibration examples is NaN"):
        conformal_quantile(torch.tensor([1.0, math.nan]), 0.5)


def test_the_range_of_an_observed_coverage_is_beta_binomial():
    assert sample_coverage_interval(8, 5, 0.9, 0.95) == (1.0, 1.0)  # too few calibration examples: everything
    assert sample_coverage_interval(9, 0, 0.9, 0.95) == (0.0, 1.0)
    # Of 9 scores the largest is the threshold: P(k of m) ~ (k + 1) ... (k + 8).
    weights = [math.prod(range(k + 1, k + 9)) for k in range(21)]
    cumulated = [sum(weights[: k + 1]) / sum(weights) for k in range(21)]
    ends = [next(k for k in range(21) if cumulated[k] >= p) / 20 for p in (0.025, 0.975)]
    assert sample_coverage_interval(9, 20, 0.9, 0.95) == tuple(ends)


def test_scores_of_classes_by_hand():
    probs, uniforms = torch.tensor([[0.1, 0.6, 0.3], [0.4, 0.2, 0.4]]), torch.tensor([0.5, 0.25])
    expected = torch.tensor([[0.95, 0.3, 0.75], [0.1, 0.85, 0.5]], dtype=torch.float64)  # equal p: first class first
    torch.testing.assert_close(adaptive_scores(probs, uniforms, 0.0, 0), expected, atol=1e-6, rtol=0)
    penalties = torch.tensor([[0.2, 0.0, 0.1], [0.0, 0.2, 0.1]])
    torch.testing.assert_close(adaptive_scores(probs, uniforms, 0.1, 1), expected + penalties, atol=1e-6, rtol=0)
    torch.testing.assert_close(LAC().score_classes(probs.log()), 1 - probs)
    torch.testing.assert_close(APS().score_classes(probs.log()), RAPS(penalty=0.0).score_classes(probs.log()))
    without = APS(randomized=False).score_classes(probs.log())
    assert without.amax(1).tolist() == pytest.approx([1.0, 1.0])
    with pytest.raises(ValueError, match="penalty and k_reg must be at least 0"):
        RAPS(penalty=-1.0)


def test_scores_of_numbers_by_hand():
    assert normalized_residuals(*torch.tensor([[1.0, 2.0], [0.5, 0.0], [0.0, 2.0]])).tolist() == [2.0, 0.0]
    lower, upper = torch.tensor([0.0, 0.0, 0.0]), torch.tensor([2.0, 2.0, 2.0])
    assert interval_residuals(lower, upper, torch.tensor([-1.0, 0.5, 5.0])).tolist() == [1.0, -0.5, 3.0]


def test_the_hash_is_that_of_splitmix64():
    golden = 0x9E3779B97F4A7C15  # the generator adds it to its state before each output; these are the first two
    outputs = _mix(np.array([0, golden], dtype=np.uint64))
    assert list(map(int, outputs)) == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]


def test_random_numbers_are_uniform_and_depend_on_the_prediction_and_the_seed_only():
    log_probs = make_classes(20_000)[0].log_probs
    uniforms = hash_to_uniforms(log_probs, 0)
    assert kstest(uniforms.numpy(), "uniform").pvalue > 0.01
    pairs = torch.stack([uniforms, hash_to_uniforms(log_probs, 1), uniforms.roll(1), log_probs[:, 0].exp()])
    assert (torch.corrcoef(pairs) - torch.eye(4)).abs().max() < 0.03
    assert uniforms.min() >= 0
    assert uniforms.max() < 1
    assert torch.equal(hash_to_uniforms(log_probs[7:8], 0), uniforms[7:8])
    swapped = hash_to_uniforms(log_probs[:, [1, 0, 2, 3]], 0)
    assert (swapped != uniforms).all()


@pytest.mark.parametrize("score", CLASS_SCORES, ids=repr)
@pytest.mark.parametrize("groups", [None, "class", "vector"])
def test_a_set_has_the_classes_whose_score_is_at_most_the_threshold(score, groups):
    predictive, targets = make_classes(150)
    vector = ["a", "b", "b"] * 50
    calibration_groups = vector if groups == "vector" else groups
    predictor = fit_conformal(predictive, targets, score, level=0.8, groups=calibration_groups)
    sets = predictor.predict(predictive, vector if groups == "vector" else None)
    scores = score.score_classes(predictive.log_probs)
    true_scores = scores.gather(1, targets[:, None]).squeeze(1)
    for row in range(0, 150, 7):
        for label in range(4):
            peers = {
                None: torch.ones(150, dtype=torch.bool),
                "class": targets == label,
                "vector": torch.tensor([name == vector[row] for name in vector]),
            }[groups]
            ordered = sorted(true_scores[peers].tolist())
            threshold = ordered[math.ceil((len(ordered) + 1) * 8 / 10) - 1]
            assert sets.members[row, label].item() == (scores[row, label].item() <= threshold)


@pytest.mark.parametrize("score", NUMBER_SCORES, ids=repr)
@pytest.mark.parametrize("num_targets", [None, 2])
def test_an_interval_has_the_numbers_whose_score_is_at_most_the_threshold(score, num_targets):
    predictive, targets = make_numbers(60, num_targets)
    predictor = fit_conformal(predictive, targets, score, level=0.8)
    intervals, threshold = predictor.predict(predictive), torch.tensor(predictor.thresholds["all"].values).squeeze()
    for offset, is_inside in ((1e-6, True), (-1e-6, False)):
        for end, sign in ((intervals.lower, 1), (intervals.upper, -1)):
            assert ((score.compute_scores(predictive, end + sign * offset, 0.8) <= threshold) == is_inside).all()
            assert (intervals.contains(end + sign * offset) == is_inside).all()
    assert torch.equal(intervals.size, intervals.upper - intervals.lower)


@pytest.mark.parametrize("score", NUMBER_SCORES, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_targets_that_tie_with_the_threshold_are_inside(score, dtype):
    generator = torch.Generator().manual_seed(0)
    for trial in range(300):
        mean, std = torch.rand(2, generator=generator).tolist()
        targets = (-1) ** trial * torch.randint(0, 5, (99,), generator=generator).to(dtype)  # at both ends
        predictive = GaussianPredictive(*(torch.full((1, 99), v, dtype=dtype) for v in (mean, 0.1 + std)))
        predictor = fit_conformal(predictive, targets, score, level=0.8)
        is_inside = score.compute_scores(predictive, targets, 0.8) <= predictor.thresholds["all"].values[0]
        assert torch.equal(predictor.predict(predictive).contains(targets), is_inside)
        assert is_inside.sum() >= 80


def test_an_infinite_threshold_contains_everything_also_without_a_standard_deviation():
    zeros = torch.zeros(1, 2, dtype=torch.float64)
    predictive = GaussianPredictive(zeros, zeros.index_fill(1, torch.tensor([1]), 1.0))
    for threshold, expected in ((math.inf, [True, True]), (-math.inf, [False, False])):
        region = NormalizedResidual().predict_region(predictive, torch.tensor([[threshold]]).double(), 0.9)
        assert region.contains(torch.tensor([3.0, 3.0])).tolist() == expected


def test_conformal_quantile_intervals_may_shrink_below_those_of_the_posterior_and_be_empty():
    predictive = Gaussian().predictive([torch.zeros(20, 2)])
    lower, upper = predictive.interval(0.8)
    predictor = fit_conformal(predictive, predictive.mean, QuantileResidual(), level=0.8)
    intervals = predictor.predict(predictive)
    assert ((intervals.lower > lower) & (intervals.upper < upper)).all()
    narrow = GaussianPredictive(predictive.member_means, predictive.member_stds / 10)
    evaluation = predictor.evaluate(narrow, predictive.mean)
    assert (evaluation.coverage, evaluation.mean_size, evaluation.empty_fraction) == (0.0, 0.0, 1.0)


@pytest.mark.parametrize("score", [*CLASS_SCORES, *NUMBER_SCORES], ids=repr)
def test_coverage_over_random_splits_is_that_of_the_guarantee(score):
    """Calibration sets of 99 of 2,000 fixed predictions: mean coverage 0.9, spread that of Beta(90, 10)."""
    is_class = score in CLASS_SCORES
    predictive, targets = make_classes(2000) if is_class else make_numbers(2000)
    scores = score.compute_scores(predictive, targets, 0.9)
    generator = torch.Generator().manual_seed(1)
    orders = torch.rand(1000, 2000, generator=generator).argsort(1)
    thresholds = conformal_quantile(scores[orders[:, :99]].T, 0.9)
    coverages = (scores[orders[:, 99:]] <= thresholds[:, None]).double().mean(1)
    exact = betabinom(1901, 90, 10)
    error = exact.std() / 1901 / math.sqrt(1000)
    if not getattr(score, "randomized", True):  # scores tie: the improbable classes of all examples have a sum of 1
        assert coverages.mean() > 0.9 - 3 * error
    else:
        assert abs(coverages.mean() - 0.9) < 3 * error
        assert coverages.std().item() == pytest.approx(exact.std() / 1901, rel=0.1)
        low, high = binom(1000, 0.9).interval(0.999)  # of the central 90 % of the distribution
        inside = ((coverages >= exact.ppf(0.05) / 1901) & (coverages <= exact.ppf(0.95) / 1901)).sum().item()
        assert low - 5 <= inside <= high + 5  # a discrete distribution: its interval has a little more than 90 %


def test_thresholds_by_class_and_group_cover_each_where_one_threshold_does_not():
    predictive, targets = make_classes(4000)
    rare = torch.arange(4000) % 5 == 0
    targets = torch.where(rare, (targets + 1) % 4, targets)  # a group that is predicted badly
    halves = torch.arange(4000) < 2000
    calibration, test = predictive.select(halves), predictive.select(~halves)
    groups = ["rare" if row else "common" for row in rare.tolist()]
    one = fit_conformal(calibration, targets[halves], LAC())
    worst = one.predict(test).contains(targets[~halves])[rare[~halves]].double().mean()
    assert worst < 0.85
    by_group = fit_conformal(calibration, targets[halves], LAC(), groups=groups[:2000])
    evaluation = by_group.evaluate(test, targets[~halves], groups[2000:])
    assert [(row.name, row.num_examples) for row in evaluation.estimates] == [
        ("all", 2000), ("rare", 400), ("common", 1600)]  # fmt: skip
    assert [row.is_as_guaranteed for row in evaluation.estimates] == [None, True, True]
    expected = betabinom(400, conformal_rank(400, 0.9), 401 - conformal_rank(400, 0.9)).interval(0.95)
    assert evaluation.estimates[1].expected_range == tuple(value / 400 for value in expected)
    by_class = fit_conformal(calibration, targets[halves], groups="class").evaluate(test, targets[~halves])
    assert [row.name for row in by_class.estimates] == ["all", "0", "1", "2", "3"]
    assert all(row.is_as_guaranteed for row in by_class.estimates[1:])


@pytest.mark.parametrize("groups", [np.array([False, True] * 10), [" 0", "1"] * 10, np.array([2, 1] * 10)])
def test_groups_without_calibration_examples_are_warned_of(groups):
    """They may be known groups that are written in another way, and their regions contain everything."""
    for predictive, targets in (make_classes(20), make_numbers(20)):
        predictor = fit_conformal(predictive, targets, groups=[0, 1] * 10)
        with pytest.warns(CalibrationWarning, match=r"no calibration examples of \[.*calibration are \['0', '1'\]"):
            predictor.predict(predictive, groups)
        with pytest.warns(CalibrationWarning, match="contain everything"):
            predictor.evaluate(predictive, targets, groups)


@pytest.mark.parametrize(
    "groups", [np.array([0.0, 1.0] * 10, dtype=np.float32), ["0", "1"] * 10, ["0.0", "1.0"] * 10]
)
def test_groups_may_be_numbers_of_any_type_or_text(groups):
    predictive, targets = make_classes(20)
    predictor = fit_conformal(predictive, targets, groups=[0, 1] * 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same = predictor.predict(predictive, groups)
        assert torch.equal(same.members, predictor.predict(predictive, [0, 1] * 10).members)
        assert predictor.evaluate(predictive, targets, groups).estimates[1].name == "0"


def test_sets_of_certain_predictions_have_one_class():
    """The right class and classes of probability 0 have the same sum, 1, which was the threshold of all sets."""
    certain = torch.eye(4, dtype=torch.float64)[torch.arange(40) % 4]
    predictive = make_predictive(torch.cat([certain, make_classes(60)[0].log_probs.exp()]))
    targets = torch.cat([torch.arange(40) % 4, make_classes(60)[1]])
    sets = fit_conformal(predictive, targets, APS(randomized=False), level=0.8).predict(predictive)
    assert sets.size[:40].tolist() == [1] * 40
    assert sets.contains(targets).double().mean() >= 0.8
    assert sets.size[40:].double().mean() < 4


def test_a_class_or_group_without_enough_examples_is_always_in_the_set():
    predictive, targets = make_classes(100)
    targets = targets.clamp_max(2)
    predictor = fit_conformal(predictive, targets, groups="class")
    assert predictor.predict(predictive).members[:, 3].all()
    groups = [0] * 95 + [1] * 5
    predictor = fit_conformal(predictive, targets, groups=torch.tensor(groups))
    assert predictor.thresholds["1"].values == (math.inf,)
    assert "1 of 2 groups has too few calibration examples for this level (at least 9 are needed)" in (
        predictor.guarantee()
    )
    sizes = predictor.predict(predictive, [0.0] * 60 + [1.0] * 20 + [7.0] * 20).size
    assert (sizes[60:] == 4).all()
    assert (sizes[:60] < 4).any()
    numbers, values = make_numbers(8)
    few = fit_conformal(numbers, values)
    assert few.predict(numbers).lower.tolist() == [-math.inf] * 8
    assert few.evaluate(numbers, values).estimates[0].expected_range == (1.0, 1.0)
    assert "There are too few calibration examples" in few.guarantee()


def test_empty_sets_can_be_filled_with_the_most_probable_class():
    predictive, targets = make_classes(500)
    predictor = fit_conformal(predictive, predictive.top_class, level=0.5)
    sets = predictor.predict(predictive)
    is_empty = sets.size == 0
    assert 100 < is_empty.sum() < 300
    filled = fit_conformal(predictive, predictive.top_class, level=0.5, allow_empty=False).predict(predictive)
    assert filled.contains(predictive.top_class).all()
    assert torch.equal(filled.members[~is_empty], sets.members[~is_empty])
    assert (filled.size[is_empty] == 1).all()
    assert predictor.evaluate(predictive, targets).empty_fraction == is_empty.double().mean()


def test_an_evaluation_says_whether_the_assumptions_hold():
    predictive, targets = make_classes(1000)
    halves = torch.arange(1000) < 500
    predictor = fit_conformal(predictive.select(halves), targets[halves])
    good = predictor.evaluate(predictive.select(~halves), targets[~halves])
    assert good.estimates[0].is_as_guaranteed
    assert "BELOW" not in good.summary()
    drifted = predictor.evaluate(predictive.select(~halves), (targets[~halves] + 1) % 4)
    assert not drifted.estimates[0].is_as_guaranteed
    assert "BELOW: the assumptions do not hold" in drifted.summary()
    low, high = beta(451, 50).interval(0.95)
    assert f"between {100 * low:.1f} % and {100 * high:.1f} % for 95 % of the calibration sets" in good.guarantee
    assert "exchangeable" in good.summary()
    assert max(map(len, good.summary().splitlines())) <= 120
    assert json.loads(json.dumps(good.to_dict()))["level"] == 0.9


def test_several_targets_have_thresholds_of_their_own():
    predictive, targets = make_numbers(300, 2)
    targets[:, 1] += 5
    evaluation = fit_conformal(predictive, targets).evaluate(predictive, targets)
    rows = evaluation.estimates
    assert [row.name for row in rows] == ["all", "target 0", "target 1"]
    named = fit_conformal(predictive, targets).evaluate(predictive, targets, names=["height", "width"])
    assert [row.name for row in named.estimates] == ["all", "height", "width"]
    assert rows[0].coverage == pytest.approx((rows[1].coverage + rows[2].coverage) / 2)
    assert rows[2].mean_size > rows[1].mean_size
    assert rows[1].coverage == rows[2].coverage == pytest.approx(271 / 300)
    assert rows[0].expected_range is None
    assert rows[1].expected_range is not None


@pytest.mark.parametrize("score", [*CLASS_SCORES, *NUMBER_SCORES], ids=repr)
def test_a_predictor_is_plain_data(score):
    predictive, targets = make_classes(20) if score in CLASS_SCORES else make_numbers(20)
    predictor = fit_conformal(predictive, targets, score, groups=["x"] * 15 + ["y"] * 5)
    assert ConformalPredictor.from_dict(json.loads(json.dumps(predictor.to_dict(), allow_nan=False))) == predictor


def test_wrong_input_is_refused():
    classes, labels = make_classes(20)
    numbers, values = make_numbers(20)
    cases = [
        (TypeError, "LAC is a score of classes, got a GaussianPredictive", (numbers, values, LAC()), {}),
        (TypeError, "QuantileResidual is a score of numbers", (classes, labels, QuantileResidual()), {}),
        (ValueError, "one target for each", (classes, labels[:5]), {}),
        (ValueError, "indices of the 4 classes", (classes, labels - 1), {}),
        (ValueError, "1 target is missing", (numbers, torch.cat([values[1:], torch.tensor([math.nan])])), {}),
        (ValueError, "groups must be 'class'", (numbers, values), {"groups": "class"}),
        (ValueError, "20 predictions and 3 groups", (classes, labels), {"groups": [1, 2, 3]}),
        (ValueError, "strictly between 0 and 1", (classes, labels), {"level": 90}),
    ]
    for error, message, arguments, options in cases:
        with pytest.raises(error, match=message):
            fit_conformal(*arguments, **options)
    predictor = fit_conformal(classes, labels, groups=[0] * 20)
    with pytest.raises(ValueError, match="pass the group of each example"):
        predictor.predict(classes)
    with pytest.raises(ValueError, match="leave out groups"):
        fit_conformal(classes, labels).predict(classes, [0] * 20)
    with pytest.raises(ValueError, match="Unknown score 'XYZ'"):
        ConformalPredictor.from_dict(predictor.to_dict() | {"score": "XYZ"})


def test_class_indices_may_be_floating_point_numbers():
    predictive, labels = make_classes(50)
    assert fit_conformal(predictive, labels.double()) == fit_conformal(predictive, labels)
    with pytest.raises(ValueError, match="indices of the 4 classes"):
        fit_conformal(predictive, labels + 0.5)
