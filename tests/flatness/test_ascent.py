"""The ascent loop: on a part of the batch or of the parameters, with one rule for buffers, loss and random state."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flatbayes.core import subset_batch
from flatbayes.flatness import ASAM, SAM, Plain
from support import Counted, assert_same, batch, network, snapshot


def deterministic():
    """A network without noise or running statistics, in float64."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 3)).double()


X = torch.randn(8, 4, generator=torch.Generator().manual_seed(2)).double()
Y = torch.arange(8) % 3


def gradient(model, x=X, y=Y):
    model.zero_grad()
    F.cross_entropy(model(x), y).backward()
    return [p.grad.clone() for p in model.parameters()]


def record_passes(flat, model, **kwargs):
    """Gradient, loss, and for each pass the weights and the number of examples."""
    seen = []

    def closure():
        x, y = subset_batch(X, Y)
        seen.append(([p.detach().clone() for p in model.parameters()], len(x)))
        model.zero_grad(**kwargs)
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss.detach()

    loss = flat(closure, model)()
    return [p.grad for p in model.parameters()], loss, seen


def test_the_ascent_is_on_the_first_examples_and_the_gradient_on_all():
    model = deterministic()
    grads, loss, seen = record_passes(SAM(rho=0.3, ascent_batch_fraction=0.25), model)
    assert [size for _, size in seen] == [2, 8]
    with torch.no_grad():
        assert loss.item() == pytest.approx(F.cross_entropy(model(X[:2]), Y[:2]).item())
    ascent = gradient(model, X[:2], Y[:2])
    norm = nn.utils.get_total_norm(ascent)
    weights = [p.detach().clone() for p in model.parameters()]
    with torch.no_grad():
        for p, g in zip(model.parameters(), ascent, strict=True):
            p += 0.3 * g / norm
    torch.testing.assert_close(grads, gradient(model))
    assert all(torch.equal(w, b) for w, b in zip(seen[0][0], weights, strict=True))


def test_every_ascent_step_is_on_the_first_examples():
    _, _, seen = record_passes(ASAM(ascent_batch_fraction=0.5, ascent_steps=3), deterministic())
    assert [size for _, size in seen] == [4, 4, 4, 8]


def run_step(flat, rows=12):
    """A step of a network with BatchNorm and dropout: everything it leaves, its gradient, and its loss."""
    model, (x, y) = network(), batch()

    def closure():
        inputs, targets = subset_batch(x[:rows], y[:rows])
        return Counted(model, inputs, targets)()

    torch.manual_seed(3)
    loss = flat(closure, model)()
    return snapshot(model), [p.grad for p in model.parameters()], loss


@pytest.mark.parametrize("kind", [SAM, ASAM])
@pytest.mark.parametrize("steps", [1, 2])
def test_the_batch_fraction_is_continuous_at_1(kind, steps):
    whole, almost = (run_step(kind(ascent_batch_fraction=f, ascent_steps=steps)) for f in (1.0, 0.99))  # 12 of 12
    assert_same(whole[0], almost[0])
    assert all(torch.equal(*grads) for grads in zip(whole[1], almost[1], strict=True))
    assert torch.equal(whole[2], almost[2])


@pytest.mark.parametrize("fraction", [1.0, 0.5])
@pytest.mark.parametrize("steps", [1, 2])
def test_buffers_and_loss_are_those_of_the_first_pass_and_the_random_state_that_of_the_whole_batch(fraction, steps):
    after, _, loss = run_step(SAM(rho=0.3, ascent_batch_fraction=fraction, ascent_steps=steps))
    first, _, first_loss = run_step(Plain(), rows=round(12 * fraction))
    whole, _, _ = run_step(Plain())
    assert torch.equal(loss, first_loss)
    assert_same(after, {**first, "rng": whole["rng"]})


def test_resampled_noise_uses_the_random_numbers_of_all_passes():
    replayed, _, _ = run_step(SAM(ascent_batch_fraction=0.5))
    resampled, _, _ = run_step(SAM(ascent_batch_fraction=0.5, resample_noise=True))
    assert not torch.equal(resampled["rng"], replayed["rng"])


@pytest.mark.cpu_path  # on accelerators the passes go on: tests/flatness/test_nonfinite_gradients.py
@pytest.mark.parametrize("flat", [SAM(ascent_batch_fraction=0.5), SAM(params="norms")], ids=str)
def test_an_overflow_in_a_partial_pass_ends_the_step(flat):
    model = network()
    inner = Counted(model, *batch())

    def closure():
        loss = inner()
        for p in model.parameters():
            if p.grad is not None:
                p.grad *= math.inf
        return loss

    flat(closure, model)()
    assert inner.calls == 1
    assert not all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("params", ["norms", "last_layer", "biases", ["0.*", "3.bias"]], ids=str)
def test_selected_parameters_are_perturbed_in_a_ball_of_their_own(params, steps, to_none):
    names = {
        "norms": {"1.weight", "1.bias"},
        "last_layer": {"3.weight", "3.bias"},
        "biases": {"0.bias", "3.bias"},
    }.get(str(params), {"0.weight", "0.bias", "3.bias"})
    model = deterministic()
    grads, _, seen = record_passes(SAM(rho=0.3, params=params, ascent_steps=steps), model, set_to_none=to_none)
    perturbations = {}
    for (name, p), first, last in zip(model.named_parameters(), seen[0][0], seen[-1][0], strict=True):
        perturbations[name] = last - first
        assert perturbations[name].any().item() is (name in names)
        assert p.requires_grad
    assert torch.cat([e.flatten() for e in perturbations.values()]).norm().item() == pytest.approx(0.3)
    if steps == 1:
        ascent = {n: g for (n, _), g in zip(model.named_parameters(), gradient(model), strict=True) if n in names}
        norm = nn.utils.get_total_norm(list(ascent.values()))
        for name, g in ascent.items():
            torch.testing.assert_close(perturbations[name], 0.3 * g / norm)
    with torch.no_grad():
        for p, e in zip(model.parameters(), perturbations.values(), strict=True):
            p += e
    torch.testing.assert_close(grads, gradient(model))  # of all parameters, though only some are perturbed


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_the_ascent_computes_the_gradients_of_selected_parameters_only(fraction):
    model = network()
    trainable = []
    inner = Counted(model, *batch())

    def closure():
        trainable.append([name for name, p in model.named_parameters() if p.requires_grad])
        return inner()

    SAM(params="norms", ascent_batch_fraction=fraction, ascent_steps=2)(closure, model)()
    norms, everything = ["1.weight", "1.bias", "6.weight", "6.bias"], [n for n, _ in model.named_parameters()]
    assert trainable == [norms, norms, everything]


def test_the_error_for_an_empty_selection_lists_the_parameters():
    model = nn.Linear(2, 1)
    with pytest.raises(ValueError, match="params='norms' selects none of the 2 trainable parameters"):
        SAM(params="norms")(lambda: torch.zeros(()), model)()


@pytest.mark.parametrize("kind", [SAM, ASAM])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ascent_batch_fraction": 0.0}, "ascent_batch_fraction is a fraction"),
        ({"ascent_batch_fraction": 1.5}, "ascent_batch_fraction is a fraction"),
        ({"params": []}, "params must be"),
    ],
)
def test_invalid_hyperparameters_are_refused(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(**options)
