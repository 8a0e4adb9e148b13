"""A class at each position: the loss of torch, the predictions of `Categorical` position by position, messages."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flatbayes.likelihoods import Categorical, Custom, DenseCategorical, DenseCategoricalPredictive
from flatbayes.likelihoods.custom import count_right

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(2, 3, 4, 5, generator=GENERATOR)
LABELS = torch.randint(3, (2, 4, 5), generator=GENERATOR)
LABELS[0, :2] = -100
LAST = LOGITS.movedim(1, -1).contiguous()


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("class_dim", [1, -1])
def test_the_loss_is_the_cross_entropy_of_torch(class_dim, label_smoothing):
    likelihood = DenseCategorical(3, class_dim)
    outputs = (LOGITS if class_dim == 1 else LAST).double().requires_grad_()
    loss = likelihood.make_smoothed_loss(label_smoothing)(outputs, LABELS)
    reference = LOGITS.double().requires_grad_()
    expected = F.cross_entropy(reference, LABELS, label_smoothing=label_smoothing)
    torch.testing.assert_close(loss, expected, rtol=1e-14, atol=0)
    (gradient,), (expected_gradient,) = torch.autograd.grad(loss, outputs), torch.autograd.grad(expected, reference)
    torch.testing.assert_close(
        gradient, expected_gradient if class_dim == 1 else expected_gradient.movedim(1, -1), rtol=1e-12, atol=1e-15
    )


def test_without_any_label_the_loss_is_zero():
    outputs = LOGITS.clone().requires_grad_()
    loss = DenseCategorical(3).loss(outputs, torch.full_like(LABELS, -100))
    loss.backward()
    assert loss == 0
    assert bool((outputs.grad == 0).all())


def test_ignored_positions_change_nothing():
    likelihood, other = DenseCategorical(3), LOGITS.clone()
    other[0, :, :2] = 1e3 * torch.randn(3, 2, 5, generator=GENERATOR)
    assert torch.equal(likelihood.loss(other, LABELS), likelihood.loss(LOGITS, LABELS))
    as_255 = torch.where(LABELS < 0, 255, LABELS).to(torch.uint8)
    marked = DenseCategorical(3, ignore_index=255)
    assert torch.equal(marked.loss(LOGITS, marked.prepare_targets(as_255)), likelihood.loss(LOGITS, LABELS))
    assert likelihood.count_targets(LABELS) == marked.count_targets(as_255) == 30


@pytest.mark.parametrize("single_logit", [False, True])
def test_one_position_is_an_example_of_categorical_bit_for_bit(single_logit):
    num_classes = 2 if single_logit else 3
    logits = torch.randn(4, 6, 1 if single_logit else 3, generator=GENERATOR)  # of 4 networks, for 6 examples
    labels = torch.tensor([0, 1, -100, num_classes - 1, 0, 1])
    flat, dense = (
        Categorical(num_classes, single_logit=single_logit),
        DenseCategorical(num_classes, single_logit=single_logit),
    )
    assert torch.equal(dense.loss(logits[0][..., None], labels[:, None]), flat.loss(logits[0], labels))
    expected = flat.predictive(list(logits), keep_members=True)
    predictive = dense.predictive(list(logits[..., None]), keep_members=True)
    for name in ("mean", "variance", "entropy", "mutual_information", "top_class", "confidence"):
        assert torch.equal(getattr(predictive, name)[:, 0], getattr(expected, name)), name
    assert torch.equal(predictive.member_probs[:, :, 0], expected.member_probs)
    assert count_right(dense, logits[0][..., None], labels[:, None]) == count_right(
        flat, logits[0][labels >= 0], labels[labels >= 0]
    )


@pytest.mark.parametrize("class_dim", [1, -1])
def test_shapes_of_predictions(class_dim):
    outputs = torch.stack([LOGITS, -LOGITS]) if class_dim == 1 else torch.stack([LAST, -LAST])
    predictive = DenseCategorical(3, class_dim).predictive(outputs, keep_members=True)  # of vectorized networks
    probs = torch.stack([LAST, -LAST]).double().softmax(-1)
    torch.testing.assert_close(predictive.mean, probs.mean(0))
    torch.testing.assert_close(predictive.variance, probs.var(0, correction=0))
    assert predictive.member_probs.shape == (2, 2, 4, 5, 3)
    assert predictive.entropy.shape == predictive.mutual_information.shape == (2, 4, 5)
    assert torch.equal(predictive.top_class, probs.mean(0).argmax(-1))
    assert repr(predictive) == "<DenseCategoricalPredictive: 2 examples of 4 x 5 positions, 3 classes>"
    second = predictive.select(torch.tensor([False, True]))
    assert torch.equal(second.mean, predictive.mean[1:])
    joined = DenseCategoricalPredictive.concatenate([predictive, second])
    assert torch.equal(joined.variance, torch.cat([predictive.variance, second.variance]))
    assert joined.member_probs.shape == (2, 3, 4, 5, 3)


def test_columns_are_means_over_the_positions_of_an_example():
    predictive = DenseCategorical(3).predictive([LOGITS, 2 * LOGITS])
    columns = predictive.columns(("sky", "road", "car"))
    assert list(columns) == ["confidence", "entropy", "mutual_information", "share_sky", "share_road", "share_car"]
    assert columns["entropy"] == pytest.approx(predictive.entropy.mean((1, 2)).numpy())
    assert columns["share_road"] == pytest.approx((predictive.top_class == 1).double().mean((1, 2)).numpy())
    assert columns["share_sky"] + columns["share_road"] + columns["share_car"] == pytest.approx(1)
    assert "share_2" in predictive.summary()


def test_positions_with_a_label_are_examples_of_a_classification():
    predictive = DenseCategorical(3).predictive([LOGITS, 2 * LOGITS], keep_members=True)
    flat, labels = predictive.select_labelled(LABELS)
    expected = Categorical(3).predictive([LAST[LABELS >= 0], 2 * LAST[LABELS >= 0]], keep_members=True)
    assert torch.equal(labels, LABELS[LABELS >= 0])
    assert torch.equal(flat.log_probs, expected.log_probs)
    assert torch.equal(flat.member_probs, expected.member_probs)
    assert torch.equal(flat.mutual_information, expected.mutual_information)
    assert predictive.flatten().log_probs.shape == (40, 3)
    with pytest.raises(ValueError, match=r"predictions of the shape \(2, 4, 5\), and targets of the shape \(2, 5\)"):
        predictive.select_labelled(LABELS[:, 0])


def test_examples_of_other_sizes_are_padded():
    likelihood = DenseCategorical(3, class_dim=-1)
    parts = [likelihood.predictive([LAST[:, :2, 0]]), likelihood.predictive([LAST[:, :, 0], -LAST[:, :, 0]])]
    joined = DenseCategoricalPredictive.concatenate(parts)
    assert joined.mean.shape == (4, 4, 3)
    assert torch.equal(joined.mean[:2, :2], parts[0].mean)
    assert torch.equal(joined.entropy[2:], parts[1].entropy)
    assert bool(joined.entropy[:2, 2:].isnan().all())
    assert bool((joined.top_class[:2, 2:] == -100).all())
    assert joined.flatten().log_probs.shape == (2 * 2 + 2 * 4, 3)
    for name, values in joined.columns().items():
        assert values[:2] == pytest.approx(parts[0].columns()[name]), name
    uncertain = joined.select_uncertain()
    assert torch.equal(uncertain.entropy[:2], parts[0].entropy.amax(1))


def test_a_custom_loss_takes_outputs_and_targets_as_they_are():
    weights = torch.tensor([1.0, 2.0, 3.0])
    likelihood = Custom(nn.CrossEntropyLoss(weights), DenseCategorical(3))
    assert torch.equal(likelihood.loss(LOGITS, LABELS), F.cross_entropy(LOGITS, LABELS, weights))
    assert likelihood.count_targets(LABELS) == 30
    assert likelihood.find_labelled(torch.stack([LABELS[1], torch.full_like(LABELS[0], -100)])).tolist() == [
        True,
        False,
    ]


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (LABELS[:, 0, 0], r"shape \(examples, \*positions\), got the shape \(2,\).*Categorical\(3\)"),
        (torch.full((2, 4), 3), "between 0 and 2 for 3 classes, got 3 to 3"),
        (torch.full((2, 4), 0.5), "must be whole numbers"),
    ],
    ids=["one_axis", "too_large", "fractions"],
)
@pytest.mark.cpu_path
def test_other_targets_are_refused(targets, message):
    with pytest.raises(ValueError, match=message):
        DenseCategorical(3).prepare_targets(targets)


@pytest.mark.parametrize(
    ("likelihood", "outputs", "message"),
    [
        (DenseCategorical(4), LOGITS, r"\(batch, 4, \*positions\) is expected.*Change the last layer"),
        (DenseCategorical(3), LAST, "Pass class_dim=-1"),
        (DenseCategorical(3, class_dim=-1), LOGITS, "Pass class_dim=1"),
        (DenseCategorical(2), LOGITS[:, :1], "pass single_logit=True"),
        (DenseCategorical(3), LOGITS[:, :, 0, 0], r"shape \(2, 3\), and \(batch, 3, \*positions\)"),
    ],
    ids=["classes", "last", "first", "single_logit", "no_positions"],
)
def test_other_outputs_are_refused(likelihood, outputs, message):
    for call in (lambda: likelihood.loss(outputs, LABELS), lambda: likelihood.predictive([outputs])):
        with pytest.raises(ValueError, match=message):
            call()


def test_targets_of_other_positions_are_refused():
    with pytest.raises(ValueError, match=r"positions \(4, 5\) of 2 examples, .*shape \(2, 1, 4, 5\).*squeeze\(1\)"):
        DenseCategorical(3).loss(LOGITS, LABELS[:, None])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 1}, "at least 2 classes"),
        ({"num_classes": 3, "class_dim": 2}, "class_dim must be 1.*or -1.*got 2"),
        ({"num_classes": 3, "ignore_index": 2}, "ignore_index must be no index"),
        ({"num_classes": 3, "single_logit": True}, "single_logit is for 2 classes"),
    ],
)
def test_invalid_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        DenseCategorical(**arguments)
