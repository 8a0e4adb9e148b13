"""Curvature and evidence of the Laplace approximation against curvlinops and laplace-torch, in double precision.

The packages are not dependencies of the tests (their requirements conflict with the newest torch), so these tests are
skipped where they are not installed.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from flatbayes.posteriors import Laplace
from flatbayes.posteriors.ggn import ExampleVjps, ggn_diagonal, ggn_matrix
from flatbayes.posteriors.kfac import KroneckerFactors, add_factors, find_kfac_layers, get_matrix_shape
from flatbayes.posteriors.laplace import maximize_evidence, posterior_std

NUM_EXAMPLES = 7
LAST_LAYER = "5."

pytestmark = pytest.mark.filterwarnings("ignore")  # warnings of the packages themselves


@pytest.fixture(scope="module")
def curvlinops():
    return pytest.importorskip("curvlinops", exc_type=ImportError)


@pytest.fixture(scope="module")
def laplace_torch():
    return pytest.importorskip("laplace", exc_type=ImportError)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return (
        nn.Sequential(
            nn.Conv2d(1, 3, 3, stride=2, padding=1),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(27, 4),
            nn.Tanh(),
            nn.Linear(4, 3),
        )
        .double()
        .eval()
    )


@pytest.fixture
def examples():
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(NUM_EXAMPLES, 1, 6, 6, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(0, 3, (NUM_EXAMPLES,), generator=generator)


def regression_loss(outputs, targets):
    """Mean over examples of the squared error, the loss that `nn.MSELoss(reduction="sum")` sums."""
    return (outputs - targets).square().sum(1).mean()


def to_matrix(operator):
    return operator @ torch.eye(operator.shape[1], dtype=torch.float64)


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_ggn_equals_curvlinops(curvlinops, network, examples, task):
    inputs, labels = examples
    targets = labels if task == "classification" else F.one_hot(labels, 3).double()
    reference_loss = nn.CrossEntropyLoss(reduction="sum") if task == "classification" else nn.MSELoss(reduction="sum")
    loss_fn = F.cross_entropy if task == "classification" else regression_loss
    params = dict(network.named_parameters())
    operator = curvlinops.GGNLinearOperator(network, reference_loss, list(params.values()), [(inputs, targets)])
    expected = to_matrix(operator)

    vjps = ExampleVjps(network, params)
    torch.testing.assert_close(ggn_matrix(vjps, inputs, targets, loss_fn), expected)
    torch.testing.assert_close(ggn_diagonal(vjps, inputs, targets, loss_fn), expected.diagonal())


def test_kronecker_factors_equal_curvlinops(curvlinops, network, examples):
    """With the exact Fisher ("type-2"), joint weight and bias, and the expand setting for convolutions."""
    inputs, targets = examples
    operator = curvlinops.KFACLinearOperator(
        network,
        nn.CrossEntropyLoss(reduction="sum"),
        list(network.parameters()),
        [(inputs, targets)],
        fisher_type="type-2",
        separate_weight_and_bias=False,
    )
    expected = to_matrix(operator)

    layers = find_kfac_layers(network)
    factors = {}
    for name, layer in layers.items():
        num_outputs, num_inputs = get_matrix_shape(layer)
        factors[name] = KroneckerFactors(
            torch.zeros(num_inputs, num_inputs, dtype=torch.float64),
            torch.zeros(num_outputs, num_outputs, dtype=torch.float64),
        )
    add_factors(factors, layers, network, inputs, targets, F.cross_entropy)
    start = 0
    for name, layer in layers.items():
        num_outputs, num_inputs = get_matrix_shape(layer)
        block = torch.kron(factors[name].output_factor, factors[name].input_factor) / factors[name].num_positions
        index = torch.arange(num_outputs * num_inputs).view(num_outputs, num_inputs)
        order = torch.cat([index[:, :-1].flatten(), index[:, -1]])  # rows of [weight, bias] -> weight, then bias
        stop = start + len(order)
        torch.testing.assert_close(block[order][:, order], expected[start:stop, start:stop])
        start = stop
    assert start == len(expected)


def fit_reference(laplace_torch, network, examples):
    reference = laplace_torch.Laplace(
        network, "classification", subset_of_weights="last_layer", hessian_structure="full"
    )
    reference.fit(DataLoader(TensorDataset(*examples), batch_size=NUM_EXAMPLES))
    return reference


def test_evidence_has_its_maximum_where_laplace_torch_has_it(laplace_torch, network, examples):
    reference = fit_reference(laplace_torch, network, examples)
    weights = torch.cat([p.detach().flatten() for n, p in network.named_parameters() if n.startswith(LAST_LAYER)])
    eigenvalues = torch.linalg.eigvalsh(reference.H).clamp(min=0)
    precision = torch.tensor(maximize_evidence(eigenvalues, float(weights.square().sum())), dtype=torch.float64)
    precision.requires_grad_()

    evidence = reference.log_marginal_likelihood(precision)
    (slope,) = torch.autograd.grad(evidence, precision)
    assert abs(float(slope * precision)) < 1e-6  # derivative in the logarithm
    for factor in (0.8, 1.25):
        assert reference.log_marginal_likelihood(precision.detach() * factor) < evidence


@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_last_layer_covariance_equals_laplace_torch(laplace_torch, network, examples, temperature):
    """The temperature of the reference divides the prior too, so below 1 only its Hessian is used."""
    reference = fit_reference(laplace_torch, network, examples)
    reference.prior_precision = torch.tensor([2.0], dtype=torch.float64)
    expected = torch.linalg.inv(reference.H / temperature + 2.0 * torch.eye(len(reference.H)))
    if temperature == 1.0:
        torch.testing.assert_close(reference.posterior_covariance, expected, rtol=1e-5, atol=1e-6)

    posterior = Laplace("last_layer", prior_precision=2.0, temperature=temperature)
    state = posterior.init(network, None, NUM_EXAMPLES)
    posterior.finalize(state, [examples], F.cross_entropy)
    vectors = state.statistics["eigenvectors"]
    std = posterior_std(state.statistics["eigenvalues"], temperature, state.statistics["prior_precision"])
    torch.testing.assert_close((vectors * std.square()) @ vectors.T, expected, rtol=1e-5, atol=1e-6)
