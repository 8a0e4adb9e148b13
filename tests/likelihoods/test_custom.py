"""A custom loss trains every posterior, and is passed again when an artefact is loaded."""

from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from flatbayes.data import Diabetes
from flatbayes.flatness import SAM
from flatbayes.likelihoods import Bernoulli, Categorical, Custom, DenseCategorical, Gaussian, Likelihood
from flatbayes.models import MLP
from flatbayes.posteriors import MAP, SWAG
from flatbayes.prediction import FittedPosterior
from flatbayes.training import CollectionConfig, OptimizationConfig, TrainingConfig, fit

SMOOTHED = Custom(partial(F.cross_entropy, label_smoothing=0.1), output_likelihood=Categorical(3))


def weighted(outputs, targets):
    return F.cross_entropy(outputs, targets, weight=torch.tensor([1.0, 2.0, 3.0]))


def fit_with(likelihood):
    torch.manual_seed(0)
    x, y = torch.randn(24, 4), torch.arange(24) % 3
    loader = DataLoader(TensorDataset(x, y), batch_size=8)
    config = TrainingConfig(epochs=3, collection=CollectionConfig(start_fraction=0.0))
    return x, fit(lambda: torch.nn.Linear(4, 3), loader, SWAG(rank=2), SAM(), config, likelihood=likelihood)


def test_the_loss_is_the_users_and_the_predictions_are_those_of_the_other_likelihood():
    outputs, targets = torch.randn(5, 3), torch.arange(5) % 3
    assert SMOOTHED.loss(outputs, targets) == F.cross_entropy(outputs, targets, label_smoothing=0.1)
    expected = Categorical(3).predictive([outputs]).log_probs
    assert torch.equal(SMOOTHED.predictive([outputs]).log_probs, expected)
    assert SMOOTHED.num_outputs == 3


WEIGHTS = Custom(partial(F.cross_entropy, weight=torch.tensor([1.0, 2.0, 3.0])), Categorical(3))


@pytest.mark.parametrize("likelihood", [SMOOTHED, Custom(weighted, Categorical(3)), WEIGHTS])
def test_an_artefact_is_loaded_with_the_likelihood_passed_again(likelihood, tmp_path):
    x, fitted = fit_with(likelihood)
    _, plain = fit_with(Categorical(3))
    assert not torch.equal(fitted.predict(x, 3).mean, plain.predict(x, 3).mean)
    fitted.save(tmp_path)
    with pytest.raises(ValueError, match="pass `likelihood`"):
        FittedPosterior.load(tmp_path, lambda: torch.nn.Linear(4, 3))
    again = FittedPosterior.load(tmp_path, lambda: torch.nn.Linear(4, 3), likelihood=likelihood)
    assert torch.equal(again.predict(x, 3).log_probs, fitted.predict(x, 3).log_probs)


def test_a_loss_per_example_is_refused():
    likelihood = Custom(partial(F.cross_entropy, reduction="none"), Categorical(3))
    with pytest.raises(ValueError, match="must be one number"):
        likelihood.loss(torch.randn(5, 3), torch.arange(5) % 3)


@dataclass(frozen=True)
class OneNumber(Likelihood):
    """The squared error of one output."""

    num_outputs = 1

    def loss(self, outputs, targets):
        assert outputs.shape == (len(targets), 1)
        return F.mse_loss(outputs.squeeze(1), targets)

    def predictive(self, outputs, *, keep_members=False):
        outputs = (torch.cat([output, torch.zeros_like(output)], 1) for output in outputs)
        return Gaussian(1).predictive(outputs, keep_members=keep_members)


def test_the_network_has_the_outputs_of_the_likelihood_that_is_given():
    data = Diabetes().load(0)
    fitted = fit(
        MLP,
        data,
        MAP(),
        config=TrainingConfig(epochs=1, optimization=OptimizationConfig(clip_norm=1.0)),
        likelihood=OneNumber(),
        show_progress=False,
    )
    assert fitted.info["model"]["init_args"]["num_classes"] == 1


@pytest.mark.parametrize(
    ("likelihood", "outputs", "targets", "message"),
    [
        (Categorical(3), (4, 2), torch.zeros(4).long(), r"shape \(4, 2\), but there are 3 classes"),
        (Categorical(2, single_logit=True), (4, 2), torch.zeros(4).long(), r"\(4, 2\), but there is one logit"),
        (Bernoulli(3), (4, 2), torch.zeros(4, 2), r"\(4, 2\), but there are 3 labels"),
        (Gaussian(), (4, 1), torch.zeros(4), r"\(4, 1\), but there is a mean and a raw scale"),
        (DenseCategorical(3), (4, 2, 5), torch.zeros(4, 5).long(), r"\(4, 2, 5\), and \(batch, 3, \*positions\)"),
    ],
)
def test_outputs_that_give_no_predictions_are_refused_in_the_loss(likelihood, outputs, targets, message):
    custom = Custom(lambda outputs, targets: outputs.sum(), likelihood)
    with pytest.raises(ValueError, match=message):
        custom.loss(torch.zeros(outputs), targets)
    with pytest.raises(ValueError, match=message):
        likelihood.loss(torch.zeros(outputs), targets)
