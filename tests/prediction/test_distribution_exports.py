"""Compiled and exported posteriors of counts, heavy tails and other distributions, against `predict`."""

import numpy as np
import pytest
import torch
from torch import distributions as td
from torch import nn
from torch.nn import functional as F

from flatbayes.likelihoods import Custom, DistributionLikelihood, Gaussian
from flatbayes.likelihoods.distribution_functions import compute_moments
from flatbayes.likelihoods.families import FAMILIES
from flatbayes.models import MLP
from flatbayes.posteriors import Ensemble
from flatbayes.prediction import FittedPosterior, export_onnx, export_torch, onnx_difference
from flatbayes.prediction.decompositions import log_gamma

X = torch.randn(7, 4, generator=torch.Generator().manual_seed(1))
NAMES = ["mean", "std", "epistemic_std"]
SLOW = ("ZeroInflatedPoisson", "Laplace", "LogNormal", "Gamma", "Beta")


def make_posterior(likelihood, dtype=torch.float32):
    """An ensemble with very different members."""
    torch.manual_seed(3)
    posterior = Ensemble(size=3)
    networks = [MLP((4,), likelihood.num_outputs, (8,)).eval().to(dtype) for _ in range(3)]
    states = [posterior.init(network, None, 10) for network in networks]
    return FittedPosterior(posterior, states, likelihood, info={"input_shape": [4]})


def make_family(name, num_targets=1):
    location, scale = (1e4,) * num_targets, tuple(range(3, 3 + num_targets))
    return DistributionLikelihood(name, num_targets=num_targets, location=location, scale=scale)


def assert_predicted(tensors, fitted, x, rtol=1e-6):
    predictive = fitted.predict(x)
    expected = {"mean": predictive.mean, "std": predictive.std, "epistemic_std": predictive.epistemic.sqrt()}
    assert list(tensors) == NAMES
    for name, values in tensors.items():
        np.testing.assert_allclose(
            np.asarray(values), expected[name].numpy(), rtol=rtol, atol=rtol / 10, err_msg=name
        )


def check_files(fitted, folder, rtol=1e-6):
    """Compare both files with `predict` for batch sizes other than that of the export."""
    import onnxruntime

    module = fitted.compile()
    program = torch.export.load(export_torch(module, folder / "a.pt2")).module()
    path = export_onnx(module, folder / "a.onnx")
    session = onnxruntime.InferenceSession(str(path))
    for rows in (1, 7):
        assert_predicted(program(X[:rows]), fitted, X[:rows], rtol)
        outputs = session.run(NAMES, {"inputs": X[:rows].numpy()})
        assert_predicted(dict(zip(NAMES, outputs, strict=True)), fitted, X[:rows], rtol)
    assert_predicted(module(X), fitted, X, rtol)  # the trace left nothing behind
    assert onnx_difference(module, path) < 1e-6


@pytest.mark.parametrize("num_targets", [1, 2])
@pytest.mark.parametrize("name", FAMILIES)
def test_compiled_families_have_the_moments_of_predictions(name, num_targets):
    fitted = make_posterior(make_family(name, num_targets))
    tensors = fitted.compile()(X)
    assert_predicted(tensors, fitted, X)
    assert {values.dtype for values in tensors.values()} == {torch.float32}
    assert tensors["mean"].shape == ((7,) if num_targets == 1 else (7, 2))


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in FAMILIES])
def test_files_of_families_have_the_moments_of_predictions(name, tmp_path):
    check_files(make_posterior(make_family(name)), tmp_path)


def test_files_of_several_targets(tmp_path):
    check_files(make_posterior(make_family("Weibull", 2)), tmp_path)


@pytest.mark.parametrize("likelihood", [make_family("StudentT"), Gaussian(1, (1234567.8,), (0.3,))])
def test_a_network_in_double_precision_has_moments_in_double_precision(likelihood):
    fitted = make_posterior(likelihood, torch.float64)
    tensors = fitted.compile()(X.double())
    assert tensors["mean"].dtype == torch.float64
    assert_predicted(tensors, fitted, X.double(), rtol=2e-8)


def test_a_narrow_distribution_keeps_its_digits(tmp_path):
    fitted = make_posterior(DistributionLikelihood("LogNormal"))
    for state in fitted.states:
        nn.init.constant_(state.model.layers[-1].bias, -12.0)  # a standard deviation of 0.01
    check_files(fitted, tmp_path)


def test_a_loss_of_the_user_changes_no_moments():
    fitted = make_posterior(Custom(lambda outputs, targets: outputs.mean(), make_family("Gamma")))
    assert_predicted(fitted.compile()(X), fitted, X)


def mix_tails(outputs):
    weights, means, scales = outputs.chunk(3, dim=1)
    return td.MixtureSameFamily(td.Categorical(logits=weights), td.StudentT(3.0, means, scales.exp()))


TRIANGLE = torch.tensor([[2.0, 0.0], [1.9, 1.0]])
FUNCTIONS = {
    "mixture": (mix_tails, 6),
    "dependent targets": (lambda o: td.MultivariateNormal(o, scale_tril=TRIANGLE.to(o)), 2),
    "independent targets": (lambda o: td.Independent(td.Normal(o[:, :2], o[:, 2:].exp()), 1), 4),
    "no log gamma in ONNX": (lambda o: td.Weibull(o[:, 0].exp(), F.elu(o[:, 1]) + 1.1), 2),
    "activations": (lambda o: td.Normal(F.leaky_relu(o[:, 0]), F.softplus(o[:, 1], 2)), 2),
    "no moments": (lambda o: td.Cauchy(o[:, 0], o[:, 1].exp()), 2),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_the_user_are_traced(name, tmp_path):
    make, num_outputs = FUNCTIONS[name]
    fitted = make_posterior(DistributionLikelihood(make, num_outputs=num_outputs))
    if name != "no moments":
        check_files(fitted, tmp_path)
        return
    program = torch.export.load(export_torch(fitted.compile(), tmp_path / "a.pt2")).module()
    assert_predicted(program(X), fitted, X)
    assert program(X)["mean"].isnan().all()


@pytest.mark.parametrize("df", [0.5, 1.0, 1.5, 2.0, 2.5])
def test_moments_of_student_t_are_those_of_torch(df):
    distribution = td.StudentT(torch.full((3,), df), torch.arange(3.0), torch.arange(1.0, 4.0))
    mean, variance = compute_moments(distribution)
    torch.testing.assert_close(mean, distribution.mean, equal_nan=True)
    torch.testing.assert_close(variance, distribution.variance, equal_nan=True)


def test_log_gamma():
    values = torch.cat([torch.logspace(-6, 0, 200, dtype=torch.float64), torch.linspace(1, 201, 999).double()])
    torch.testing.assert_close(log_gamma(values), torch.lgamma(values), rtol=0, atol=2e-12)


def test_what_cannot_be_compiled_says_why(tmp_path):
    def transform(outputs):
        base = td.Normal(outputs[:, 0], outputs[:, 1].exp())
        return td.TransformedDistribution(base, [td.transforms.SigmoidTransform()])

    with pytest.raises(ValueError, match="defines the properties mean and variance.*Or distil"):
        make_posterior(DistributionLikelihood(transform, num_outputs=2)).compile()


@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_exported_says_why(tmp_path):
    checked = DistributionLikelihood(lambda o: td.Poisson(o[:, 0].exp(), validate_args=True), num_outputs=1)
    with pytest.raises(ValueError, match="as distributions with validate_args=True do"):
        export_torch(make_posterior(checked).compile(), tmp_path / "a.pt2")
    covariance = DistributionLikelihood(lambda o: td.MultivariateNormal(o, torch.eye(2).to(o)), num_outputs=2)
    module = make_posterior(covariance).compile()
    with pytest.raises(ValueError, match=r"linalg_cholesky.*Use export_torch"):
        export_onnx(module, tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


def test_a_module_is_compiled_by_torch():
    fitted = make_posterior(make_family("StudentT"))
    module = torch.compile(fitted.compile(), backend="eager")
    assert_predicted(module(X), fitted, X)
    assert_predicted(fitted.compile()(X), fitted, X)
