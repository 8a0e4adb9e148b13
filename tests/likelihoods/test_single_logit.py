"""`Categorical(2, single_logit=True)`: losses of torch for one logit, and predictions of two classes."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flatbayes.likelihoods import Categorical, Custom
from flatbayes.likelihoods.categorical import pad_logit
from flatbayes.likelihoods.custom import count_right
from flatbayes.training.vectorized import vectorize_loss

BINARY = Categorical(2, single_logit=True)


def make_logits(*shape, dtype=torch.float64):
    return 3 * torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(0))


def test_the_softmax_of_the_padded_logit_is_its_sigmoid():
    logit = make_logits(5, 3)
    assert pad_logit(logit).shape == (5, 3, 2)
    torch.testing.assert_close(pad_logit(logit).softmax(-1)[..., 1], logit.sigmoid())


@pytest.mark.parametrize("shape", [(7,), (7, 1)])
def test_the_loss_is_that_of_torch_for_one_logit(shape):
    outputs, labels = make_logits(*shape).requires_grad_(), torch.arange(7) % 2
    loss = BINARY.loss(outputs, labels)
    expected = F.binary_cross_entropy_with_logits(outputs, labels.double().reshape(shape))
    torch.testing.assert_close(loss, expected, rtol=1e-14, atol=1e-15)
    gradients = [torch.autograd.grad(value, outputs)[0] for value in (loss, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logits_have_finite_losses_and_gradients(dtype):
    outputs = torch.tensor([[1000.0], [-1000.0], [1000.0], [-1000.0], [0.0]], dtype=dtype, requires_grad=True)
    labels = torch.tensor([1, 0, 0, 1, 0])
    loss = BINARY.loss(outputs, labels)
    loss.backward()
    assert loss.item() == pytest.approx((2000 + math.log(2)) / 5)
    assert outputs.grad.flatten().tolist() == pytest.approx([0, 0, 0.2, -0.2, 0.1])
    predictive = BINARY.predictive([outputs.detach()])
    assert predictive.mean[:, 1].tolist() == [1, 0, 1, 0, 0.5]
    assert predictive.log_probs[0, 0] == -1000
    assert predictive.entropy.isfinite().all()


def test_half_precision_is_promoted():
    outputs, labels = make_logits(4, 1, dtype=torch.float32).bfloat16(), torch.tensor([0, 1, 1, 0])
    assert BINARY.loss(outputs, labels) == BINARY.loss(outputs.float(), labels)


def test_label_smoothing_and_soft_labels_are_targets_between_0_and_1():
    outputs, labels = make_logits(6, 1), torch.tensor([0, 1, 1, 0, 1, 0])
    smoothed = F.binary_cross_entropy_with_logits(outputs[:, 0], 0.8 * labels.double() + 0.1)
    torch.testing.assert_close(BINARY.make_smoothed_loss(0.2)(outputs, labels), smoothed)
    shares = torch.rand(6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    soft = BINARY.prepare_targets(torch.stack([1 - shares, shares], 1))
    torch.testing.assert_close(BINARY.loss(outputs, soft), F.binary_cross_entropy_with_logits(outputs[:, 0], shares))


def test_ignored_labels_do_not_count():
    outputs, labels = make_logits(5, 1), torch.tensor([0, -100, 1, -100, 1])
    kept = labels >= 0
    torch.testing.assert_close(BINARY.loss(outputs, labels), BINARY.loss(outputs[kept], labels[kept]))
    assert BINARY.loss(outputs[:1], labels[1:2]) == 0
    all_labelled = Categorical(2, ignore_index=None, single_logit=True)
    assert all_labelled.loss(outputs[kept], labels[kept]) == BINARY.loss(outputs[kept], labels[kept])


@pytest.mark.parametrize("shape", [(6,), (6, 1)])
@pytest.mark.parametrize("keep_members", [False, True])
@pytest.mark.parametrize("stacked", [False, True])
def test_predictions_are_those_of_two_logits(shape, keep_members, stacked):
    outputs = make_logits(4, *shape)
    predictive = BINARY.predictive(outputs if stacked else iter(outputs), keep_members=keep_members)
    padded = pad_logit(outputs.reshape(4, 6))
    expected = Categorical(2).predictive(padded if stacked else iter(padded), keep_members=keep_members)
    for name in ("log_probs", "expected_entropy", "variance_of_probs"):
        assert torch.equal(getattr(predictive, name), getattr(expected, name))
    if keep_members:
        assert torch.equal(predictive.member_probs, expected.member_probs)
    torch.testing.assert_close(predictive.mean[:, 1], outputs.reshape(4, 6).sigmoid().mean(0))


@pytest.mark.parametrize("shape", [(5, 3), (5, 3, 1)])
def test_vectorized_losses_of_several_networks(shape):
    outputs, labels = make_logits(*shape), (torch.arange(15) % 2).reshape(5, 3)
    losses = vectorize_loss(Categorical(2, ignore_index=None, single_logit=True).loss)(outputs, labels)
    expected = [BINARY.loss(outputs[:, k], labels[:, k]) for k in range(3)]
    torch.testing.assert_close(losses, torch.stack(expected))


@pytest.mark.parametrize(
    ("likelihood", "shape", "message"),
    [
        (BINARY, (4, 2), r"outputs of shape \(4, 2\), but there is one logit for two classes: expected \(batch, 1\)"),
        (BINARY, (4, 1, 1), r"expected \(batch, 1\)"),
        (BINARY, (), r"outputs of shape \(\), "),
        (Categorical(2), (4, 1), r"expected \(batch, 2\).*likelihood=Categorical\(2, single_logit=True\)"),
        (Categorical(2), (4,), r"expected \(batch, 2\).*likelihood=Categorical\(2, single_logit=True\)"),
        (Categorical(3), (4, 1), r"expected \(batch, 3\)[^=]*=True of fit, --new_head[^=]*$"),
    ],
)
def test_outputs_of_another_shape_are_refused(likelihood, shape, message):
    with pytest.raises(ValueError, match=message):
        likelihood.loss(torch.zeros(shape), torch.zeros(4, dtype=torch.long))


def test_a_single_logit_is_for_two_classes():
    assert BINARY.num_outputs == 1
    assert BINARY.num_classes == 2
    with pytest.raises(ValueError, match="single_logit is for 2 classes, got num_classes=3"):
        Categorical(3, single_logit=True)


@pytest.mark.parametrize(
    "likelihood", [BINARY, Custom(nn.BCEWithLogitsLoss(), Custom(nn.BCEWithLogitsLoss(), BINARY))]
)
def test_the_class_of_one_output_is_the_sign_of_the_logit(likelihood):
    assert count_right(likelihood, torch.tensor([[0.1], [-0.1], [0.1]]), torch.tensor([1, 0, 0])) == (2, 3)


@pytest.mark.parametrize("shape", [(7,), (7, 1)])
@pytest.mark.parametrize("labels", [torch.arange(7) % 2, (torch.arange(7) % 2).double()[:, None]])
def test_losses_of_torch_for_one_logit_are_losses_of_the_user(shape, labels):
    outputs, loss = make_logits(*shape), nn.BCEWithLogitsLoss(pos_weight=torch.tensor(5.0))
    likelihood = Custom(loss, BINARY)
    assert likelihood.num_outputs == 1
    assert likelihood.loss(outputs, labels) == loss(outputs.reshape(7), labels.reshape(7).double())
    assert likelihood.predictive([outputs]).mean.shape == (7, 2)
    with pytest.raises(ValueError, match=r"expected \(batch, 1\)"):
        likelihood.loss(outputs.reshape(7, 1).expand(7, 2), labels)
