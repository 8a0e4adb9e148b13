"""Coverage of conformal prediction for every posterior: the measurement, resumption, and the page."""

from dataclasses import replace

import pytest
import torch

from flatbayes.calibration import LAC, NormalizedResidual
from flatbayes.likelihoods import CategoricalPredictive, GaussianPredictive
from flatbayes.posteriors import MAP
from studies.coverage import page, study
from studies.coverage.__main__ import main


def make_numbers(count):
    generator = torch.Generator().manual_seed(0)
    means = torch.zeros(1, count, dtype=torch.float64)
    return GaussianPredictive(means, means + 1), torch.randn(count, generator=generator, dtype=torch.float64)


def test_splits_of_distinct_scores_have_the_expected_coverage():
    """200 splits of a pool: mean and number of misses as the beta-binomial distribution says."""
    result = study.measure_coverage(*make_numbers(201), NormalizedResidual(), ("toy", "none", "normalised"))
    assert (result.num_calibration, result.num_test, result.num_splits) == (100, 101, 200)
    assert result.expected == 91 / 101
    low, high = result.coverage_range
    assert low < result.expected < high
    assert abs(result.coverage - result.expected) < (high - low)
    assert 0 < result.expected_below <= 5
    assert result.num_below <= 12  # probability 0.999


def test_equal_scores_are_covered_more_often():
    log_probs = torch.tensor([[0.9, 0.1]], dtype=torch.float64).log().expand(100, 2)
    predictive = CategoricalPredictive(log_probs, torch.zeros(100), torch.zeros(100, 2))
    result = study.measure_coverage(predictive, torch.zeros(100).long(), LAC(), ("toy", "none", "LAC"), 20)
    assert (result.coverage, result.mean_size, result.num_below) == (1.0, 1.0, 0)


def test_a_run_is_resumed_and_the_page_has_its_numbers(tmp_path, monkeypatch, capsys):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 2, generator=generator)
    monkeypatch.setattr(study, "DATA", {"toy": lambda: (inputs, (inputs[:, 0] > 0).long())})
    monkeypatch.setattr(study, "CONFIG", replace(study.CONFIG, epochs=2))
    monkeypatch.setattr(study, "list_posteriors", lambda: {"MAP": MAP(), "broken": None})
    assert [text.split(":")[0] for text in study.run_study(tmp_path, ["toy"], ["MAP", "broken"])] == ["toy, broken"]
    monkeypatch.setattr(study, "run_pair", lambda *_: pytest.fail("trained again"))
    assert study.run_study(tmp_path, ["toy"], ["MAP"]) == []
    results = study.load_results(tmp_path)
    assert [row.score for row in results] == ["LAC", "APS", "RAPS"]
    (tmp_path / "page.md").write_text(f"before\n{page.START}\nold\n{page.END}\nafter\n")
    main([str(tmp_path), "--page", str(tmp_path / "page.md"), "--summary", str(tmp_path / "all.txt")])
    text = (tmp_path / "page.md").read_text()
    assert text.startswith("before")
    assert text.endswith("after\n")
    assert "old" not in text
    assert f"{100 * results[0].coverage:.2f} %" in text


def test_every_posterior_is_in_the_study():
    assert {"MAP", "SWAG", "IVON", "Ensemble", "Laplace", "MCDropout"} <= set(study.list_posteriors())
    assert "Posterior" not in study.list_posteriors()
