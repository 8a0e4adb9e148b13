"""Categorical likelihood: averages of probabilities, uncertainty, and the loss."""

import math
import warnings

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from flatbayes.likelihoods import Categorical, CategoricalPredictive, Gaussian
from flatbayes.likelihoods.categorical_predictive import categorical_entropy
from flatbayes.likelihoods.labels import encode_labels


def logits(seed, draws=5, examples=7, classes=4):
    return 3 * torch.randn(draws, examples, classes, generator=torch.Generator().manual_seed(seed))


def test_two_members_that_disagree():
    members = torch.tensor([[[0.9, 0.1]], [[0.1, 0.9]]]).log()
    predictive = Categorical(2).predictive(iter(members))
    assert predictive.entropy.item() == pytest.approx(0.693147, abs=1e-6)
    assert predictive.expected_entropy.item() == pytest.approx(0.325083, abs=1e-6)
    assert predictive.mutual_information.item() == pytest.approx(0.368064, abs=1e-6)
    assert predictive.mean.tolist() == [pytest.approx([0.5, 0.5])]
    assert predictive.variance.tolist() == [pytest.approx([0.16, 0.16])]


def test_the_average_is_of_probabilities_not_logits():
    outputs = logits(0)
    predictive = Categorical(4).predictive(iter(outputs))
    probs = outputs.double().softmax(-1)
    torch.testing.assert_close(predictive.mean, probs.mean(0))
    torch.testing.assert_close(predictive.variance, probs.var(0, correction=0))
    torch.testing.assert_close(predictive.entropy, -(probs.mean(0) * probs.mean(0).log()).sum(-1))
    assert torch.equal(predictive.top_class, probs.mean(0).argmax(-1))
    torch.testing.assert_close(predictive.confidence, probs.mean(0).amax(-1))
    assert (predictive.mutual_information >= 0).all()
    assert not torch.allclose(predictive.mean, outputs.double().mean(0).softmax(-1), atol=1e-3)


def test_one_member_has_no_mutual_information():
    predictive = Categorical(4).predictive([logits(0)[0]])
    assert predictive.mutual_information.abs().max() < 1e-12
    assert (predictive.variance == 0).all()


def test_log_probabilities_are_exact_where_probabilities_underflow():
    extreme = torch.tensor([[0.0, -2000.0]])
    predictive = Categorical(2).predictive([extreme, extreme])
    assert predictive.log_probs[0, 1].item() == pytest.approx(-2000.0, rel=1e-12)
    assert predictive.entropy.isfinite().all()


def test_members_are_kept_on_request_and_batches_concatenate():
    outputs = logits(1)
    whole = Categorical(4).predictive(iter(outputs), keep_members=True)
    halves = [Categorical(4).predictive(iter(half), keep_members=True) for half in outputs.split([3, 4], dim=1)]
    joined = CategoricalPredictive.concatenate(halves)
    assert whole.member_probs.shape == (5, 7, 4)
    for name in ("log_probs", "expected_entropy", "variance_of_probs", "member_probs"):
        torch.testing.assert_close(getattr(joined, name), getattr(whole, name))
    assert Categorical(4).predictive(iter(outputs)).member_probs is None


def test_columns_have_the_names_of_the_classes():
    predictive = Categorical(2).predictive([torch.tensor([[2.0, 0.0], [0.0, 3.0]])])
    columns = predictive.columns(["cat", "dog"])
    assert list(columns) == [
        "class",
        "confidence",
        "entropy",
        "mutual_information",
        "probability_cat",
        "probability_dog",
    ]
    assert columns["class"].tolist() == ["cat", "dog"]
    assert columns["probability_cat"][0] == pytest.approx(1 / (1 + math.exp(-2)))


def test_loss_is_mean_cross_entropy_in_full_precision():
    outputs, targets = logits(0)[0], torch.tensor([0, 1, 2, 3, 0, 1, 2])
    torch.testing.assert_close(Categorical(4).loss(outputs, targets), F.cross_entropy(outputs, targets))
    assert Categorical(4).loss(outputs.bfloat16(), targets).dtype == torch.float32
    assert Categorical(4).loss(outputs.double(), targets).dtype == torch.float64


@pytest.mark.parametrize("shape", [(7, 5), (7,), (7, 4, 1)])
def test_outputs_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"there are 4 classes: expected \(batch, 4\)"):
        Categorical(4).loss(torch.zeros(shape), torch.zeros(7, dtype=torch.int64))
    with pytest.raises(ValueError, match="there are 4 classes"):
        Categorical(4).predictive([torch.zeros(shape)])


def test_nothing_to_average_is_an_error():
    with pytest.raises(ValueError, match="at least 1 draw"):
        Categorical(4).predictive([])
    with pytest.raises(ValueError, match="at least 2 classes"):
        Categorical(1)


def test_entropy_of_certainty_is_zero():
    assert categorical_entropy(torch.tensor([0.0, -math.inf])).item() == 0


@pytest.mark.parametrize("masked", [[True], [True, True], [False, True], [True, False]])
def test_a_class_with_the_logit_minus_infinity_has_probability_zero(masked):
    """As a network that masks classes returns it."""
    outputs = torch.tensor([[0.5, 1.0, -2.0], [0.0, 1.0, 3.0]]).repeat(len(masked), 1, 1)
    outputs[torch.tensor(masked), 0, 1] = -math.inf
    predictive = Categorical(3).predictive(outputs)
    torch.testing.assert_close(predictive.log_probs, outputs.double().softmax(-1).mean(0).log())
    entropies = categorical_entropy(outputs.double().log_softmax(-1))
    torch.testing.assert_close(predictive.expected_entropy, entropies.mean(0))


def test_outputs_may_have_a_gradient():
    outputs = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predictive = Categorical(3).predictive(outputs)
    torch.testing.assert_close(predictive.log_probs, outputs.double().softmax(-1).mean(0).log())


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_labels_that_are_texts_keep_their_shape(shape):
    labels = np.array(["dog", "cat", "dog"]).reshape(shape)
    assert torch.equal(encode_labels(labels, ["cat", "dog"]), torch.tensor([1, 0, 1]).reshape(shape))


@pytest.mark.parametrize("scale", [1.0, 1000.0], ids=["usual", "extreme"])
@pytest.mark.parametrize("likelihood", [Categorical(4), Gaussian(num_targets=2)], ids=str)
def test_stacked_outputs_have_the_same_prediction(likelihood, scale):
    outputs = scale * torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0))
    outputs = outputs if isinstance(likelihood, Categorical) else outputs.clamp(-50, 50)
    stacked, in_turn = likelihood.predictive(outputs), likelihood.predictive(iter(outputs))
    for name, value in vars(in_turn).items():
        torch.testing.assert_close(getattr(stacked, name), value, rtol=1e-12, atol=1e-14)
