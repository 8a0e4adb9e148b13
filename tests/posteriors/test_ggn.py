"""The GGN, its diagonal and its Kronecker factors against Jacobians by torch.func and Hessians by hand."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev
from torch.nn import functional as F

from flatbayes.posteriors import ggn
from flatbayes.posteriors.ggn import (
    ExampleVjps,
    decompose_psd,
    factorize_loss_hessian,
    ggn_diagonal,
)
from flatbayes.posteriors.kfac import (
    KroneckerFactors,
    add_factors,
    find_kfac_layers,
    get_matrix_shape,
    split_columns,
)
from flatbayes.posteriors.layer_calls import record_layer_calls, unfold_inputs, unfold_outputs
from support import compute_ggn

SIZE = 5


def gaussian_loss(outputs, targets):
    return (outputs - targets).square().sum() / (2 * 0.3 * len(outputs))


def normal_loss(outputs, targets):
    """Mean and log standard deviation; its Hessian has a negative eigenvalue wherever the mean is far off."""
    mean, log_std = outputs.unbind(1)
    return (log_std + ((targets - mean) / log_std.exp()).square() / 2).mean()


def mlp():
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)), torch.randn(SIZE, 4)


def batch_norm_net():
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(3),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.Flatten(),
        nn.Linear(12, 3),
    )
    net(torch.randn(20, 2, 5, 5))  # running statistics that are not those of the start
    return net, torch.randn(SIZE, 2, 5, 5)


def residual_net():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(2, 2, 3, padding=2, dilation=2)
            self.norm = nn.LayerNorm(6)
            self.head = nn.Linear(12, 3)

        def forward(self, x):
            return self.head((x + self.norm(F.gelu(self.conv(x)))).flatten(1))

    return Residual(), torch.randn(SIZE, 2, 6)


def scaled_net():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.head = nn.Parameter(torch.tensor(1.5)), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(x) * self.scale

    return Scaled(), torch.randn(SIZE, 4)


NETWORKS = pytest.mark.parametrize("make", [mlp, batch_norm_net, residual_net, scaled_net])


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def made(make):
    torch.manual_seed(3)
    net, x = make()
    return net.eval(), x, torch.arange(SIZE) % 3


def softmax_hessians(outputs):
    p = outputs.softmax(-1)
    return torch.diag_embed(p) - p[:, :, None] * p[:, None, :]


def dense_ggn(net, params, x, hessians):
    """Sum of Jᵀ H J over examples, from the Jacobian of the whole batch at once."""
    jacobian = jacrev(lambda values: functional_call(net, values, (x,)))({n: p.detach() for n, p in params.items()})
    flat = torch.cat([jacobian[name][..., None].flatten(2) for name in params], 2)
    return torch.einsum("bip,bij,bjq->pq", flat, hessians, flat)


def test_factor_of_a_softmax():
    outputs, targets = torch.randn(6, 4), torch.arange(6) % 4
    factor = factorize_loss_hessian(outputs, targets, F.cross_entropy)
    torch.testing.assert_close(factor @ factor.mT, softmax_hessians(outputs), rtol=0, atol=1e-14)


def test_factor_of_a_squared_error_with_outputs_of_any_shape():
    outputs = torch.randn(3, 2, 2)
    factor = factorize_loss_hessian(outputs, torch.randn(3, 2, 2), gaussian_loss)
    torch.testing.assert_close(factor @ factor.mT, torch.eye(4).expand(3, 4, 4) / 0.3)


def test_factor_leaves_negative_curvature_out():
    outputs, targets = torch.tensor([[0.0, 0.0], [0.0, 0.0]]), torch.tensor([3.0, 0.1])
    factor = factorize_loss_hessian(outputs, targets, normal_loss)
    # With residual r and standard deviation 1 the Hessian is [[1, 2 r], [2 r, 2 r²]], of determinant -2 r².
    for found, r in zip(factor @ factor.mT, [3.0, 0.1], strict=True):
        values, vectors = torch.linalg.eigh(torch.tensor([[1, 2 * r], [2 * r, 2 * r * r]]))
        assert values[0] < 0 < values[1]
        torch.testing.assert_close(found, values[1] * torch.outer(vectors[:, 1], vectors[:, 1]))


def test_factor_of_a_loss_that_is_linear_or_ignores_an_output():
    outputs, targets = torch.randn(3, 2), torch.randn(3)
    assert torch.equal(factorize_loss_hessian(outputs, targets, lambda o, y: o.mean()), torch.zeros(3, 2, 1))
    factor = factorize_loss_hessian(outputs, targets, lambda o, y: (o[:, 0] - y).square().mean())
    expected = torch.tensor([[2.0, 0.0], [0.0, 0.0]]).expand(3, 2, 2)
    torch.testing.assert_close(factor @ factor.mT, expected)


@NETWORKS
def test_diagonal_and_matrix_are_those_of_the_dense_ggn(make):
    net, x, y = made(make)
    params = dict(net.named_parameters())
    dense = dense_ggn(net, params, x, softmax_hessians(net(x).detach()))
    diagonal = ggn_diagonal(ExampleVjps(net, params), x, y, F.cross_entropy)
    matrix = compute_ggn(ExampleVjps(net, params), x, y, F.cross_entropy)
    torch.testing.assert_close(diagonal, dense.diagonal(), rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(matrix, dense, rtol=1e-11, atol=1e-13)
    assert not matrix.requires_grad


ACTIVATIONS = [nn.PReLU, lambda: nn.PReLU(4), nn.RReLU, nn.ReLU, nn.GELU, nn.CELU, nn.Hardswish, nn.Softplus]
NORMS = [nn.Identity, lambda: nn.BatchNorm1d(4), lambda: nn.LayerNorm(4), lambda: nn.GroupNorm(2, 4)]


@pytest.mark.parametrize("num_examples", [1, 2, 3])
@pytest.mark.parametrize("norm", NORMS, ids=["none", "batch", "layer", "group"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_vectors_are_those_of_a_loop_where_vmap_has_no_rule_or_a_wrong_one(activation, norm, num_examples):
    """With as many examples as directions, here three, torch 2.13 computes wrong vectors for PReLU, without error."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), norm(), activation(), nn.Linear(4, 3)).eval()
    params, directions = dict(net.named_parameters()), torch.randn(num_examples, 3, 3)
    x = torch.randn(num_examples, 3)
    vectors = ExampleVjps(net, params).compute(x, directions)
    for example, columns, found in zip(x, directions, vectors, strict=True):
        for column, vector in zip(columns.unbind(1), found, strict=True):
            gradients = torch.autograd.grad(net(example[None])[0] @ column, list(params.values()))
            torch.testing.assert_close(vector, torch.cat([g.flatten() for g in gradients]), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("activation", "num_calls", "num_comparisons"), [(nn.Tanh, 4, 2), (nn.PReLU, 2, 1), (nn.RReLU, 2, 0)]
)
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap_is_compared_once_for_each_size_of_batches_and_not_called_again_where_it_is_wrong(
    activation, num_calls, num_comparisons, monkeypatch
):
    calls = {"compute_by_vmap": 0, "_agrees_with_backward": 0}

    def count_calls(name):
        original = getattr(ExampleVjps, name)

        def counted(*args):
            calls[name] += 1
            return original(*args)

        monkeypatch.setattr(ExampleVjps, name, counted)

    for name in calls:
        count_calls(name)
    net = nn.Sequential(nn.Linear(3, 4), activation(), nn.Linear(4, 3)).eval()
    x, y = torch.randn(11, 3), torch.arange(11) % 3
    vjps = ExampleVjps(net, dict(net.named_parameters()))
    batches = [*zip(x.split(3), y.split(3), strict=True)]  # three of 3 examples and one of 2
    diagonal = torch.stack([ggn_diagonal(vjps, *batch, F.cross_entropy) for batch in batches]).sum(0)
    dense = dense_ggn(net, vjps.params, x, softmax_hessians(net(x).detach()))
    torch.testing.assert_close(diagonal, dense.diagonal())
    assert calls == {"compute_by_vmap": num_calls, "_agrees_with_backward": num_comparisons}


@pytest.mark.parametrize("bound", [1, 60, 200])
def test_chunks_of_any_size_have_the_same_sum(monkeypatch, bound):
    net, x, y = made(mlp)
    params = dict(net.named_parameters())
    whole = ggn_diagonal(ExampleVjps(net, params), x, y, F.cross_entropy)
    monkeypatch.setattr(ggn, "MAX_VECTOR_ENTRIES", bound)
    torch.testing.assert_close(ggn_diagonal(ExampleVjps(net, params), x, y, F.cross_entropy), whole)


def test_some_parameters_only():
    net, x, y = made(batch_norm_net)
    params = {"5.weight": net[5].weight, "5.bias": net[5].bias}
    dense = dense_ggn(net, params, x, softmax_hessians(net(x).detach()))
    matrix = compute_ggn(ExampleVjps(net, params), x, y, F.cross_entropy)
    torch.testing.assert_close(matrix, dense)
    assert not matrix.requires_grad


def test_a_tied_weight_counts_in_both_places():
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)).eval()
    net[2].weight = net[0].weight
    x, y = torch.randn(SIZE, 3), torch.arange(SIZE) % 3
    params = dict(net.named_parameters())
    dense = dense_ggn(net, params, x, softmax_hessians(net(x).detach()))
    torch.testing.assert_close(ggn_diagonal(ExampleVjps(net, params), x, y, F.cross_entropy), dense.diagonal())


# --- Kronecker factors


LAYERS = [
    (nn.Linear(4, 3), (5, 4)),
    (nn.Linear(4, 3), (5, 2, 4)),
    (nn.Conv1d(2, 3, 4, stride=2, padding=1), (5, 2, 9)),
    (nn.Conv2d(2, 3, 3, stride=2, padding=1, bias=False), (5, 2, 6, 7)),
    (nn.Conv2d(2, 3, (3, 2), padding="same", dilation=2), (5, 2, 6, 7)),
    (nn.Conv2d(2, 3, 3, padding=2, padding_mode="circular"), (5, 2, 6, 6)),
    (nn.Conv3d(2, 3, 2, padding=1, padding_mode="replicate"), (5, 2, 3, 4, 5)),
]


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=[str(layer) for layer, _ in LAYERS])
def test_a_layer_is_its_matrix_times_its_rows(layer, shape):
    layer, x = layer.double(), torch.randn(shape)
    bias = [layer.bias[:, None]] if layer.bias is not None else []
    matrix = torch.cat([layer.weight.flatten(1), *bias], 1)
    assert get_matrix_shape(layer) == matrix.shape
    torch.testing.assert_close(unfold_inputs(layer, x) @ matrix.T, unfold_outputs(layer, layer(x)))
    for piece, param in zip(split_columns(matrix, layer), layer.parameters(), strict=True):
        assert torch.equal(piece, param)


def test_rows_of_trainable_parameters_only():
    layer, x = nn.Linear(2, 3), torch.randn(4, 2)
    layer.weight.requires_grad_(False)
    assert torch.equal(unfold_inputs(layer, x), torch.ones(4, 1))
    assert get_matrix_shape(layer) == (3, 1)
    layer.weight.requires_grad_(True)
    layer.bias.requires_grad_(False)
    assert torch.equal(unfold_inputs(layer, x), x)


def kfac(net, x, y, loss_fn, batch_size=SIZE):
    layers = find_kfac_layers(net)
    shapes = {name: get_matrix_shape(layer) for name, layer in layers.items()}
    factors = {n: KroneckerFactors(torch.zeros(i, i), torch.zeros(o, o)) for n, (o, i) in shapes.items()}
    for some_x, some_y in zip(x.split(batch_size), y.split(batch_size), strict=True):
        add_factors(factors, layers, net, some_x, some_y, loss_fn)
    return factors


def block(factors):
    """In the order of the layer's matrix [weight, bias], row by row."""
    return torch.kron(factors.output_factor, factors.input_factor) / factors.num_positions


def dense_block(net, name, x, hessians):
    layer = net.get_submodule(name)
    params = {f"{name}.{key}": param for key, param in layer.named_parameters()}
    dense = dense_ggn(net, params, x, hessians)
    rows, columns = get_matrix_shape(layer)
    order = torch.cat(split_columns_of_indices(layer, rows), 1).flatten()
    assert len(order) == rows * columns
    return dense[order][:, order]


def split_columns_of_indices(layer, rows):
    start, pieces = 0, []
    for param in layer.parameters():
        pieces.append(torch.arange(start, start + param.numel()).view(rows, -1))
        start += param.numel()
    return pieces


@pytest.mark.parametrize("size", [1, 4])
def test_one_linear_layer_and_one_example(size):
    net, x, y = nn.Sequential(nn.Linear(4, 3)), torch.randn(1, 4).expand(size, 4), torch.zeros(size).long()
    hessians = softmax_hessians(net(x).detach())
    torch.testing.assert_close(block(kfac(net, x, y, F.cross_entropy)["0"]), dense_block(net, "0", x, hessians))


def test_one_output_makes_the_last_layer_of_a_regression_exact():
    net, x = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1)), torch.randn(SIZE, 4)
    factors = kfac(net, x, torch.randn(SIZE, 1), gaussian_loss)
    hessians = torch.full((SIZE, 1, 1), 1 / 0.3)
    torch.testing.assert_close(block(factors["2"]), dense_block(net, "2", x, hessians))
    assert not torch.allclose(block(factors["0"]), dense_block(net, "0", x, hessians), rtol=0.01)


def test_every_block_of_a_deep_linear_regression_is_exact():
    net, x = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3, bias=False), nn.Linear(3, 2)), torch.randn(SIZE, 4)
    hessians = (torch.eye(2) / 0.3).expand(SIZE, 2, 2)
    for name, found in kfac(net, x, torch.randn(SIZE, 2), gaussian_loss).items():
        torch.testing.assert_close(block(found), dense_block(net, name, x, hessians))


def test_a_convolution_at_one_position_is_a_linear_layer():
    net, x = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(3, 2)), torch.randn(SIZE, 2, 3, 3)
    hessians = (torch.eye(2) / 0.3).expand(SIZE, 2, 2)
    factors = kfac(net, x, torch.randn(SIZE, 2), gaussian_loss)
    torch.testing.assert_close(block(factors["0"]), dense_block(net, "0", x, hessians))


@pytest.mark.parametrize("batch_size", [SIZE, 2])
def test_factors_of_a_network_with_convolutions_by_their_definition(batch_size):
    net, x, y = made(batch_norm_net)
    found = kfac(net, x, y, F.cross_entropy, batch_size)
    assert {name: factors.num_positions for name, factors in found.items()} == {"0": SIZE * 9, "5": SIZE}
    patches = F.unfold(x, 3, stride=2, padding=1).mT.flatten(0, 1)
    torch.testing.assert_close(found["0"].input_factor, patches.T @ patches)
    features = torch.cat([net[:5](x), torch.ones(SIZE, 1)], 1).detach()
    torch.testing.assert_close(found["5"].input_factor, features.T @ features)
    torch.testing.assert_close(found["5"].output_factor, softmax_hessians(net(x).detach()).sum(0))
    jacobian = jacrev(lambda h: net[5](net[4](net[3](F.relu(net[1](h))))))(net[0](x).detach())
    own = torch.stack([jacobian[b, :, b] for b in range(SIZE)]).flatten(3)  # example, output, channel, place
    expected = torch.einsum("bict,bij,bjdt->cd", own, softmax_hessians(net(x).detach()), own)
    torch.testing.assert_close(found["0"].output_factor, expected)


def test_a_layer_called_twice_has_twice_the_positions():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            return self.layer(torch.tanh(self.layer(x)))

    net, x = Twice(), torch.randn(SIZE, 3)
    layer_factors = kfac(net, x, torch.arange(SIZE) % 3, F.cross_entropy)["layer"]
    assert layer_factors.num_positions == 2 * SIZE
    rows = torch.cat([torch.cat([part, torch.ones(SIZE, 1)], 1) for part in (x, torch.tanh(net.layer(x)))])
    torch.testing.assert_close(layer_factors.input_factor, rows.T @ rows)


class Fails(nn.Module):
    def forward(self, x):
        raise ArithmeticError("on purpose")


def test_no_hook_is_left_on_the_layers():
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True))
    x = torch.randn(2, 3)
    with record_layer_calls(find_kfac_layers(net)) as calls:
        expected = net(x)
    assert torch.equal(expected, net(x))
    assert [len(found) for found in calls.values()] == [1]
    assert not torch.equal(calls["0"][0].outputs, expected)  # before the activation that works in place
    with pytest.raises(ArithmeticError), record_layer_calls(find_kfac_layers(net)):
        nn.Sequential(net, Fails())(x)
    kfac(net, x, torch.zeros(2).long(), F.cross_entropy)
    assert not net[0]._forward_hooks
    assert all(param.grad is None for param in net.parameters())


def test_layers_with_vector_parameters_are_left_out():
    net, _, _ = made(residual_net)
    assert list(find_kfac_layers(net)) == ["conv", "head"]
    net.conv.requires_grad_(False)
    assert list(find_kfac_layers(net)) == ["head"]


class Subclass(nn.Linear):
    pass


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (nn.Conv2d(4, 4, 3, groups=2), r"1 \(Conv2d\) has trainable weights \(weight, bias\)"),
        (nn.Embedding(4, 3), r"1 \(Embedding\) has trainable weights \(weight\)"),
        (nn.ConvTranspose2d(2, 2, 2), r"1 \(ConvTranspose2d\)"),
        (nn.MultiheadAttention(4, 2), r"1 \(MultiheadAttention\) has trainable weights \(in_proj_weight"),
        (Subclass(2, 2), r"1 \(Subclass\)"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), r"ParametrizedLinear|ParametrizationList"),
    ],
)
def test_other_layers_are_refused_by_name(layer, name):
    net = nn.Sequential(nn.Linear(2, 2), layer)
    with pytest.raises(ValueError, match=name + r".*groups=1 only\. Use structure='diag'"):
        find_kfac_layers(net)
    layer.requires_grad_(False)
    assert list(find_kfac_layers(net)) == ["0"]


def test_shared_unused_and_missing_layers_are_refused():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    with pytest.raises(ValueError, match=r"1 \(Linear\) shares its weight with 0 \(Linear\)"):
        find_kfac_layers(net)
    with pytest.raises(ValueError, match="BatchNorm1d has no trainable linear or convolutional layer"):
        find_kfac_layers(nn.BatchNorm1d(3))

    class Bypassed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.first(x) @ self.second.weight

    with pytest.raises(ValueError, match=r"second \(Linear\) has trainable weights and was not called"):
        kfac(Bypassed(), torch.randn(2, 3), torch.zeros(2).long(), F.cross_entropy)


@pytest.mark.parametrize("fails", [False, True])
def test_decomposition_of_a_matrix_of_low_rank(fails, monkeypatch):
    rows = torch.randn(6, 400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrix = (rows.T @ rows).float()

    def refuses(_):
        raise torch.linalg.LinAlgError("did not converge")

    if fails:
        monkeypatch.setattr(torch.linalg, "eigh", refuses)
    values, vectors = decompose_psd(matrix)
    assert values.dtype == torch.float32
    assert (values >= 0).all()
    assert (values > 1).sum() == 6
    torch.testing.assert_close((vectors * values) @ vectors.T, matrix, rtol=0, atol=2e-3)
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(400).to(vectors), rtol=0, atol=1e-5)
