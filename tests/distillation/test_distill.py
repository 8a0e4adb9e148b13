"""A distilled network against the posterior that was its teacher."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.distributions import Laplace, Normal, TransformedDistribution, transforms

from flatbayes.data import Digits
from flatbayes.distillation import distill
from flatbayes.flatness import Plain
from flatbayes.likelihoods import Bernoulli, Categorical, DistributionLikelihood, Gaussian
from flatbayes.models import MLP
from flatbayes.posteriors import MAP, Ensemble, MCDropout
from flatbayes.prediction import FittedPosterior, export_onnx, onnx_difference
from flatbayes.training import OptimizationConfig, TrainingConfig, fit

SHORT = TrainingConfig(epochs=15, optimizer=partial(torch.optim.Adam, lr=3e-3))


@pytest.fixture(scope="module")
def digits():
    data = Digits(train_size=200).load(0)
    return data, fit(
        partial(MLP, hidden=(16,)), data, Ensemble(size=3), Plain(), TrainingConfig(epochs=10), show_progress=False
    )


def rank_correlation(first, second):
    return float(torch.corrcoef(torch.stack([v.argsort().argsort().double() for v in (first, second)]))[0, 1])


def divergence(p, q):
    return float((p * (p / q).log()).sum(-1).mean())


def test_the_student_predicts_mean_and_uncertainty_of_the_posterior(digits, tmp_path):
    data, fitted = digits
    pool = torch.cat([data.train.inputs, Digits().load(0).train.inputs])
    student = distill(fitted, partial(MLP, hidden=(32,)), pool, SHORT, Plain())
    x = data.test.inputs
    student_output, posterior = student(x), fitted.predict(x)
    with torch.no_grad():
        single = fitted.states[0].model(fitted.preprocess(x)).softmax(-1)
    assert divergence(posterior.mean, student_output["mean"]) < divergence(posterior.mean, single)
    assert rank_correlation(student_output["mutual_information"], posterior.mutual_information) > 0.7
    assert 0.3 < float(student_output["mutual_information"].mean() / posterior.mutual_information.mean()) < 2
    assert (student_output["mutual_information"] <= student_output["entropy"]).all()
    assert len(student.networks) == 1
    assert onnx_difference(student, export_onnx(student, tmp_path / "s.onnx"), x) < 1e-5


def test_the_seed_determines_the_student(digits):
    data, fitted = digits
    state = torch.get_rng_state()
    learn = partial(
        distill, fitted, partial(MLP, hidden=(8,)), data.train.inputs, TrainingConfig(epochs=2), num_draws=3
    )
    first, same, other = (learn(seed=seed)(data.test.inputs)["mean"] for seed in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.allclose(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_regression():
    torch.manual_seed(0)
    posterior = Ensemble(size=3)
    states = [posterior.init(MLP((2,), 2, (8,)), None, 10) for _ in range(3)]
    fitted = FittedPosterior(posterior, states, Gaussian(1, (50.0,), (4.0,)))
    inputs = 3 * torch.randn(600, 2)
    config = TrainingConfig(
        epochs=30, batch_size=32, optimizer=SHORT.optimizer, optimization=OptimizationConfig(clip_norm=1.0)
    )
    student = distill(fitted, MLP((2,), 3, (32,)), inputs, config, Plain())
    x = 3 * torch.randn(200, 2)
    student_output, expected = student(x), fitted.predict(x)
    assert list(student_output) == ["mean", "std", "epistemic_std"]
    assert float((student_output["mean"] - expected.mean).abs().mean()) < 0.1 * float(expected.mean.std())
    assert abs(float((student_output["std"] / expected.std).log().mean())) < 0.05
    assert rank_correlation(student_output["epistemic_std"], expected.epistemic) > 0.8
    assert (student_output["epistemic_std"] < student_output["std"]).all()


POISSON = DistributionLikelihood("Poisson", scale=(20.0,))
SIGMOID = DistributionLikelihood(
    lambda o: TransformedDistribution(Normal(o[:, 0], o[:, 1].exp()), [transforms.SigmoidTransform()]), num_outputs=2
)
TONS = DistributionLikelihood(lambda o: Laplace(5e4 + 900 * o[:, 0], 700 * o[:, 1].exp()), num_outputs=2)


@pytest.mark.parametrize(
    "likelihood",
    [
        POISSON,
        DistributionLikelihood("StudentT", location=(50.0,), scale=(4.0,)),
        DistributionLikelihood("Gamma", scale=(1e5,)),
        DistributionLikelihood("Beta"),
        SIGMOID,  # its moments are those of samples
        TONS,
    ],
    ids=["counts", "numbers", "positive numbers", "fractions", "function with samples", "function"],
)
def test_other_distributions(likelihood, tmp_path):
    torch.manual_seed(0)
    posterior = Ensemble(size=3)
    states = [posterior.init(MLP((2,), likelihood.num_outputs, (8,)), None, 10) for _ in range(3)]
    fitted = FittedPosterior(posterior, states, likelihood, info={"input_shape": [2]})
    inputs, x = 3 * torch.randn(600, 2), 3 * torch.randn(200, 2)
    config = TrainingConfig(
        epochs=40, batch_size=32, optimizer=SHORT.optimizer, optimization=OptimizationConfig(clip_norm=1.0)
    )
    student = distill(fitted, MLP((2,), 3, (32,)), inputs, config, Plain())
    tensors, expected = student(x), fitted.predict(x)
    assert list(tensors) == ["mean", "std", "epistemic_std"]
    assert float((tensors["mean"] - expected.mean).abs().median()) < 0.15 * float(expected.mean.std())
    assert abs(float((tensors["std"] / expected.std).log().mean())) < 0.1
    assert rank_correlation(tensors["std"], expected.std) > 0.8
    assert rank_correlation(tensors["epistemic_std"], expected.epistemic) > 0.8
    assert (tensors["epistemic_std"] < tensors["std"]).all()
    assert onnx_difference(student, export_onnx(student, tmp_path / "s.onnx"), x) < 1e-5


def test_several_labels():
    torch.manual_seed(0)
    posterior = Ensemble(size=3)
    states = [posterior.init(MLP((2,), 3, (8,)), None, 10) for _ in range(3)]
    fitted = FittedPosterior(posterior, states, Bernoulli(3))
    inputs, x = 3 * torch.randn(600, 2), 3 * torch.randn(200, 2)
    config = TrainingConfig(epochs=100, batch_size=32, optimizer=SHORT.optimizer)
    student, expected = distill(fitted, MLP((2,), 6, (32,)), inputs, config, Plain()), fitted.predict(x)
    tensors = student(x)
    assert list(tensors) == ["mean", "entropy", "mutual_information"]
    assert float((tensors["mean"] - expected.mean).abs().mean()) < 0.05
    assert rank_correlation(tensors["mutual_information"], expected.mutual_information) > 0.8
    assert (tensors["mutual_information"] < tensors["entropy"]).all()


def test_draws_that_are_masks_can_be_distilled():
    data = Digits(train_size=60).load(0)
    fitted = fit(partial(MLP, hidden=(8,), dropout=0.3), data, MCDropout(), Plain(), TrainingConfig(epochs=2))
    student = distill(fitted, partial(MLP, hidden=(8,)), data.train.inputs, TrainingConfig(epochs=1), num_draws=3)
    assert student(data.test.inputs)["mean"].shape == (len(data.test), 10)


def test_input_shape_is_that_of_the_inputs_if_unknown():
    torch.manual_seed(0)
    fitted = FittedPosterior(MAP(), [MAP().init(nn.Linear(4, 3), None, 5)], Categorical(3))
    x = torch.randn(20, 4)
    student = distill(fitted, nn.Linear(4, 4), x, TrainingConfig(epochs=1))
    assert student.example.shape == (2, 4)
    with pytest.raises(ValueError, match=r"student gives outputs of shape \(4, 3\), expected \(4, 4\)"):
        distill(fitted, nn.Linear(4, 3), x, TrainingConfig(epochs=1))


def test_the_posterior_is_unchanged(digits):
    data, fitted = digits
    before = fitted.predict(data.test.inputs).log_probs
    distill(fitted, partial(MLP, hidden=(8,)), data.train.inputs[:30], TrainingConfig(epochs=1))
    assert torch.equal(fitted.predict(data.test.inputs).log_probs, before)
    assert isinstance(fitted.likelihood, Categorical | Gaussian)
