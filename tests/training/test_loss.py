"""Smoothed targets are for training, and for nothing else."""

from functools import partial

import pytest
import torch
from torch.nn import functional as F

from flatbayes.data import Diabetes, Digits
from flatbayes.flatness import Plain
from flatbayes.likelihoods import Categorical, Custom, Gaussian
from flatbayes.models import MLP
from flatbayes.posteriors import MAP, SGVB
from flatbayes.training import History, OptimizationConfig, TrainingConfig, dry_run, fit
from flatbayes.training.run_factory import make_training_loss


def test_smoothing_by_its_definition():
    likelihood = Categorical(4)
    outputs, targets = torch.randn(7, 4, dtype=torch.float64), torch.randint(4, (7,))
    loss = make_training_loss(likelihood, TrainingConfig(optimization=OptimizationConfig(label_smoothing=0.2)))(
        outputs, targets
    )
    spread = torch.stack([likelihood.loss(outputs, torch.full((7,), k)) for k in range(4)]).mean()
    torch.testing.assert_close(loss, 0.8 * likelihood.loss(outputs, targets) + 0.2 * spread)


def test_without_it_the_loss_is_the_likelihoods():
    outputs, targets = torch.randn(5, 3), torch.randint(3, (5,))
    likelihood = Categorical(3)
    assert make_training_loss(likelihood, TrainingConfig())(outputs, targets) == likelihood.loss(outputs, targets)
    with pytest.raises(ValueError, match="outputs of shape"):
        make_training_loss(likelihood, TrainingConfig(optimization=OptimizationConfig(label_smoothing=0.1)))(
            torch.randn(5, 2), targets
        )


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_the_mean_is_over_the_labelled_examples(label_smoothing):
    config = TrainingConfig(optimization=OptimizationConfig(label_smoothing=label_smoothing))
    outputs, targets = torch.randn(9, 3, requires_grad=True), torch.arange(9) % 3
    loss_fn = make_training_loss(Categorical(3), config)
    all_labelled = make_training_loss(Categorical(3), config, all_labelled=True)
    expected = F.cross_entropy(outputs, targets, label_smoothing=label_smoothing)
    assert loss_fn(outputs, targets) == all_labelled(outputs, targets) == expected
    mixed, unlabelled = torch.where(targets == 0, -100, targets), torch.full((9,), -100)
    torch.testing.assert_close(loss_fn(outputs, mixed), loss_fn(outputs[targets != 0], mixed[targets != 0]))
    assert loss_fn(outputs, unlabelled) == 0
    assert not torch.autograd.grad(loss_fn(outputs, unlabelled), outputs)[0].any()
    assert all_labelled(outputs, unlabelled).isnan(), "the labels were searched for unlabelled examples"


def test_a_likelihood_without_unlabelled_examples():
    likelihood, targets = Categorical(3, ignore_index=None), torch.tensor([0, 2, -100])
    assert likelihood.find_labelled(targets) is None
    assert torch.equal(likelihood.prepare_targets(targets[:2]), targets[:2])
    with pytest.raises(ValueError, match="Leave unlabelled examples out"):
        likelihood.prepare_targets(targets)


def test_training_sees_it_and_the_validation_curve_does_not():
    data = Digits(train_size=60).load(0)
    curves = {}
    for share in (0.0, 0.9):
        seen = History()
        config = TrainingConfig(epochs=1, batch_size=60, optimization=OptimizationConfig(label_smoothing=share))
        frozen = lambda params: torch.optim.SGD(params, lr=0.0)  # noqa: E731 - weights stay where they are
        fit(
            MLP,
            data,
            MAP(),
            Plain(),
            TrainingConfig(**{**vars(config), "optimizer": frozen}),
            show_progress=False,
            callback=seen,
        )
        curves[share] = seen.records[0]
    assert curves[0.0]["loss"] != curves[0.9]["loss"]
    assert curves[0.0]["val_nll"] == curves[0.9]["val_nll"]


def test_numbers_have_no_labels_to_smooth():
    with pytest.raises(ValueError, match="label_smoothing is for classes, and the likelihood is Gaussian"):
        make_training_loss(Gaussian(), TrainingConfig(optimization=OptimizationConfig(label_smoothing=0.1)))
    with pytest.raises(ValueError, match="label_smoothing is for classes"):
        dry_run(
            MLP,
            Diabetes().load(0),
            MAP(),
            Plain(),
            TrainingConfig(optimization=OptimizationConfig(label_smoothing=0.1)),
        )
    with pytest.raises(ValueError, match="label_smoothing is a fraction"):
        TrainingConfig(optimization=OptimizationConfig(label_smoothing=1.0))


@pytest.mark.parametrize("posterior", [MAP(), SGVB()], ids=lambda posterior: type(posterior).__name__)
def test_a_sum_over_the_batch_is_refused(posterior):
    data = Digits(train_size=20).load(seed=0)
    likelihood = Custom(partial(F.cross_entropy, reduction="sum"), Categorical(10))
    with pytest.raises(ValueError, match=r"The loss is a sum over the batch: .* use reduction='mean'"):
        fit(MLP, data, posterior, Plain(), TrainingConfig(epochs=1), likelihood=likelihood)
    for loss_fn in (F.cross_entropy, torch.nn.CrossEntropyLoss(torch.arange(1.0, 11)), lambda x, y: 0 * x.sum()):
        dry_run(MLP, data, posterior, Plain(), TrainingConfig(epochs=1), likelihood=Custom(loss_fn, Categorical(10)))


def test_a_loss_for_one_number_of_examples_is_taken():
    sizes = []

    def loss_fn(outputs, targets):
        sizes.append(len(targets))
        assert sizes[-1] == sizes[0]
        return F.cross_entropy(outputs, targets)

    data = Digits(train_size=20).load(seed=0)
    dry_run(MLP, data, MAP(), Plain(), TrainingConfig(epochs=1), likelihood=Custom(loss_fn, Categorical(10)))
