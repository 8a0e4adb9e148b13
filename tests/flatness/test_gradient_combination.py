"""WSAM, Stable SAM and GSAM: gradients made of the plain and the flat one, also of vectorized networks."""

import math

import pytest
import torch
from torch import nn

from flatbayes.core.context import vectorized
from flatbayes.flatness import GSAM, SAM, WSAM, Plain, StableSAM
from flatbayes.flatness.gradient_combination import extrapolate_gradient, match_norm, subtract_orthogonal_part
from flatbayes.flatness.looksam import add_direction, orthogonal_direction
from support import Counted, batch, network


def compute_gradient(flat):
    model = network(torch.float64).eval()
    flat(Counted(model, *batch(dtype=torch.float64)), model)()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def test_wsam_is_the_gradient_of_the_loss_plus_the_weighted_sharpness():
    plain, sam = compute_gradient(Plain()), compute_gradient(SAM(rho=0.3))
    torch.testing.assert_close(compute_gradient(WSAM(rho=0.3, gamma=0.8)), plain + 4 * (sam - plain))
    assert torch.equal(compute_gradient(WSAM(rho=0.3, gamma=0.5)), sam)
    assert torch.equal(compute_gradient(WSAM(rho=0.3, gamma=0.0)), plain)
    assert torch.equal(compute_gradient(WSAM(rho=0.0)), plain)


def test_on_a_quadratic_wsam_is_the_gradient_of_its_objective():
    a, rho, gamma, w = 4.0, 0.2, 0.9, torch.tensor([0.6], dtype=torch.float64)
    layer = nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        layer.weight.fill_(w.item())

    def closure():
        layer.zero_grad()
        loss = a * layer.weight.square().sum() / 2
        loss.backward()
        return loss.detach()

    WSAM(rho, gamma)(closure, layer)()
    # L = a w^2 / 2 and L^rho = a (|w| + rho)^2 / 2, so L + 9 (L^rho - L) has the gradient a (w + 9 rho sign w).
    assert layer.weight.grad.item() == pytest.approx(a * (0.6 + 9 * rho), rel=1e-14)


def test_stable_sam_has_the_direction_of_sam_and_the_length_of_the_plain_gradient():
    plain, sam, stable = (compute_gradient(flat) for flat in (Plain(), SAM(rho=0.3), StableSAM(rho=0.3)))
    assert stable.norm().item() == pytest.approx(plain.norm().item(), rel=1e-14)
    torch.testing.assert_close(stable / stable.norm(), sam / sam.norm())
    assert sam.norm().item() != pytest.approx(plain.norm().item(), rel=0.01)


def test_gsam_subtracts_what_is_orthogonal_to_the_flat_gradient():
    plain, sam, gsam = (compute_gradient(flat) for flat in (Plain(), SAM(rho=0.3), GSAM(rho=0.3, alpha=0.7)))
    difference = (sam - gsam) / 0.7
    assert (difference @ sam).item() == pytest.approx(0, abs=1e-13)
    along = plain - difference
    torch.testing.assert_close(along, (along @ sam) / (sam @ sam) * sam)
    torch.testing.assert_close(compute_gradient(GSAM(rho=0.3, alpha=0.0)), sam, rtol=1e-15, atol=0)


@pytest.mark.parametrize(
    "combine",
    [
        lambda g, f: extrapolate_gradient(g, f, 3.0),
        match_norm,
        lambda g, f: subtract_orthogonal_part(g, f, 0.7),
        lambda g, f: [t.copy_(d) for t, d in zip(f, orthogonal_direction(g, f), strict=True)],
        lambda g, f: add_direction(f, g, 0.7),
    ],
    ids=["WSAM", "StableSAM", "GSAM", "LookSAM, SAM step", "LookSAM, other step"],
)
def test_vectorized_networks_have_the_gradients_that_they_have_alone(combine):
    generator = torch.Generator().manual_seed(0)
    g, f = ([torch.randn(3, *shape, generator=generator).double() for shape in [(4, 2), (2,), ()]] for _ in "gf")
    for tensor in f:
        tensor[2] = 0  # one of the networks has a zero gradient
    alone = [([t[k].clone() for t in g], [t[k].clone() for t in f]) for k in range(3)]
    for plain, flat in alone:
        combine(plain, flat)
    with vectorized(3):
        combine(g, f)
    for k, (_, flat) in enumerate(alone):
        for stacked, single in zip(f, flat, strict=True):
            torch.testing.assert_close(stacked[k], single, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("make", "message"),
    [(lambda: WSAM(gamma=1.0), "gamma must be"), (lambda: GSAM(alpha=-0.1), "alpha must be finite")],
)
def test_invalid_hyperparameters_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_only_those_that_are_gradients_of_one_loss_say_so():
    assert [f.stationary_after for f in (WSAM(), GSAM(alpha=0.0))] == [0, 0]
    assert [f.stationary_after for f in (StableSAM(), GSAM())] == [math.inf] * 2
