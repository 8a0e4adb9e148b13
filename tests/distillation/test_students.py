"""Losses of students against closed forms."""

import pytest
import torch
from torch.distributions import Bernoulli, Normal, kl_divergence
from torch.distributions import Categorical as Classes

from flatbayes.distillation.students import CategoricalStudent, GaussianStudent, bernoulli_kl, make_student
from flatbayes.likelihoods import Categorical, Custom, Gaussian


@pytest.fixture
def classes():
    torch.manual_seed(0)
    return Categorical(3).predictive([torch.randn(5, 3), torch.randn(5, 3), torch.randn(5, 3)])


@pytest.fixture
def numbers():
    torch.manual_seed(0)
    likelihood = Gaussian(2, (10.0, -3.0), (4.0, 0.5))
    return likelihood, likelihood.predictive([torch.randn(6, 4), torch.randn(6, 4), torch.randn(6, 4)])


def logit(p):
    return p.log() - (1 - p).log()


def test_of_classes(classes):
    student = CategoricalStudent(3)
    lesson = student.make_targets(classes)
    perfect = torch.cat([lesson[:, :3].log(), logit(lesson[:, 3:])], 1)
    assert float(student.loss(perfect, lesson)) == pytest.approx(0, abs=1e-6)
    answer = student([perfect])
    for name in student.output_names:
        torch.testing.assert_close(answer[name], getattr(classes, name).float(), rtol=1e-4, atol=1e-6)
    other = torch.randn(5, 4)
    of_mean = kl_divergence(Classes(lesson[:, :3]), Classes(logits=other[:, :3]))
    of_share = kl_divergence(Bernoulli(lesson[:, 3]), Bernoulli(logits=other[:, 3]))
    expected = (of_mean + classes.entropy.float() * of_share).mean()
    torch.testing.assert_close(student.loss(other, lesson), expected, rtol=1e-4, atol=1e-5)


def test_of_numbers(numbers):
    likelihood, predictive = numbers
    student = GaussianStudent(likelihood)
    lesson = student.make_targets(predictive)
    mean, variance, share = lesson.chunk(3, 1)
    raw = (variance.sqrt() - likelihood.floor).expm1().log()  # the inverse of the softplus
    perfect = torch.cat([mean, raw, logit(share)], 1)
    assert float(student.loss(perfect, lesson)) == pytest.approx(0, abs=1e-5)
    wanted = {"mean": predictive.mean, "std": predictive.std, "epistemic_std": predictive.epistemic.sqrt()}
    for name, values in student([perfect]).items():
        torch.testing.assert_close(values, wanted[name].float(), rtol=1e-4, atol=1e-5)
    other = torch.randn(6, 6)
    means, stds = likelihood.split_outputs(other[:, :4])
    of_moments = kl_divergence(Normal(mean, variance.sqrt()), Normal(means, stds))
    of_share = kl_divergence(Bernoulli(share), Bernoulli(logits=other[:, 4:]))
    expected = (of_moments + of_share).sum(1).mean()
    torch.testing.assert_close(student.loss(other, lesson), expected, rtol=1e-4, atol=1e-5)


def test_one_network_leaves_nothing_to_disagree_on():
    one = Categorical(3).predictive([torch.tensor([[1e4, 0.0, 0.0], [1.0, 2.0, 3.0]])])
    student = CategoricalStudent(3)
    lesson = student.make_targets(one)
    assert lesson.isfinite().all()
    assert student.loss(torch.zeros(2, 4), lesson).isfinite()
    ends = torch.tensor([0.0, 1.0])
    torch.testing.assert_close(bernoulli_kl(ends, torch.zeros(2)), torch.full((2,), 2.0).log())


def test_which_student():
    assert isinstance(make_student(Custom(torch.nn.functional.cross_entropy, Categorical(4))), CategoricalStudent)
    assert make_student(Gaussian(3)).num_outputs == 9
    with pytest.raises(TypeError, match="can be distilled"):
        make_student(Custom(torch.nn.functional.cross_entropy, None))
    with pytest.raises(TypeError, match="cannot learn"):
        GaussianStudent(Gaussian()).make_targets(Categorical(3).predictive([torch.zeros(1, 3)]))
