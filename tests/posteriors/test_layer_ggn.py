"""Diagonals from whole-batch backward passes, and blocks of classes, against the vectors of each example."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flatbayes.posteriors import diagonal_ggn, kfac, last_layer
from flatbayes.posteriors.curvature_structures import KroneckerCurvature, LastLayerCurvature, make_curvature
from flatbayes.posteriors.diagonal_ggn import DiagonalGgn
from flatbayes.posteriors.ggn import ExampleVjps, factorize_loss_hessian, factorize_psd, ggn_diagonal
from flatbayes.posteriors.last_layer import factorize_covariance, factorize_low_rank_covariance, invert_triangle
from support import compute_ggn

SIZE = 5


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


class Called(nn.Module):
    """Layers that are called by a function of the network and its inputs."""

    def __init__(self, call, **layers):
        super().__init__()
        self.call = call
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x):
        return self.call(self, x)


def tie(net):
    net[2].weight = net[0].weight
    return net


def flat(*layers):
    return nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(3))


NETWORKS = {
    "convolutions": (
        lambda: flat(nn.Conv2d(2, 4, 3, padding=1, stride=2), nn.ReLU(True), nn.Conv2d(4, 6, (2, 1), groups=2)),
        (2, 5, 6),
        {"0", "2", "4"},
    ),
    "padding": (lambda: flat(nn.Conv1d(2, 3, 3, padding=2, dilation=2, padding_mode="circular")), (2, 7), {"0", "2"}),
    "volumes": (lambda: flat(nn.Conv3d(1, 2, 2, bias=False), nn.Tanh()), (1, 3, 3, 3), {"0", "3"}),
    "channel norms": (
        lambda: flat(
            *(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 2), nn.GroupNorm(2, 4), nn.Tanh(), nn.InstanceNorm2d(4, affine=True))
        ),
        (4, 4, 4),
        {"0", "1", "2", "4", "6"},
    ),
    "layer norms": (
        lambda: flat(nn.LayerNorm((3, 4)), nn.Linear(4, 4), nn.Tanh(), nn.RMSNorm(4), nn.LayerNorm(4, bias=False)),
        (3, 4),
        {"0", "1", "3", "4", "6"},
    ),
    "called twice": (
        lambda: Called(
            lambda net, x: net.head(net.inner(torch.tanh(net.inner(x)))), inner=nn.Linear(4, 4), head=nn.Linear(4, 3)
        ),
        (4,),
        {"inner", "head"},
    ),
    "by keyword": (lambda: Called(lambda net, x: net.head(input=x), head=nn.Linear(4, 3)), (4,), {"head"}),
    "tied": (lambda: tie(nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))), (3,), set()),
    "used elsewhere": (
        lambda: Called(lambda net, x: net.head(x @ net.head.weight.T), head=nn.Linear(3, 3)),
        (3,),
        set(),
    ),
    "positions first": (  # with as many positions as examples, so that the shape does not tell
        lambda: Called(
            lambda net, x: net.head(torch.tanh(net.inner(x.transpose(0, 1)).transpose(0, 1)).mean(1)),
            inner=nn.Linear(4, 4),
            head=nn.Linear(4, 3),
        ),
        (SIZE, 4),
        {"head"},
    ),
    "flattened positions": (
        lambda: Called(
            lambda net, x: net.head(torch.tanh(net.inner(x.flatten(0, 1))).view(len(x), -1)),
            inner=nn.Linear(4, 4),
            head=nn.Linear(8, 3),
        ),
        (2, 4),
        {"head"},
    ),
    "other layers": (
        lambda: nn.Sequential(
            nn.Linear(4, 4), nn.PReLU(4), nn.Unflatten(1, (4, 1)), nn.ConvTranspose1d(4, 3, 1), nn.Flatten()
        ),
        (4,),
        {"0"},
    ),
    "unused": (
        lambda: Called(lambda net, x: net.head(x), head=nn.Linear(4, 3), other=nn.Linear(2, 2)),
        (4,),
        {"head"},
    ),
}


def made(name):
    make, shape, layers = NETWORKS[name]
    net, x = make(), torch.randn(SIZE, *shape)
    net(x)  # lazy layers, and running statistics
    return net.eval(), x, torch.arange(SIZE) % 3, layers


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("bound", [1, 2**24])
def test_diagonals_are_those_of_the_vectors_of_each_example(name, bound, monkeypatch):
    net, x, y, layers = made(name)
    params = dict(net.named_parameters())
    expected = ggn_diagonal(ExampleVjps(net, params), x, y, F.cross_entropy)
    monkeypatch.setattr(diagonal_ggn, "MAX_VECTOR_ENTRIES", bound)
    diagonal = DiagonalGgn.of(net, params, x, y, F.cross_entropy)
    diagonal.add(x[:3], y[:3], F.cross_entropy)
    diagonal.add(x[3:], y[3:], F.cross_entropy)
    assert set(diagonal.layers) == layers
    torch.testing.assert_close(diagonal.compute(), expected, rtol=1e-9, atol=1e-12)


def test_diagonals_of_trainable_parameters_only():
    net, x, y, _ = made("convolutions")
    net[0].weight.requires_grad_(False)
    net[2].bias.requires_grad_(False)
    params = {name: param for name, param in net.named_parameters() if param.requires_grad}
    diagonal = DiagonalGgn.of(net, params, x, y, F.cross_entropy)
    diagonal.add(x, y, F.cross_entropy)
    assert set(diagonal.layers) == {"0", "2", "4"}
    torch.testing.assert_close(diagonal.compute(), ggn_diagonal(ExampleVjps(net, params), x, y, F.cross_entropy))


@pytest.mark.parametrize("structure", ["diag", "kron", "last_layer"])
@pytest.mark.parametrize("position", [0, 1])
def test_an_empty_batch_adds_nothing(structure, position):
    x, y = torch.randn(SIZE, 4), torch.arange(SIZE) % 3
    curvature = make_curvature(structure, nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)))
    batches = [(x, y)]
    expected = curvature.compute_curvature(batches, F.cross_entropy)
    batches.insert(position, (x[:0], y[:0]))
    for name, tensor in curvature.compute_curvature(batches, F.cross_entropy).items():
        assert torch.equal(tensor, expected[name])


LAST_LAYERS = {
    "plain": lambda net, x: net.head(torch.tanh(net.inner(x))),
    "positions": lambda net, x: net.head(torch.tanh(net.inner(x[:, None] * torch.arange(1.0, 3.0)[:, None]))),
    "below something": lambda net, x: torch.tanh(net.head(net.inner(x))),
    "called twice": lambda net, x: net.head(torch.tanh(net.head(x[:, :3]))),
}


def nested_loss(outputs, targets):
    """Mean over examples of a loss with a full Hessian, for outputs of any shape."""
    return F.cross_entropy(outputs.flatten(1), targets)


@pytest.mark.parametrize("frozen", ["nothing", "weight", "bias"])
@pytest.mark.parametrize("bound", [1, 2**24])
@pytest.mark.parametrize("name", LAST_LAYERS)
def test_blocks_of_classes_are_the_matrix_of_the_vectors(name, bound, frozen, monkeypatch):
    monkeypatch.setattr(last_layer, "MAX_VECTOR_ENTRIES", bound)
    net = Called(LAST_LAYERS[name], inner=nn.Linear(4, 3), head=nn.Linear(3, 3)).eval()
    if frozen != "nothing":
        net.head.get_parameter(frozen).requires_grad_(False)
    x, y = torch.randn(SIZE, 4), torch.arange(SIZE) % 3
    curvature = LastLayerCurvature(net, net.head)
    used = []
    monkeypatch.setattr(ExampleVjps, "compute", lambda *args, f=ExampleVjps.compute: used.append(1) or f(*args))
    computed = curvature.compute_curvature([(x[:2], y[:2]), (x[2:], y[2:])], nested_loss)["matrix"]
    assert bool(used) == (name != "plain")
    expected = compute_ggn(ExampleVjps(net, curvature.params), x, y, nested_loss)
    torch.testing.assert_close(computed, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("frozen", ["nothing", "weight", "bias"])
@pytest.mark.parametrize("weights_per_vector", [1, 2])
@pytest.mark.parametrize("name", ["plain", "nested"])
def test_few_examples_are_kept_as_vectors(name, weights_per_vector, frozen, monkeypatch):
    """All of the examples, or those of the first batch."""
    monkeypatch.setattr(last_layer, "MIN_LOW_RANK_SIZE", 1)
    monkeypatch.setattr(last_layer, "MIN_WEIGHTS_PER_VECTOR", weights_per_vector)
    net = Called(LAST_LAYERS.get(name, LAST_LAYERS["plain"]), inner=nn.Linear(4, 4), head=nn.Linear(4, 3)).eval()
    if frozen != "nothing":
        net.head.get_parameter(frozen).requires_grad_(False)
    x, y = torch.randn(SIZE, 4), torch.arange(SIZE) % 3
    curvature = LastLayerCurvature(net, net.head)
    computed = curvature.compute_curvature([(x[:2], y[:2]), (x[2:], y[2:])], F.cross_entropy)
    expected = compute_ggn(ExampleVjps(net, curvature.params), x, y, F.cross_entropy)
    is_small = weights_per_vector == 1 and frozen != "weight"
    assert list(computed) == ["vectors" if is_small else "matrix"]
    total = computed["vectors"] @ computed["vectors"].T if is_small else computed["matrix"]
    torch.testing.assert_close(total, expected, rtol=1e-10, atol=1e-13)
    precision = torch.tensor(0.3)
    scale = curvature.make_statistics(computed, 2.0, 0.1, precision)["scale"]
    torch.testing.assert_close(scale @ scale.T, (20 * expected + 0.3 * torch.eye(len(scale))).inverse())
    values = curvature.compute_eigenvalues(computed)
    torch.testing.assert_close(values, torch.linalg.eigvalsh(expected)[-len(values) :], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("min_size", [1, 1000])
def test_networks_of_low_precision_have_sums_in_single_precision(min_size, monkeypatch):
    monkeypatch.setattr(last_layer, "MIN_LOW_RANK_SIZE", min_size)
    net = nn.Linear(20, 3).bfloat16()
    x, y = torch.randn(SIZE, 20).bfloat16(), torch.arange(SIZE) % 3
    curvature = LastLayerCurvature(net, net)
    computed = curvature.compute_curvature([(x, y)], F.cross_entropy)
    assert list(computed) == ["vectors" if min_size == 1 else "matrix"]
    scale = curvature.make_statistics(computed, 1.0, 1.0, torch.tensor(0.5))["scale"]
    assert scale.dtype == curvature.compute_eigenvalues(computed).dtype == torch.float32
    exact = LastLayerCurvature(wide := nn.Linear(20, 3), wide)
    wide.load_state_dict(net.state_dict())
    expected = compute_ggn(ExampleVjps(wide, exact.params), x.double(), y, F.cross_entropy) + 0.5 * torch.eye(63)
    torch.testing.assert_close((scale @ scale.T).double(), expected.inverse(), rtol=0, atol=0.01)


@pytest.mark.parametrize("largest", [1e-6, 1.0, 1e4])
def test_square_root_from_few_vectors_of_any_length(largest):
    vectors = torch.randn(9, 4) * torch.tensor([1.0, 0.0, 1e-9, 1e-3]) * largest
    scale = factorize_low_rank_covariance(vectors, torch.tensor(0.7))
    precisions = vectors @ vectors.T + 0.7 * torch.eye(9)
    torch.testing.assert_close(scale, scale.T)
    torch.testing.assert_close(scale @ precisions @ scale, torch.eye(9), rtol=0, atol=1e-6)
    with pytest.raises(RuntimeError, match="curvature of the loss is not finite"):
        factorize_low_rank_covariance(vectors * torch.inf, torch.tensor(0.7))


@pytest.mark.parametrize(
    "end", [nn.Identity, nn.Tanh, lambda: nn.ReLU(inplace=True), lambda: nn.Unflatten(1, (3, 2))]
)
def test_factors_of_a_last_layer_with_many_outputs_need_no_factorization(end, monkeypatch):
    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 6), end()).eval()
    x, y = torch.randn(SIZE, 4), torch.arange(SIZE) % 3
    curvature, bounds = make_curvature("last_layer_kron", net), (64, 1)
    computed, used = [], []
    count = lambda *args, f=kfac.sum_loss_hessians: used.append(1) or f(*args)  # noqa: E731
    monkeypatch.setattr(kfac, "sum_loss_hessians", count)
    for bound in bounds:
        monkeypatch.setattr(kfac, "MAX_FACTORIZED_OUTPUTS", bound)
        computed.append(curvature.compute_curvature([(x[:2], y[:2]), (x[2:], y[2:])], nested_loss)["eigenvalues"])
    torch.testing.assert_close(computed[0], computed[1], rtol=1e-9, atol=1e-12)
    assert len(used) == (2 if end is nn.Identity else 0)


def test_the_structure_that_is_chosen_depends_on_the_size_of_the_last_layer():
    small, large = nn.Linear(119, 100), nn.Linear(120, 100)
    assert isinstance(make_curvature(None, small), LastLayerCurvature)
    assert isinstance(make_curvature(None, large), KroneckerCurvature)
    assert isinstance(make_curvature("last_layer", large), LastLayerCurvature)


def test_a_last_layer_that_is_too_large_for_its_matrix_names_another_structure():
    curvature = make_curvature("last_layer", nn.Linear(2048, 2000, device="meta"))
    vars(curvature)["params"] = {"weight": torch.empty(1).expand(4_000_000)}
    with pytest.raises(ValueError, match="4,000,000 x 4,000,000 numbers.*Use structure='last_layer_kron'"):
        curvature.allocate_statistics()


@pytest.mark.parametrize("size", [1, 2, 7, 20])
def test_square_root_of_a_covariance(size, monkeypatch):
    monkeypatch.setattr(last_layer, "MAX_TRIANGLE_SIZE", 3)
    factor = torch.randn(size, size)
    triangle = factor.triu() + 3 * torch.eye(size)
    torch.testing.assert_close(invert_triangle(triangle), triangle.inverse())
    curvature, precision = factor @ factor.T, torch.tensor(0.3)
    scale = factorize_covariance(curvature, precision)
    torch.testing.assert_close(scale @ scale.T, (curvature + 0.3 * torch.eye(size)).inverse())
    assert torch.equal(scale, scale.triu())


def test_square_root_where_rounding_makes_the_matrix_indefinite():
    curvature, precision = torch.diag(torch.tensor([1.0, -1e-7])), torch.tensor(1e-8)
    scale = factorize_covariance(curvature, precision)
    torch.testing.assert_close(scale @ scale.T, torch.diag(torch.tensor([1 / (1 + 1e-8), 1e8])))
    with pytest.raises(RuntimeError, match="curvature of the loss is not finite"):
        factorize_covariance(curvature * torch.inf, precision)


def test_factors_leave_out_zero_columns():
    outputs, labels = torch.randn(4, 6), torch.arange(4)
    factor = factorize_loss_hessian(outputs, labels, F.cross_entropy)
    assert factor.shape == (4, 6, 5)  # the Hessian of a softmax has rank 5
    p = outputs.softmax(1)
    torch.testing.assert_close(
        factor @ factor.mT, torch.diag_embed(p) - p[:, :, None] * p[:, None], rtol=0, atol=1e-14
    )


def test_factors_of_definite_indefinite_and_zero_matrices_together():
    definite = torch.randn(3, 3)
    matrices = torch.stack([definite @ definite.T, torch.diag(torch.tensor([2.0, -1.0, 0.0])), torch.zeros(3, 3)])
    factor = factorize_psd(matrices)
    expected = matrices.clone()
    expected[1, 1, 1] = 0
    torch.testing.assert_close(factor @ factor.mT, expected)
    assert factorize_psd(torch.zeros(2, 3, 3)).shape == (2, 3, 1)


@pytest.mark.parametrize("name", ["eigenvectors", "eigenvalues", "prior_precision"])
@pytest.mark.parametrize("shape", [None, (10_000_000, 1)])
def test_statistics_of_another_network_are_not_converted(name, shape):
    """A small artefact must not become a large tensor by broadcasting."""
    curvature = make_curvature("last_layer", nn.Linear(2, 1))
    statistics = {"eigenvectors": torch.eye(3), "eigenvalues": torch.ones(3), "prior_precision": torch.tensor(1.0)}
    assert curvature.convert_statistics(statistics, 1.0).keys() == {"scale", "prior_precision"}
    if shape is None:
        del statistics[name]
    else:
        statistics[name] = torch.ones(1).expand(shape)
    assert curvature.convert_statistics(statistics, 1.0) is statistics
