"""Bernoulli likelihood of several labels: the loss, averages of probabilities, and targets that are not known."""

import math

import pytest
import torch
from torch.nn import functional as F

from flatbayes.core.devices import treat_cpu_as_accelerator
from flatbayes.likelihoods import Bernoulli, BernoulliPredictive

NAN = math.nan
FIELDS = ("log_probs", "expected_entropies", "variance_of_probs", "member_probs")


def make_logits(seed, draws=5, examples=7, labels=3, dtype=torch.float32):
    return 3 * torch.randn(draws, examples, labels, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def entropy(probs):
    return -(torch.xlogy(probs, probs) + torch.xlogy(1 - probs, 1 - probs))


def test_loss_is_the_sum_over_the_labels_of_an_example():
    outputs, targets = make_logits(0)[0], (make_logits(1)[0] > 0).long()
    expected = F.binary_cross_entropy_with_logits(outputs, targets.float(), reduction="none").sum(1).mean()
    torch.testing.assert_close(Bernoulli(3).loss(outputs, targets), expected)
    torch.testing.assert_close(
        Bernoulli(3).loss(outputs, targets), 3 * torch.nn.BCEWithLogitsLoss()(outputs, targets.float())
    )


@pytest.mark.parametrize("missing", [NAN, -100.0], ids=["nan", "ignore_index"])
def test_labels_that_are_not_known_do_not_count(missing):
    outputs = make_logits(0)[0].requires_grad_()
    targets = (make_logits(1)[0] > 0).float()
    targets[0, 1] = targets[2, 0] = missing
    targets[4] = missing  # without any label
    loss = Bernoulli(3).loss(outputs, targets)
    known = [(row, k) for row in range(7) for k in range(3) if targets[row, k] in (0, 1)]
    losses = [F.binary_cross_entropy_with_logits(outputs[row, k], targets[row, k]) for row, k in known]
    torch.testing.assert_close(loss, torch.stack(losses).sum() / 6)
    (gradient,) = torch.autograd.grad(loss, outputs)
    assert gradient[4].tolist() == [0, 0, 0]
    assert gradient[0, 1] == gradient[2, 0] == 0
    assert Bernoulli(3).find_labelled(targets).tolist() == [True] * 4 + [False] + [True] * 2


def test_loss_without_any_known_label_is_zero():
    outputs = torch.zeros(2, 3, requires_grad=True)
    loss = Bernoulli(3).loss(outputs, torch.full((2, 3), -100))
    assert loss.item() == 0
    assert torch.autograd.grad(loss, outputs)[0].abs().max() == 0


def test_soft_labels_have_the_cross_entropy_of_their_probabilities():
    outputs, targets = make_logits(0)[0].double(), make_logits(1)[0].double().sigmoid()
    probs = outputs.sigmoid()
    expected = -(targets * probs.log() + (1 - targets) * (1 - probs).log()).sum(1).mean()
    torch.testing.assert_close(Bernoulli(3).loss(outputs, Bernoulli(3).prepare_targets(targets)), expected)


def test_precision_of_the_loss():
    outputs, targets = make_logits(0)[0], torch.ones(7, 3, dtype=torch.int64)
    assert Bernoulli(3).loss(outputs.double(), targets).dtype == torch.float64
    assert Bernoulli(3).loss(outputs.bfloat16(), targets).dtype == torch.float32
    torch.testing.assert_close(
        Bernoulli(3).loss(outputs.half(), targets), Bernoulli(3).loss(outputs, targets), rtol=1e-3, atol=0
    )


@pytest.mark.parametrize("size", [1000.0, 1e30])
def test_extreme_logits_have_a_finite_loss_and_gradient(size):
    outputs = torch.tensor([[size, -size], [size, -size]], requires_grad=True)
    loss = Bernoulli(2).loss(outputs, torch.tensor([[1, 0], [0, 1]]))
    assert loss.item() == pytest.approx(size)
    gradient = torch.autograd.grad(loss, outputs)[0]
    torch.testing.assert_close(gradient, torch.tensor([[0.0, 0.0], [0.5, -0.5]]))


def test_log_probabilities_are_exact_where_probabilities_underflow():
    extreme = torch.tensor([[1000.0, -1000.0]])
    predictive = Bernoulli(2).predictive([extreme, extreme + 1])
    expected = torch.tensor([-1000.0, -1001.0]).double().logsumexp(0) - math.log(2)
    assert predictive.log_probs[0, 0, 0].item() == pytest.approx(expected.item(), rel=1e-12)
    assert predictive.log_probs[0, 0, 1].item() == 0
    assert predictive.log_probs[0, 1, 0].item() == 0
    assert predictive.log_probs[0, 1, 1].item() == pytest.approx(-1000 + math.log((1 + math.e) / 2), rel=1e-12)
    assert predictive.entropy.item() == 0


def test_a_label_with_an_infinite_logit_is_certain():
    outputs = torch.tensor([[[math.inf, -math.inf, 0.0]], [[math.inf, 2.0, 0.0]]])
    predictive = Bernoulli(3).predictive(outputs)
    torch.testing.assert_close(predictive.mean, outputs.double().sigmoid().mean(0))
    torch.testing.assert_close(predictive.expected_entropies, entropy(outputs.double().sigmoid()).mean(0))


def test_prediction_is_that_of_the_mean_probabilities():
    outputs = make_logits(0)
    predictive, probs = Bernoulli(3).predictive(iter(outputs), keep_members=True), outputs.double().sigmoid()
    mean = probs.mean(0)
    torch.testing.assert_close(predictive.mean, mean)
    torch.testing.assert_close(predictive.log_probs, torch.stack([1 - mean, mean], -1).log())
    torch.testing.assert_close(predictive.variance, probs.var(0, correction=0))
    torch.testing.assert_close(predictive.expected_entropies, entropy(probs).mean(0))
    torch.testing.assert_close(predictive.label_entropies, entropy(mean))
    torch.testing.assert_close(predictive.entropy, entropy(mean).sum(1))
    torch.testing.assert_close(predictive.mutual_information, (entropy(mean) - entropy(probs).mean(0)).sum(1))
    torch.testing.assert_close(predictive.member_probs, probs.float())
    assert torch.equal(predictive.labels, mean > 0.5)
    assert Bernoulli(3).predictive(iter(outputs)).member_probs is None


def test_many_examples_have_the_predictions_of_few():
    outputs = make_logits(0, draws=3, examples=30_000, labels=5)  # several blocks
    outputs[1, 25_000:] *= 1000  # some of which are extreme, from the second network on
    whole = Bernoulli(5).predictive(outputs)
    rows = torch.arange(0, 30_000, 1237)
    for name in FIELDS[:3]:
        torch.testing.assert_close(
            getattr(whole.select(rows), name), getattr(Bernoulli(5).predictive(outputs[:, rows]), name)
        )


@pytest.mark.parametrize("has_float64", [True, False])
def test_an_accelerator_has_the_same_predictions(has_float64):
    outputs = make_logits(0)
    outputs[1:, 3] *= 1000
    expected = Bernoulli(3).predictive(outputs, keep_members=True)
    with treat_cpu_as_accelerator(has_float64=has_float64):
        predictive = Bernoulli(3).predictive(outputs, keep_members=True)
    for name in FIELDS:
        value = getattr(predictive, name).to(getattr(expected, name))
        torch.testing.assert_close(value, getattr(expected, name), rtol=1e-4, atol=1e-6)
    assert predictive.mutual_information.isfinite().all()


def test_order_of_the_networks_does_not_matter():
    outputs = make_logits(0)
    first, second = Bernoulli(3).predictive(outputs), Bernoulli(3).predictive(outputs.flip(0))
    for name in FIELDS[:3]:
        torch.testing.assert_close(getattr(first, name), getattr(second, name), rtol=1e-12, atol=1e-14)


def test_one_network_has_no_mutual_information():
    predictive = Bernoulli(3).predictive(make_logits(0)[:1])
    assert predictive.mutual_information.max() == 0
    assert predictive.variance.max() == 0


def test_outputs_may_have_a_gradient():
    outputs = make_logits(0).requires_grad_()
    predictive = Bernoulli(3).predictive(outputs)
    (gradient,) = torch.autograd.grad(predictive.log_probs[..., 1].sum(), outputs, retain_graph=True)
    (expected,) = torch.autograd.grad(outputs.double().sigmoid().mean(0).log().sum(), outputs)
    torch.testing.assert_close(gradient, expected)


def test_parts_are_selected_joined_and_moved():
    outputs = make_logits(1)
    whole = Bernoulli(3).predictive(outputs, keep_members=True)
    halves = [Bernoulli(3).predictive(half, keep_members=True) for half in outputs.split([3, 4], dim=1)]
    joined = BernoulliPredictive.concatenate(halves)
    chosen = whole.select(torch.tensor([5, 0]))
    for name in FIELDS:
        torch.testing.assert_close(getattr(joined, name), getattr(whole, name))
        dim = 1 if name == "member_probs" else 0
        torch.testing.assert_close(
            getattr(chosen, name), getattr(whole, name).index_select(dim, torch.tensor([5, 0]))
        )
    assert whole.to("meta").mean.device.type == "meta"
    assert whole.to("meta").member_probs.device.type == "meta"
    without = BernoulliPredictive.concatenate([Bernoulli(3).predictive(outputs)] * 2)
    assert without.member_probs is None
    assert without.select(torch.arange(14) > 6).mean.shape == (7, 3)


def test_columns_have_the_names_of_the_labels():
    predictive = Bernoulli(2).predictive([torch.tensor([[2.0, 0.0], [0.0, 3.0]])])
    columns = predictive.columns(["edema", "mass"])
    assert list(columns) == ["entropy", "mutual_information", "probability_edema", "probability_mass"]
    assert columns["probability_edema"][0] == pytest.approx(1 / (1 + math.exp(-2)))
    assert list(predictive.to_dict())[2:] == ["probability_0", "probability_1"]


def test_text_of_predictions():
    predictive = Bernoulli(2).predictive([torch.zeros(1, 2)])
    assert repr(predictive) == "<BernoulliPredictive: 1 example, 2 labels>"
    assert predictive.summary().splitlines()[1].split() == [
        "entropy",
        "mean",
        "1.386,",
        "from",
        "1.386",
        "to",
        "1.386",
    ]
    assert "mutual_information" in predictive.summary()
    assert "probability" not in predictive.summary()
    assert "<td" in predictive._repr_html_()
    assert "1.386" in predictive._repr_html_()


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int8, torch.int32, torch.int64, torch.float16, torch.float64], ids=str
)
def test_labels_of_every_dtype(dtype):
    likelihood, rows = Bernoulli(2), torch.tensor([[0, 1], [1, 1]])
    targets = likelihood.prepare_targets(rows.to(dtype))
    assert torch.equal(targets.long(), rows)
    assert likelihood.find_labelled(targets).all()
    outputs = torch.tensor([[0.5, 1.0], [-1.0, 2.0]])
    torch.testing.assert_close(likelihood.loss(outputs, targets), likelihood.loss(outputs, rows))


def test_one_label_may_have_no_axis():
    likelihood, labels = Bernoulli(1), torch.tensor([0, 1, 1])
    assert likelihood.prepare_targets(labels).shape == (3, 1)
    outputs = torch.tensor([0.5, -1.0, 2.0])
    expected = F.binary_cross_entropy_with_logits(outputs, labels.float())
    torch.testing.assert_close(likelihood.loss(outputs, likelihood.prepare_targets(labels)), expected)
    torch.testing.assert_close(likelihood.loss(outputs[:, None], labels[:, None]), expected)
    assert likelihood.predictive([outputs]).mean.shape == (3, 1)


def test_other_values_of_unknown_labels():
    targets = torch.tensor([[0, 255], [1, 1]], dtype=torch.uint8)
    assert Bernoulli(2, ignore_index=255).find_labelled(targets).tolist() == [True, True]
    _, is_known = Bernoulli(2, ignore_index=255).split_targets(
        Bernoulli(2, ignore_index=255).prepare_targets(targets)
    )
    assert is_known.tolist() == [[True, False], [True, True]]
    only_nan = Bernoulli(2, ignore_index=None)
    assert only_nan.split_targets(torch.tensor([[NAN, 1.0]]))[1].tolist() == [[False, True]]
    with pytest.raises(ValueError, match="where they are not known; got -100"):
        only_nan.prepare_targets(torch.tensor([[-100, 1]]))


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.zeros(4), r"must have 3 labels, shape \(examples, 3\), got torch.float32 of shape \(4,\)"),
        (torch.zeros(4, 2), "must have 3 labels"),
        (torch.zeros(4, 3, 1), "must have 3 labels"),
        (torch.zeros(4, 3, dtype=torch.complex64), "got torch.complex64"),
        (torch.tensor([[0, 1, 1], [0, 2, 1]]), r"or -100 where they are not known; got 2 for label 1 of example 1"),
        (torch.tensor([[0, 1, -1]]), "got -1 for label 2 of example 0"),
        (torch.tensor([[0, 1, math.inf]]), "got inf for label 2"),
        (torch.tensor([[0, 1, 156]], dtype=torch.uint8), "got 156 for label 2"),  # -100 as uint8
    ],
    ids=["vector", "few", "axes", "complex", "two", "minus", "infinite", "uint8"],
)
def test_other_targets_are_refused(targets, message):
    with pytest.raises(ValueError, match=message):
        Bernoulli(3).prepare_targets(targets)


@pytest.mark.parametrize("shape", [(7, 5), (7,), (7, 3, 1)])
def test_outputs_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"there are 3 labels: expected \(batch, 3\)"):
        Bernoulli(3).loss(torch.zeros(shape), torch.zeros(7, 3))
    with pytest.raises(ValueError, match="there are 3 labels"):
        Bernoulli(3).predictive([torch.zeros(shape)])


def test_invalid_settings_are_refused():
    with pytest.raises(ValueError, match="at least 1 label, got num_labels=0"):
        Bernoulli(0)
    with pytest.raises(ValueError, match="ignore_index must be neither 0 nor 1"):
        Bernoulli(3, ignore_index=1)
    with pytest.raises(ValueError, match="at least 1 draw"):
        Bernoulli(3).predictive([])
