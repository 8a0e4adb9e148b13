import math

import pytest
import torch

from flatbayes import metrics
from flatbayes.metrics import DEFINITIONS, HIGHER_IS_BETTER, classification_metrics


def example():
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(300, 5, generator=generator)
    return logits.log_softmax(-1), (logits + torch.randn(300, 5, generator=generator)).argmax(-1)


def test_is_each_metric_on_its_own():
    log_probs, labels = example()
    found, probs = classification_metrics(log_probs, labels), log_probs.double().exp()
    assert found.pop("nll") == metrics.nll(log_probs, labels)
    functions = {"brier": metrics.brier_score}
    assert found == {name: functions.get(name, getattr(metrics, name, None))(probs, labels) for name in found}


def test_every_metric_has_a_direction_and_a_definition():
    names = list(classification_metrics(*example()))
    assert names == ["accuracy", "nll", "ece", "brier", "auroc_correct"]
    assert list(HIGHER_IS_BETTER)[:5] == list(DEFINITIONS)[:5] == names
    assert {name for name in names if HIGHER_IS_BETTER[name]} == {"accuracy", "auroc_correct"}


def test_definitions_cannot_be_edited_by_accident():
    with pytest.raises(TypeError):
        DEFINITIONS["ece"] = "15 bins"


def test_values_are_plain_floats():
    assert {type(value) for value in classification_metrics(*example()).values()} == {float}


def test_directions_are_true():
    """The forecaster who knows the truth beats the one who asserts the opposite in everything."""
    labels = torch.arange(40) % 2
    sure = torch.where(torch.arange(40) < 30, 0.9, 0.6)
    right = torch.where(torch.arange(40) < 38, labels, 1 - labels)  # two unsure ones are wrong
    probs = torch.stack([torch.where(right == c, sure, 1 - sure) for c in (0, 1)], dim=-1)
    good = classification_metrics(probs.log(), labels)
    bad = classification_metrics(probs.log(), 1 - labels)
    for name in good:
        assert (good[name] > bad[name]) == HIGHER_IS_BETTER[name], name


def test_of_a_perfect_classifier():
    log_probs = torch.tensor([[0.0, -math.inf], [-math.inf, 0.0]])
    found = classification_metrics(log_probs, torch.tensor([0, 1]))
    assert math.isnan(found.pop("auroc_correct"))
    assert found == {"accuracy": 1.0, "nll": 0.0, "ece": 0.0, "brier": 0.0}
