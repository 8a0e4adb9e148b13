"""Losses of students against KL divergences in closed form."""

import pytest
import torch
from torch import distributions as td
from torch.distributions import Bernoulli, Normal, kl_divergence
from torch.distributions import Categorical as Classes

from flatbayes.distillation.students import (
    BernoulliStudent,
    CategoricalStudent,
    NumberStudent,
    bernoulli_kl,
    make_student,
)
from flatbayes.likelihoods import Bernoulli as SeveralLabels
from flatbayes.likelihoods import Categorical, Custom, DistributionLikelihood, Gaussian
from flatbayes.likelihoods.families import FAMILIES


@pytest.fixture
def categorical_predictive():
    torch.manual_seed(0)
    return Categorical(3).predictive([torch.randn(5, 3), torch.randn(5, 3), torch.randn(5, 3)])


@pytest.fixture
def gaussian_predictive():
    torch.manual_seed(0)
    likelihood = Gaussian(2, (10.0, -3.0), (4.0, 0.5))
    return likelihood, likelihood.predictive([torch.randn(6, 4), torch.randn(6, 4), torch.randn(6, 4)])


def logit(p):
    return p.log() - (1 - p).log()


def test_categorical_student(categorical_predictive):
    student = CategoricalStudent(3)
    targets = student.make_targets(categorical_predictive)
    perfect = torch.cat([targets[:, :3].log(), logit(targets[:, 3:])], 1)
    assert float(student.loss(perfect, targets)) == pytest.approx(0, abs=1e-6)
    summary = student([perfect])
    for name in student.output_names:
        torch.testing.assert_close(summary[name], getattr(categorical_predictive, name).float(), rtol=1e-4, atol=1e-6)
    other = torch.randn(5, 4)
    mean_kl = kl_divergence(Classes(targets[:, :3]), Classes(logits=other[:, :3]))
    fraction_kl = kl_divergence(Bernoulli(targets[:, 3]), Bernoulli(logits=other[:, 3]))
    expected = (mean_kl + categorical_predictive.entropy.float() * fraction_kl).mean()
    torch.testing.assert_close(student.loss(other, targets), expected, rtol=1e-4, atol=1e-5)


def test_bernoulli_student():
    torch.manual_seed(0)
    predictive = SeveralLabels(2).predictive([torch.randn(6, 2), torch.randn(6, 2), torch.randn(6, 2)])
    student = BernoulliStudent(2)
    targets = student.make_targets(predictive)
    perfect = logit(targets)
    assert float(student.loss(perfect, targets)) == pytest.approx(0, abs=1e-6)
    for name, values in student([perfect]).items():
        torch.testing.assert_close(values, getattr(predictive, name).float(), rtol=1e-4, atol=1e-6)
    other = torch.randn(6, 4)
    mean_kl = kl_divergence(Bernoulli(targets[:, :2]), Bernoulli(logits=other[:, :2]))
    fraction_kl = kl_divergence(Bernoulli(targets[:, 2:]), Bernoulli(logits=other[:, 2:]))
    expected = (mean_kl + predictive.label_entropies.float() * fraction_kl).sum(1).mean()
    torch.testing.assert_close(student.loss(other, targets), expected, rtol=1e-4, atol=1e-5)
    certain = student.make_targets(SeveralLabels(2).predictive([torch.tensor([[1e4, 0.0]])]))
    assert certain.tolist() == [[1.0, 0.5, 0.0, 0.0]]
    assert student.loss(torch.zeros(1, 4), certain).isfinite()


def test_gaussian_student(gaussian_predictive):
    likelihood, predictive = gaussian_predictive
    student = NumberStudent(likelihood)
    targets = student.make_targets(predictive)
    mean, variance, fraction = targets.chunk(3, 1)
    raw = (variance.sqrt() - likelihood.floor).expm1().log()  # the inverse of the softplus
    perfect = torch.cat([mean, raw, logit(fraction)], 1)
    assert float(student.loss(perfect, targets)) == pytest.approx(0, abs=1e-5)
    moments = {"mean": predictive.mean, "std": predictive.std, "epistemic_std": predictive.epistemic.sqrt()}
    for name, values in student([perfect]).items():
        torch.testing.assert_close(values, moments[name].float(), rtol=1e-4, atol=1e-5)
    other = torch.randn(6, 6)
    means, stds = likelihood.split_outputs(other[:, :4])
    moments_kl = kl_divergence(Normal(mean, variance.sqrt()), Normal(means, stds))
    fraction_kl = kl_divergence(Bernoulli(fraction), Bernoulli(logits=other[:, 4:]))
    expected = (moments_kl + fraction_kl).sum(1).mean()
    torch.testing.assert_close(student.loss(other, targets), expected, rtol=1e-4, atol=1e-5)


def to_outputs(kind, mean, std):
    """Outputs of a student with these moments of standardised targets."""
    match kind:
        case "numbers":
            return mean, (std - 0.01).expm1().log()
        case "fractions":
            return logit(mean), logit(std / (mean * (1 - mean)).sqrt())
        case _:
            return mean.log(), std.log()


@pytest.mark.parametrize("num_targets", [1, 2])
@pytest.mark.parametrize("name", FAMILIES)
def test_students_of_families(name, num_targets):
    torch.manual_seed(0)
    likelihood = DistributionLikelihood(
        name, num_targets=num_targets, location=(100.0,) * num_targets, scale=(2.0, 5.0)[:num_targets]
    )
    predictive = likelihood.predictive(torch.randn(3, 6, likelihood.num_outputs))
    student = make_student(likelihood)
    targets = student.make_targets(predictive)
    mean, variance, fraction = targets.chunk(3, 1)
    perfect = torch.cat([*to_outputs(FAMILIES[name].targets, mean, variance.sqrt()), logit(fraction)], 1)
    assert perfect.shape == (6, student.num_outputs)
    assert float(student.loss(perfect, targets)) == pytest.approx(0, abs=1e-5)
    moments = {"mean": predictive.mean, "std": predictive.std, "epistemic_std": predictive.epistemic.sqrt()}
    for key, values in student([perfect]).items():
        torch.testing.assert_close(values, moments[key].float(), rtol=1e-4, atol=1e-5)
    extreme = torch.full((6, student.num_outputs), 25.0, requires_grad=True)  # the sigmoid rounds to 1
    student.loss(extreme, targets).backward()
    assert extreme.grad.isfinite().all()


@pytest.mark.parametrize(
    ("make", "kind", "location", "scale"),
    [
        (lambda o: td.Laplace(1000 + 10 * o, 0.001), "numbers", (1000.0,), None),
        (lambda o: td.Poisson(o.exp()), "positive numbers", (0.0,), (1.0,)),
        (lambda o: td.Exponential((-o).exp()), "positive numbers", (0.0,), (1.0,)),
        (lambda o: td.Beta(o.exp(), 1.0), "fractions", (0.0,), (1.0,)),
        (lambda o: td.Uniform(o, o + 1), "numbers", (0.5,), None),
    ],
)
def test_the_unit_of_a_function_is_that_of_its_predictions(make, kind, location, scale):
    likelihood = DistributionLikelihood(lambda o: make(o[:, 0]), num_outputs=1)
    assert likelihood.target_kind == kind
    student = make_student(likelihood)
    outputs = torch.linspace(-2, 2, 5)[:, None]
    targets = student.make_targets(likelihood.predictive([outputs]))
    assert student.location == pytest.approx(location)
    assert student.scale == pytest.approx(scale or student.scale)
    assert targets[:, 0].abs().max() < 10
    assert targets[:, 2].tolist() == [0.0] * 5


def test_a_student_learns_no_infinite_moments():
    tails = DistributionLikelihood(lambda o: td.StudentT(o[:, 0], 0.0, 1.0), num_outputs=1)
    predictive = tails.predictive([torch.tensor([[3.0], [2.0], [0.5]])])
    with pytest.raises(ValueError, match="variance for 2 examples, the first in row 1"):
        make_student(tails).make_targets(predictive)
    certain = DistributionLikelihood("Poisson").predictive([torch.tensor([[-1e3], [0.0]])])
    targets = make_student(DistributionLikelihood("Poisson")).make_targets(certain)
    assert NumberStudent(DistributionLikelihood("Poisson")).loss(torch.zeros(2, 3), targets).isfinite()


def test_a_single_network_has_no_epistemic_uncertainty():
    predictive = Categorical(3).predictive([torch.tensor([[1e4, 0.0, 0.0], [1.0, 2.0, 3.0]])])
    student = CategoricalStudent(3)
    targets = student.make_targets(predictive)
    assert targets.isfinite().all()
    assert student.loss(torch.zeros(2, 4), targets).isfinite()
    ends = torch.tensor([0.0, 1.0])
    torch.testing.assert_close(bernoulli_kl(ends, torch.zeros(2)), torch.full((2,), 2.0).log())


def test_the_student_follows_the_likelihood():
    assert isinstance(make_student(Custom(torch.nn.functional.cross_entropy, Categorical(4))), CategoricalStudent)
    assert make_student(Gaussian(3)).num_outputs == 9
    assert make_student(SeveralLabels(3)).num_outputs == 6
    with pytest.raises(TypeError, match="can be distilled"):
        make_student(Custom(torch.nn.functional.cross_entropy, None))
    with pytest.raises(TypeError, match="cannot learn"):
        NumberStudent(Gaussian()).make_targets(Categorical(3).predictive([torch.zeros(1, 3)]))
    with pytest.raises(TypeError, match="for several labels cannot learn"):
        BernoulliStudent(3).make_targets(Categorical(3).predictive([torch.zeros(1, 3)]))
