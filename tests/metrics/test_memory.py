"""Metrics of class probabilities take memory for blocks of rows and for vectors of examples, and none for copies."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from flatbayes import metrics
from flatbayes.core.devices import BLOCK_ELEMENTS
from flatbayes.likelihoods import Categorical
from flatbayes.metrics.calibration import classwise_ece_of_log_probs
from support import peak_bytes

FROM_PROBS = ["accuracy", "adaptive_ece", "auroc_correct", "brier_score", "classwise_ece", "ece", "reliability_bins"]
FROM_LOG_PROBS = ["classification_metrics", "fit_temperature", "nll"]
EXAMPLES, CLASSES = 10_000, 200
LIMIT = 5 * 8 * BLOCK_ELEMENTS + 150 * EXAMPLES
"""Five blocks, and 150 bytes for each example: for a million examples of 1,000 classes 0.15 GB, beside the 4 GB of
their probabilities in float32."""


def measure_peak(work, tmp_path) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    return peak_bytes(recorded, tmp_path / "trace.json")


def predictions():
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(EXAMPLES, CLASSES, generator=generator)
    return logits.log_softmax(-1), torch.randint(CLASSES, (EXAMPLES,), generator=generator)


@pytest.mark.filterwarnings("ignore")  # of the profiler
@pytest.mark.parametrize("name", [*FROM_PROBS, *FROM_LOG_PROBS, "classwise_ece_of_log_probs"])
def test_no_metric_copies_the_probabilities(name, tmp_path):
    values, labels = predictions()
    assert values.nbytes * 0.55 > LIMIT
    if name in FROM_PROBS:
        values.exp_()
    metric = getattr(metrics, name, classwise_ece_of_log_probs)
    assert measure_peak(lambda: metric(values, labels), tmp_path) < LIMIT


@pytest.mark.filterwarnings("ignore")  # of the profiler
def test_results_with_one_value_per_class_are_the_only_other_memory(tmp_path):
    log_probs, _ = predictions()
    scaled = measure_peak(lambda: metrics.apply_temperature(log_probs, 2.0), tmp_path)
    assert scaled < 2 * log_probs.nbytes + LIMIT  # the result is float64
    predict = Categorical(CLASSES).predictive
    assert measure_peak(lambda: predict([log_probs] * 3), tmp_path) < 4 * log_probs.nbytes + LIMIT  # two in float64
