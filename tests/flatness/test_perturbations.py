"""The perturbation formulas against closed forms, published values, and the exact maximum."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from flatbayes.flatness import ASAM, SAM, FisherSAM
from flatbayes.flatness.asam import adaptive_perturbation, adaptive_scale
from flatbayes.flatness.fisher_sam import fisher_perturbation, inverse_diagonal, relative_weight
from flatbayes.flatness.sam import euclidean_perturbation


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_the_euclidean_perturbation_is_joint_over_tensors():
    grads = [vector(3.0), vector(0.0, 4.0)]
    e = euclidean_perturbation(grads, 0.5).to_tensors()
    torch.testing.assert_close(torch.cat(e), vector(0.3, 0.0, 0.4))


def test_a_perturbation_is_zero_for_a_zero_gradient():
    assert [t.tolist() for t in euclidean_perturbation([vector(0.0, 0.0)], 0.5).to_tensors()] == [[0, 0]]


@pytest.mark.cpu_path  # an accelerator does not read the norm
def test_a_perturbation_is_not_finite_for_an_overflow():
    assert euclidean_perturbation([vector(1.0)], 0.5).is_finite
    assert not any(euclidean_perturbation([vector(1.0, bad)], 0.5).is_finite for bad in (math.nan, math.inf))


@pytest.mark.parametrize("g", [(3.0, 4.0), (0.0, 0.0), (1e-20, 0.0)])
def test_a_perturbation_is_the_same_if_its_norm_stays_a_tensor(g):
    perturbation = euclidean_perturbation([vector(*g)], 0.5)

    class OnDevice(torch.Tensor):  # a norm on an accelerator, which must not be read
        is_cpu = False

        def item(self):
            raise AssertionError("waits for the device")

    unread = replace(perturbation, norm=perturbation.norm.as_subclass(OnDevice))
    torch.testing.assert_close([t.as_subclass(torch.Tensor) for t in unread.to_tensors()], perturbation.to_tensors())
    assert unread.is_finite


def test_the_adaptive_perturbation_has_the_published_values():
    g, scale = vector(1.0, -2.0, 0.5), vector(0.5, 2.0, 1.0)
    (e,) = adaptive_perturbation([g], [scale], 0.1).to_tensors()
    torch.testing.assert_close(e, vector(0.00615457, -0.19694639, 0.01230915), rtol=0, atol=5e-9)
    assert (e / scale).norm().item() == pytest.approx(0.1, abs=1e-12)
    assert (g @ e).item() == pytest.approx(0.406201920232, abs=1e-11)


def test_the_adaptive_scale_is_1_for_all_but_weights():
    weights = {"layer.weight": vector(-2.0, 0.0), "layer.bias": vector(3.0), "weight": vector(1.0)}
    assert [t.tolist() for t in adaptive_scale(weights, 0.01)] == [[2.01, 0.01], [1.0], [1.01]]


def test_the_fisher_perturbation_has_the_published_values():
    g, fisher = vector(1.0, -2.0, 0.5), vector(4.0, 1.0, 0.25)
    (e,) = fisher_perturbation([g], lambda _: [1 / fisher], 0.1).to_tensors()
    torch.testing.assert_close(e, vector(0.01091089, -0.08728716, 0.08728716), rtol=0, atol=5e-9)
    assert (e @ (fisher * e)).item() == pytest.approx(0.01, abs=1e-12)
    assert (g @ e).item() == pytest.approx(0.229128784748, abs=1e-11)


def test_the_fisher_metric_is_relative_to_the_mean_square():
    grads = [vector(1.0), vector(2.0, 3.0)]  # mean square 14 / 3
    inverse = torch.cat(inverse_diagonal(grads, relative_weight(grads, 2.0)))
    torch.testing.assert_close(inverse, 1 / (1 + 2.0 * vector(1.0, 4.0, 9.0) * 3 / 14))
    assert all((t == 1).all() for t in inverse_diagonal(grads, relative_weight(grads, 0.0)))
    assert all((t == 1).all() for t in inverse_diagonal([vector(0.0)], relative_weight([vector(0.0)], 1.0)))


class Quadratic(nn.Module):
    """Loss w'Aw/2 at w = (.3, -.7), whose maximum over a ball of radius .4 is known."""

    A = torch.tensor([[5.0, 1.0], [1.0, 0.5]], dtype=torch.float64)
    WORST = 0.8667240270908724

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(vector(0.3, -0.7))
        self.losses = []

    def closure(self):
        self.zero_grad()
        loss = self.w @ self.A @ self.w / 2
        loss.backward()
        self.losses.append(loss.item())
        return loss.detach()


def test_one_ascent_step_is_first_order_and_further_steps_reach_the_maximum():
    model = Quadratic()
    SAM(rho=0.4)(model.closure, model)()
    assert model.losses == pytest.approx([0.1375, 0.8467625231333479], abs=1e-12)
    model = Quadratic()
    SAM(rho=0.4, ascent_steps=5)(model.closure, model)()
    assert model.losses[1:] == sorted(model.losses[1:])
    assert model.losses[-1] <= model.WORST + 1e-12
    assert model.losses[-1] == pytest.approx(model.WORST, abs=1e-11)


def test_the_gradient_is_that_of_loss_plus_rho_times_gradient_norm_to_first_order():
    def himmelblau(p):
        x, y = p
        return (x**2 + y - 11) ** 2 + (x + y**2 - 7) ** 2

    class Point(nn.Module):
        def __init__(self):
            super().__init__()
            self.p = nn.Parameter(vector(0.3, -1.2))

    errors = []
    for rho in (1e-1, 1e-2, 1e-3, 1e-4):
        model = Point()

        def closure(model=model):
            model.zero_grad()
            loss = himmelblau(model.p)
            loss.backward()
            return loss.detach()

        SAM(rho=rho)(closure, model)()
        w = vector(0.3, -1.2)
        g = torch.autograd.functional.jacobian(himmelblau, w)
        first_order = g + rho * torch.autograd.functional.hessian(himmelblau, w) @ g / g.norm()
        errors.append((model.p.grad - first_order).norm().item())
    assert errors == pytest.approx([3.53e-2, 3.845e-4, 3.877e-6, 3.880e-8], rel=2e-3)
    slope = math.log10(errors[0] / errors[-1]) / 3
    assert 1.95 < slope < 2.05


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SAM(ascent_steps=0), "ascent_steps must be at least 1"),
        (lambda: ASAM(ascent_steps=-1), "ascent_steps must be at least 1"),
        (lambda: ASAM(eta=-0.1), "eta is added"),
        (lambda: ASAM(eta=math.inf), "eta is added"),
        (lambda: FisherSAM(eta=-1.0), "eta weighs"),
    ],
)
def test_invalid_hyperparameters_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def attention():
    return nn.MultiheadAttention(4, 2, batch_first=True)


SCALED = {
    "attention": (attention, lambda net, x: net(x, x, x)[0], {"in_proj_weight", "out_proj.weight"}),
    "lstm": (
        lambda: nn.LSTM(4, 4, batch_first=True),
        lambda net, x: net(x)[0],
        {"weight_ih_l0", "weight_hh_l0"},
    ),
    "weight norm": (
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
        lambda net, x: net(x),
        {"parametrizations.weight.original0", "parametrizations.weight.original1"},
    ),
    "layer norm": (lambda: nn.LayerNorm(4), lambda net, x: net(x), {"weight"}),
    "prelu": (lambda: nn.Sequential(nn.Linear(4, 4), nn.PReLU()), lambda net, x: net(x), {"0.weight", "1.weight"}),
}


@pytest.mark.parametrize("name", SCALED)
def test_asam_scales_every_tensor_with_weight_in_its_name(name):
    make, call, scaled = SCALED[name]
    torch.manual_seed(0)
    model, x = make().double(), torch.randn(3, 5, 4).double()
    passes = []

    def closure():
        model.zero_grad()
        loss = call(model, x).square().sum()
        loss.backward()
        passes.append({n: (p.detach().clone(), p.grad.clone()) for n, p in model.named_parameters()})
        return loss.detach()

    ASAM(rho=0.3, eta=0.02)(closure, model)()
    scale = {n: w.abs() + 0.02 if n in scaled else torch.ones_like(w) for n, (w, _) in passes[0].items()}
    norm = torch.cat([(scale[n] * g).flatten() for n, (_, g) in passes[0].items()]).norm()
    for n, (w, g) in passes[0].items():
        torch.testing.assert_close(passes[1][n][0], w + 0.3 * scale[n] ** 2 * g / norm)
