"""Sharpness of networks with several labels, and with examples without a label."""

import math

import pytest
import torch
from torch import nn

from flatbayes import MAP, MLP, Bernoulli, Categorical, FittedPosterior, Plain, TrainingConfig, fit
from flatbayes.diagnostics import SharpnessConfig, measure_posterior_sharpness
from support import make_multi_label_splits

CONFIG = SharpnessConfig(ascent_steps=2, num_random_starts=1, num_directions=2)


def test_labels_that_are_not_known_do_not_count():
    data = make_multi_label_splits()
    fitted = fit(MLP, data, MAP(), Plain(), TrainingConfig(epochs=3))
    inputs, labels = data.val.inputs, data.val.targets.clone()
    labels[::3] = -100
    rows = (labels >= 0).any(1)
    assert not rows.all()
    results = [
        measure_posterior_sharpness(fitted, x, y, CONFIG, 1, batch_size=50).trained[0]
        for x, y in (
            (inputs, labels),
            (inputs, torch.where(labels < 0, math.nan, labels.float())),
            (inputs[rows], labels[rows]),
        )
    ]
    outputs = fitted.states[0].model(fitted.transform(inputs)).detach()
    expected = float(Bernoulli(4).loss(outputs, labels))
    for measures in results:
        assert measures["loss"] == pytest.approx(expected, rel=1e-5)
        assert measures == pytest.approx(results[-1], rel=1e-3)


@pytest.mark.parametrize("likelihood", [Categorical(3), Bernoulli(3)], ids=repr)
def test_examples_without_a_label_are_left_out(likelihood):
    torch.manual_seed(0)
    fitted = FittedPosterior(MAP(), [MAP().init(nn.Linear(4, 3), None, 5)], likelihood)
    inputs, labels = torch.randn(30, 4), torch.arange(30) % 3
    if isinstance(likelihood, Bernoulli):
        labels = nn.functional.one_hot(labels)
    labels[:11] = -100
    whole, part = (
        measure_posterior_sharpness(fitted, x, y, CONFIG, 1, batch_size=10)
        for x, y in ((inputs, labels), (inputs[11:], labels[11:]))
    )
    assert whole.num_examples == part.num_examples == 19
    assert whole.trained[0]["loss"] == pytest.approx(part.trained[0]["loss"], rel=1e-5)
    with pytest.raises(ValueError, match="no label is known"):
        measure_posterior_sharpness(fitted, inputs[:11], labels[:11], CONFIG, 1)
