"""Loss as a function of the weights; every call restores the state of the network."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flatbayes.core.tensor_lists import flatten, unflatten
from flatbayes.core.weights import trainable_parameters
from flatbayes.diagnostics import (
    HessianVectorProduct,
    LossSurface,
    Plane,
    SharpnessConfig,
    compute_curvature,
    loss_along,
    loss_over,
    measure_sharpness,
    random_direction,
)
from flatbayes.diagnostics.hessian import central_difference
from support import assert_same, batch, network, snapshot


class FailsAt(nn.Module):
    """A loss that draws random numbers and raises at one of its calls."""

    def __init__(self, model, call):
        super().__init__()
        self.model, self.calls, self.call = model, 0, call

    def __call__(self, outputs, targets):
        self.calls += 1
        torch.rand(3)
        if self.calls == self.call:
            self.model.train()
            raise ArithmeticError("on purpose")
        return F.cross_entropy(outputs, targets)


def batches(dtype=torch.float64):
    return [batch(0, dtype=dtype), batch(1, size=5, dtype=dtype)]


SMALL = SharpnessConfig(ascent_steps=2, num_random_starts=1, num_directions=2)
DIAGNOSTICS = {
    "sharpness": lambda s: measure_sharpness(s, SMALL),
    "curvature": lambda s: compute_curvature(s, 2, 2),
    "differences": lambda s: central_difference(s, [torch.ones_like(p) for p in s.params], 0.01),
    "line": lambda s: loss_along(s, random_direction(s), [0.0, 0.5]),
    "line, re-estimated": lambda s: loss_along(s, random_direction(s), [0.0, 0.5], [x for x, _ in batches()]),
    "grid": lambda s: loss_over(s, Plane(*(random_direction(s, 0, k) for k in range(3))), [0.0, 0.5], [0.1]),
}


def make_network(as_training):
    model = network(torch.float64).train(as_training)
    model[5].weight.grad = torch.full_like(model[5].weight, 3.0)
    return model


@pytest.mark.parametrize("as_it_is", [False, True])
@pytest.mark.parametrize("as_training", [False, True])
@pytest.mark.parametrize("name", DIAGNOSTICS)
def test_state_is_restored(name, as_training, as_it_is):
    model = make_network(as_training)
    grad = model[5].weight.grad
    before = snapshot(model)
    surface = LossSurface(model, FailsAt(model, None), batches(), keep_mode=as_it_is)
    DIAGNOSTICS[name](surface)
    assert surface.loss_fn.calls > 2
    assert_same(before, snapshot(model))
    assert model[5].weight.grad is grad
    assert bool((grad == 3).all())
    assert all(p.grad is None for p in model.parameters() if p is not model[5].weight)


@pytest.mark.parametrize("call", [1, 4])
@pytest.mark.parametrize("name", DIAGNOSTICS)
def test_state_is_restored_after_an_exception(name, call):
    model = make_network(True)
    before = snapshot(model)
    with pytest.raises(ArithmeticError, match="on purpose"):
        DIAGNOSTICS[name](LossSurface(model, FailsAt(model, call), batches(), keep_mode=True))
    assert_same(before, snapshot(model))
    assert bool((model[5].weight.grad == 3).all())


def test_loss_is_the_mean_over_all_examples_for_any_batches():
    model = network(torch.float64).eval()
    examples = batches()
    inputs, targets = torch.cat([x for x, _ in examples]), torch.cat([y for _, y in examples])
    loss = F.cross_entropy(model(inputs), targets)
    expected = torch.autograd.grad(loss, trainable_parameters(model))
    surface = LossSurface(model, F.cross_entropy, iter(examples))
    result, grads = surface.gradient()
    assert result == pytest.approx(loss.item(), rel=1e-14)
    assert surface.loss() == pytest.approx(loss.item(), rel=1e-14)
    torch.testing.assert_close(flatten(grads), flatten(expected), rtol=1e-12, atol=1e-14)
    assert surface.num_examples == 17
    assert surface.num_params == sum(p.numel() for p in model.parameters())


def test_loss_of_a_perturbation_equals_that_of_a_perturbed_copy():
    model = network(torch.float64).eval()
    surface = LossSurface(model, F.cross_entropy, batches())
    offsets = [0.1 * torch.randn_like(p) for p in surface.params]
    other = copy.deepcopy(model)
    with torch.no_grad():
        for param, offset in zip(other.parameters(), offsets, strict=True):
            param.add_(offset)
    assert surface.loss(offsets) == LossSurface(other, F.cross_entropy, batches()).loss()
    assert surface.gradient(offsets)[0] == pytest.approx(surface.loss(offsets), rel=1e-14)


def test_network_is_in_eval_mode_by_default():
    model = network(torch.float64).train()
    trained = LossSurface(model, F.cross_entropy, batches(), keep_mode=True).loss()
    result = LossSurface(model, F.cross_entropy, batches()).loss()
    model.eval()
    assert result == LossSurface(model, F.cross_entropy, batches(), keep_mode=True).loss() != trained


def test_dropout_masks_are_constant():
    model = network(torch.float64).eval()
    model[8].train()
    surface = LossSurface(model, F.cross_entropy, batches(), keep_mode=True)
    first = surface.loss()
    torch.rand(10)
    assert surface.loss() == first
    torch.manual_seed(5)
    assert LossSurface(model, F.cross_entropy, batches(), keep_mode=True).loss() != first
    assert LossSurface(model, F.cross_entropy, batches()).loss() != first


def test_works_inside_no_grad():
    model = network(torch.float64)
    surface = LossSurface(model, F.cross_entropy, batches())
    with torch.no_grad():
        assert flatten(surface.gradient()[1]).norm() > 0
        assert HessianVectorProduct(surface).matvec(torch.ones(surface.num_params, dtype=torch.float64)).norm() > 0
        assert not torch.is_grad_enabled()


def test_unused_weights_have_zero_gradient():
    model = nn.ModuleDict({"used": nn.Linear(2, 1), "idle": nn.Linear(2, 1)}).double()
    model.forward = lambda x: model["used"](x)
    surface = LossSurface(model, F.mse_loss, [(torch.ones(3, 2).double(), torch.ones(3, 1).double())])
    assert bool((surface.gradient()[1][2] == 0).all())
    product = unflatten(HessianVectorProduct(surface).matvec(torch.ones(6, dtype=torch.float64)), surface.params)
    assert product[0].norm() > 0
    assert product[2].norm() == 0


class Hidden(nn.Module):
    """A network whose weights are not parameters."""

    def __init__(self, trainable_too):
        super().__init__()
        self.other = [nn.Linear(64, 3)]
        self.own = nn.Linear(1, 1) if trainable_too else nn.Identity()

    def forward(self, x):
        return self.other[0](x.flatten(1)).detach()


def test_network_without_trainable_weights_is_refused():
    with pytest.raises(ValueError, match="Hidden has no trainable weights to perturb"):
        LossSurface(Hidden(False), F.cross_entropy, [batch()])
    with pytest.raises(ValueError, match="does not depend on its trainable weights"):
        LossSurface(Hidden(True), F.cross_entropy, [batch()]).gradient()
    with pytest.raises(ValueError, match="at least one example, got none"):
        LossSurface(network(), F.cross_entropy, [])
