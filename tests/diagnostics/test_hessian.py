"""Hessian-vector products, eigenvalues and trace, against the dense Hessian."""

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from flatbayes.core.tensor_lists import flatten, unflatten
from flatbayes.diagnostics import (
    HessianVectorProduct,
    LossSurface,
    compute_curvature,
    estimate_trace,
    largest_eigenvalues,
)
from flatbayes.diagnostics.hessian import calibrate_step, central_difference, materialize_hessian
from flatbayes.models import ViT
from support import alternating_params, batch, network


class Tied(nn.Module):
    """One matrix used in two layers."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(64, 3)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.last(self.second(torch.tanh(self.first(x))).flatten(1))


class Attention(nn.Module):
    """Fused attention, which cannot be differentiated twice."""

    def __init__(self):
        super().__init__()
        self.project, self.last = nn.Linear(8, 12), nn.Linear(32, 3)

    def forward(self, x):
        query, key, value = self.project(x).split(4, -1)
        return self.last(F.scaled_dot_product_attention(query, key, value).flatten(1))


def make_small_network(norm):
    return nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.Tanh(), nn.AvgPool2d(3), nn.Flatten(), nn.Linear(16, 3))


def make_surface(name):
    torch.manual_seed(0)
    model = {
        "no norm": lambda: make_small_network(nn.Identity()),
        "batch norm": lambda: make_small_network(nn.BatchNorm2d(4)),
        "group norm": lambda: make_small_network(nn.GroupNorm(2, 4)),
        "tied": Tied,
    }[name]().double()
    return LossSurface(model, F.cross_entropy, [batch(0, dtype=torch.float64), batch(1, size=7, dtype=torch.float64)])


def dense_hessian(surface):
    """The Hessian by torch.func (forward over reverse, or reverse twice) as a function of one flat vector."""
    names = [name for name, _ in surface.model.named_parameters()]
    inputs = torch.cat([x for x, _ in surface.batches])
    targets = torch.cat([y for _, y in surface.batches])

    def loss(vector):
        params = dict(zip(names, unflatten(vector, surface.params), strict=True))
        return F.cross_entropy(functional_call(surface.model, params, (inputs,)), targets)

    surface.model.eval()
    return torch.autograd.functional.hessian(loss, flatten(surface.params))


NAMES = ["no norm", "batch norm", "group norm", "tied"]


@pytest.mark.parametrize("name", NAMES)
def test_eigenvalues_equal_those_of_the_dense_hessian(name):
    surface = make_surface(name)
    exact = dense_hessian(surface)
    products = HessianVectorProduct(surface)
    assert products.method == "double backward"
    assert surface.num_params > 64  # so that it is Lanczos
    expected = torch.linalg.eigvalsh(exact).flip(0)[:4].tolist()
    assert largest_eigenvalues(products, 4, tolerance=1e-12) == pytest.approx(expected, rel=1e-9)
    vector = torch.randn(len(exact), dtype=torch.float64)
    torch.testing.assert_close(products.matvec(vector), exact @ vector, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", NAMES)
def test_trace_is_within_its_standard_error(name):
    surface = make_surface(name)
    exact = float(dense_hessian(surface).trace())
    trace, error = estimate_trace(HessianVectorProduct(surface), 300)
    assert abs(trace - exact) < 4 * error
    assert error < 0.3 * abs(exact)


def quadratic(matrix):
    matrix = torch.as_tensor(matrix, dtype=torch.float64)
    model = nn.Linear(len(matrix), 1, bias=False).double()
    model.forward = lambda _: model.weight[0]
    return LossSurface(model, lambda w, _: w @ matrix @ w / 2 + w.sum(), [(torch.zeros(2, 1), torch.zeros(2))])


def test_diagonal_quadratic_is_exact():
    values = torch.arange(-3.0, 7.0)
    curvature = compute_curvature(quadratic(torch.diag(values)), 3, 5)
    assert curvature.eigenvalues == pytest.approx((6, 5, 4))
    assert curvature.trace == pytest.approx(15)
    assert curvature.trace_error == pytest.approx(0, abs=1e-12)
    assert curvature.method == "double backward"
    assert largest_eigenvalues(HessianVectorProduct(quadratic(torch.eye(3))), 9) == pytest.approx((1, 1, 1))


def test_standard_error_of_the_trace():
    root = torch.randn(9, 9, dtype=torch.float64)
    matrix = root @ root.T
    surface = quadratic(matrix)
    trace, error = estimate_trace(HessianVectorProduct(surface), 1000)
    off = matrix - torch.diag(matrix.diag())
    assert error == pytest.approx(float((2 * off.square().sum() / 1000).sqrt()), rel=0.05)
    assert abs(trace - matrix.trace()) < 4 * error
    assert estimate_trace(HessianVectorProduct(surface), 10, seed=1) != estimate_trace(
        HessianVectorProduct(surface), 10, seed=2
    )


def test_loss_linear_in_the_weights_has_zero_hessian():
    model = nn.Linear(3, 1).double()
    surface = LossSurface(model, lambda out, _: out.mean(), [(torch.ones(2, 3).double(), torch.ones(2))])
    assert compute_curvature(surface, 2, 2).eigenvalues == (0, 0)


def make_vit():
    return ViT((1, 8, 8), 3, patch=4, dim=16, depth=2, heads=2)


def make_mlp():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 3))


DIFFERENCES = {
    "mlp": make_mlp,
    "relu": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 3)),
    "batch norm": lambda: make_small_network(nn.BatchNorm2d(4)),
    "vit": make_vit,
}


@pytest.mark.parametrize(("name", "dtype"), alternating_params(DIFFERENCES, [torch.float32, torch.float64]), ids=str)
def test_central_differences_agree_with_double_backward_within_their_error(name, dtype, monkeypatch):
    torch.manual_seed(0)
    model, (x, y) = DIFFERENCES[name](), batch(size=32)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(20):  # to a sharper point
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    surface = LossSurface(model.to(dtype), F.cross_entropy, [(x.to(dtype), y)])
    exact = HessianVectorProduct(surface)
    expected = largest_eigenvalues(exact, 1, tolerance=1e-3)[0]
    assert exact.relative_error == 0

    def refuse(*_):
        raise RuntimeError("derivative for aten::nothing is not implemented")

    monkeypatch.setattr(surface, "check_double_backward", refuse)
    products = HessianVectorProduct(surface)
    assert products.method.startswith("central differences of gradients")
    error = abs(largest_eigenvalues(products, 1, tolerance=1e-3)[0] / expected - 1)
    assert error < 3 * products.relative_error + 1e-6
    assert products.relative_error < (0.05 if dtype == torch.float32 else 1e-6)


def test_central_differences_of_a_quadratic_and_of_a_zero_direction():
    surface = quadratic(torch.diag(torch.arange(-3.0, 7.0)))
    direction = [torch.ones(1, 10, dtype=torch.float64)]
    product = central_difference(surface, direction, 0.1)
    torch.testing.assert_close(flatten(product), torch.arange(-3.0, 7.0).double())
    assert flatten(central_difference(surface, [0 * direction[0]], 0.1)).norm() == 0
    length, error = calibrate_step(surface)
    assert length > 1e-6
    assert error < 1e-8


def attention_surface():
    torch.manual_seed(0)
    data = [(x.view(-1, 1, 8, 8), y) for x, y in [batch(0, dtype=torch.float64), batch(1, dtype=torch.float64)]]
    return LossSurface(Attention().double(), F.cross_entropy, data)


def test_fused_attention_is_differentiated_twice_without_fusion_and_the_method_says_so():
    surface = attention_surface()
    curvature = compute_curvature(surface, 2, 100)
    assert curvature.method == "double backward, with attention that is not fused"
    assert curvature.product_error == 0
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        exact = compute_curvature(surface, 2, 100)
        assert exact.method == "double backward"
    assert curvature.eigenvalues == pytest.approx(exact.eigenvalues, rel=1e-9)
    assert curvature.trace == pytest.approx(exact.trace, rel=1e-9)


class WithoutSecondDerivative(torch.autograd.Function):
    """Tanh whose backward pass cannot be differentiated."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x.tanh())
        return x.tanh()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return grad * (1 - ctx.saved_tensors[0] ** 2)


def test_missing_double_backward_uses_differences_and_records_it_with_an_error():
    torch.manual_seed(0)
    model, (x, y) = make_mlp().double(), batch(dtype=torch.float64)
    exact = compute_curvature(LossSurface(model, F.cross_entropy, [(x, y)]), 2, 10)
    model[2].forward = WithoutSecondDerivative.apply
    curvature = compute_curvature(LossSurface(model, F.cross_entropy, [(x, y)]), 2, 10)
    assert curvature.method.startswith("central differences of gradients, since double backward is not available: ")
    assert curvature.eigenvalues == pytest.approx(exact.eigenvalues, rel=1e-6)
    assert curvature.trace == pytest.approx(exact.trace, rel=1e-6)
    assert 0 < curvature.product_error < 1e-6


def test_other_errors_are_raised():
    def loss(outputs, targets):
        raise RuntimeError("of one's own")

    with pytest.raises(RuntimeError, match="of one's own"):
        HessianVectorProduct(LossSurface(network(), loss, [batch()]))


def test_dense_hessian_is_symmetric():
    matrix = torch.tensor([[2.0, 1.0], [1.0, -3.0]]).double()
    torch.testing.assert_close(materialize_hessian(HessianVectorProduct(quadratic(matrix))), matrix)


def test_float32_accuracy():
    surface = make_surface("batch norm")
    exact = compute_curvature(surface, 2, 10)
    surface.model.float()
    rounded = LossSurface(surface.model, F.cross_entropy, [(x.float(), y) for x, y in surface.batches])
    assert compute_curvature(rounded, 2, 10).eigenvalues == pytest.approx(exact.eigenvalues, rel=1e-3)


def test_invalid_arguments_are_refused():
    products = HessianVectorProduct(quadratic(torch.eye(2)))
    with pytest.raises(ValueError, match="at least 2 probes, got 1"):
        estimate_trace(products, 1)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        largest_eigenvalues(products, 0)
    with pytest.raises(RuntimeError, match="not finite"):
        largest_eigenvalues(HessianVectorProduct(quadratic(torch.full((2, 2), torch.inf))))
