"""The displacement formulas against closed forms (oracles O7, O8, O13 of the methods)."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from flatbayes.flatness import ASAM, SAM, FisherSAM, RandomPerturbation
from flatbayes.flatness.asam import adaptive_perturbation, adaptive_scale
from flatbayes.flatness.fisher_sam import fisher_perturbation, inverse_fisher
from flatbayes.flatness.random_perturbation import random_perturbation
from flatbayes.flatness.sam import euclidean_perturbation


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_euclidean_offset_is_joint_over_tensors():
    grads = [vector(3.0), vector(0.0, 4.0)]
    e = euclidean_perturbation(grads, 0.5).to_tensors()
    torch.testing.assert_close(torch.cat(e), vector(0.3, 0.0, 0.4))


def test_an_offset_is_zero_for_a_zero_gradient_and_knows_when_there_is_no_direction():
    assert [t.tolist() for t in euclidean_perturbation([vector(0.0, 0.0)], 0.5).to_tensors()] == [[0, 0]]
    assert euclidean_perturbation([vector(1.0)], 0.5).is_finite
    assert not any(euclidean_perturbation([vector(1.0, bad)], 0.5).is_finite for bad in (math.nan, math.inf))


@pytest.mark.parametrize("g", [(3.0, 4.0), (0.0, 0.0), (1e-20, 0.0)])
def test_an_offset_is_the_same_where_its_norm_cannot_be_read(g):
    offset = euclidean_perturbation([vector(*g)], 0.5)

    class Elsewhere(torch.Tensor):  # a norm on a device that nobody waits for
        is_cpu = False

        def item(self):
            raise AssertionError("waits for the device")

    unread = replace(offset, norm=offset.norm.as_subclass(Elsewhere))
    torch.testing.assert_close([t.as_subclass(torch.Tensor) for t in unread.to_tensors()], offset.to_tensors())
    assert unread.is_finite


def test_adaptive_offset_has_the_published_values():
    g, scale = vector(1.0, -2.0, 0.5), vector(0.5, 2.0, 1.0)
    (e,) = adaptive_perturbation([g], [scale], 0.1).to_tensors()
    torch.testing.assert_close(e, vector(0.00615457, -0.19694639, 0.01230915), rtol=0, atol=5e-9)
    assert (e / scale).norm().item() == pytest.approx(0.1, abs=1e-12)
    assert (g @ e).item() == pytest.approx(0.406201920232, abs=1e-11)


def test_adaptive_scale_tells_weights_from_the_rest():
    weights = {"layer.weight": vector(-2.0, 0.0), "layer.bias": vector(3.0), "weight": vector(1.0)}
    found = adaptive_scale(weights, 0.01)
    assert [t.tolist() for t in found] == [[2.01, 0.01], [1.0], [1.01]]


def test_fisher_offset_has_the_published_values():
    g, fisher = vector(1.0, -2.0, 0.5), vector(4.0, 1.0, 0.25)
    (e,) = fisher_perturbation([g], [1 / fisher], 0.1).to_tensors()
    torch.testing.assert_close(e, vector(0.01091089, -0.08728716, 0.08728716), rtol=0, atol=5e-9)
    assert (e @ (fisher * e)).item() == pytest.approx(0.01, abs=1e-12)
    assert (g @ e).item() == pytest.approx(0.229128784748, abs=1e-11)


def test_the_fisher_metric_is_relative_to_the_mean_square():
    grads = [vector(1.0), vector(2.0, 3.0)]  # mean square 14 / 3
    found = torch.cat(inverse_fisher(grads, 2.0))
    torch.testing.assert_close(found, 1 / (1 + 2.0 * vector(1.0, 4.0, 9.0) * 3 / 14))
    assert all((t == 1).all() for t in inverse_fisher(grads, 0.0))
    assert all((t == 1).all() for t in inverse_fisher([vector(0.0)], 1.0))


def test_random_offset_is_a_function_of_gradient_and_seed():
    g = torch.randn(2000, dtype=torch.float64)
    (one,), (same,), (other,) = (random_perturbation([g], 0.3, seed).to_tensors() for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert one.norm().item() == pytest.approx(0.3)
    (next_step,) = random_perturbation([g * (1 + 1e-15 * 4)], 0.3, 1).to_tensors()
    for unrelated in (other, next_step, g):
        cosine = nn.functional.cosine_similarity(one, unrelated, dim=0)
        assert abs(cosine.item()) < 5 / math.sqrt(2000)


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


def test_one_ascent_step_is_first_order_and_re_aiming_reaches_the_maximum():
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
def test_refuses_hyperparameters_without_meaning(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_random_directions_differ_from_step_to_step():
    model = nn.Linear(3, 2)
    seen = []
    for k in range(3):
        x = torch.randn(5, 3, generator=torch.Generator().manual_seed(k))

        def closure(x=x):
            model.zero_grad()
            seen.append(model.weight.detach().clone())
            loss = model(x).square().mean()
            loss.backward()
            return loss.detach()

        RandomPerturbation(rho=0.1)(closure, model)()
    offsets = [seen[k + 1] - seen[k] for k in (0, 2, 4)]
    assert not torch.allclose(offsets[0], offsets[1], atol=1e-4)
    assert not torch.allclose(offsets[1], offsets[2], atol=1e-4)
