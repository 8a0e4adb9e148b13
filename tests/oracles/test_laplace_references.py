"""Curvature and evidence of Laplace approximations against curvlinops, laplace-torch and BackPACK, in float64.

The packages are not dependencies of the tests (their requirements conflict with the newest torch), so these tests are
skipped where they are not installed.
"""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from flatbayes.core.linear_head import extract_features
from flatbayes.posteriors import Laplace
from flatbayes.posteriors.curvature import maximize_evidence
from flatbayes.posteriors.curvature_structures import LastLayerCurvature
from flatbayes.posteriors.diagonal_ggn import DiagonalGgn
from flatbayes.posteriors.ggn import ExampleVjps, ggn_diagonal
from flatbayes.posteriors.kfac import KroneckerFactors, add_factors, find_kfac_layers, get_matrix_shape
from support import compute_ggn

NUM_EXAMPLES = 7
LAST_LAYER = "5."

pytestmark = pytest.mark.filterwarnings("ignore")  # warnings of the packages themselves


@pytest.fixture(scope="module")
def curvlinops():
    return pytest.importorskip("curvlinops", exc_type=ImportError)


@pytest.fixture(scope="module")
def laplace_torch():
    return pytest.importorskip("laplace", exc_type=ImportError)


@pytest.fixture(scope="module")
def backpack():
    pytest.importorskip("backpack.extensions", exc_type=ImportError)
    return pytest.importorskip("backpack", exc_type=ImportError)


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
    torch.testing.assert_close(compute_ggn(vjps, inputs, targets, loss_fn), expected)
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
    scale = state.statistics["scale"]
    torch.testing.assert_close(scale @ scale.T, expected, rtol=1e-5, atol=1e-6)


def test_variance_of_draws_of_the_last_layer_equals_that_of_laplace_torch(laplace_torch, network, examples):
    """The outputs of all draws together, from features that are computed once, against the linearised variance."""
    reference = fit_reference(laplace_torch, network, examples)
    reference.prior_precision = torch.tensor([2.0], dtype=torch.float64)
    mean, variance = reference._glm_predictive_distribution(examples[0])

    posterior = Laplace("last_layer", prior_precision=2.0)
    state = posterior.init(network, None, NUM_EXAMPLES)
    posterior.finalize(state, [examples], F.cross_entropy)
    # The columns of the scale are the draws of the unit vectors: the sum of their squares is the variance.
    columns = LastLayerCurvature(network, network[5])
    with extract_features(network, network[5]) as extractor:
        outputs, features = extractor.compute(examples[0])
    torch.testing.assert_close(outputs, mean)
    changes = []
    for axis in torch.eye(len(state.statistics["scale"]), dtype=torch.float64):
        weight, bias = columns.compute_offsets(state.statistics, axis, 1.0)
        changes.append(F.linear(features, weight, bias))
    stacked = torch.stack(changes)
    torch.testing.assert_close(torch.einsum("kni,knj->nij", stacked, stacked), variance, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_diagonal_equals_backpack(backpack, network, examples, task):
    """Of whole-batch backward passes, for convolutions and linear layers, in two batches."""
    inputs, labels = examples
    targets = labels if task == "classification" else F.one_hot(labels, 3).double()
    loss_fn = F.cross_entropy if task == "classification" else regression_loss
    module = nn.CrossEntropyLoss(reduction="sum") if task == "classification" else nn.MSELoss(reduction="sum")
    extended, extended_loss = backpack.extend(copy.deepcopy(network)), backpack.extend(module)
    with backpack.backpack(backpack.extensions.DiagGGNExact()):
        extended_loss(extended(inputs), targets).backward()
    expected = torch.cat([param.diag_ggn_exact.flatten() for param in extended.parameters()])

    diagonal = DiagonalGgn.of(network, dict(network.named_parameters()), inputs, targets, loss_fn)
    assert list(diagonal.layers) == ["0", "3", "5"]
    assert not diagonal.others.params
    for batch in zip(inputs.split(4), targets.split(4), strict=True):
        diagonal.add(*batch, loss_fn)
    torch.testing.assert_close(diagonal.compute(), expected)
