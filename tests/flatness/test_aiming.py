"""An ascent aimed with a share of the batch, or with some of the parameters."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flatbayes.core import subset_batch
from flatbayes.flatness import ASAM, SAM
from support import Counted, batch, network


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


def asked(flat, model, **kwargs):
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


def test_a_part_aims_and_the_whole_batch_answers():
    model = deterministic()
    grads, loss, seen = asked(SAM(rho=0.3, ascent_batch_fraction=0.25), model)
    assert [size for _, size in seen] == [2, 8]
    aim = gradient(model, X[:2], Y[:2])
    norm = nn.utils.get_total_norm(aim)
    weights = [p.detach().clone() for p in model.parameters()]
    with torch.no_grad():
        for p, g in zip(model.parameters(), aim, strict=True):
            p += 0.3 * g / norm
        assert loss.item() == pytest.approx(F.cross_entropy(model(X), Y).item())
    for found, expected in zip(grads, gradient(model), strict=True):
        torch.testing.assert_close(found, expected)
    assert all(torch.equal(w, b) for w, b in zip(seen[0][0], weights, strict=True))


def test_every_aim_of_several_is_with_the_part():
    _, _, seen = asked(ASAM(ascent_batch_fraction=0.5, ascent_steps=3), deterministic())
    assert [size for _, size in seen] == [4, 4, 4, 8]


def test_passes_that_aim_use_up_no_noise_unless_it_is_to_be_fresh():
    def after(flat):
        model = network()
        torch.manual_seed(3)
        flat(Counted(model, *batch()), model)()
        return torch.get_rng_state()

    model = network()
    torch.manual_seed(3)
    Counted(model, *batch())()
    plain = torch.get_rng_state()
    assert torch.equal(after(SAM(ascent_batch_fraction=0.5)), plain)
    assert not torch.equal(after(SAM(ascent_batch_fraction=0.5, resample_noise=True)), plain)


@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("params", ["norms", "last_layer", "biases", ["0.*", "3.bias"]], ids=str)
def test_chosen_parameters_move_in_a_ball_of_their_own(params, steps, to_none):
    names = {
        "norms": {"1.weight", "1.bias"},
        "last_layer": {"3.weight", "3.bias"},
        "biases": {"0.bias", "3.bias"},
    }.get(str(params), {"0.weight", "0.bias", "3.bias"})
    model = deterministic()
    grads, _, seen = asked(SAM(rho=0.3, params=params, ascent_steps=steps), model, set_to_none=to_none)
    moved = {}
    for (name, p), first, last in zip(model.named_parameters(), seen[0][0], seen[-1][0], strict=True):
        moved[name] = last - first
        assert moved[name].any().item() is (name in names)
        assert p.requires_grad
    assert torch.cat([e.flatten() for e in moved.values()]).norm().item() == pytest.approx(0.3)
    if steps == 1:
        aim = {n: g for (n, _), g in zip(model.named_parameters(), gradient(model), strict=True) if n in names}
        norm = nn.utils.get_total_norm(list(aim.values()))
        for name, g in aim.items():
            torch.testing.assert_close(moved[name], 0.3 * g / norm)
    with torch.no_grad():
        for p, e in zip(model.parameters(), moved.values(), strict=True):
            p += e
    for found, expected in zip(grads, gradient(model), strict=True):  # all of them, though only some moved
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("part", [1.0, 0.5])
def test_aims_compute_the_gradients_of_chosen_parameters_alone(part):
    model = network()
    learning = []
    inner = Counted(model, *batch())

    def closure():
        learning.append([name for name, p in model.named_parameters() if p.requires_grad])
        return inner()

    SAM(params="norms", ascent_batch_fraction=part, ascent_steps=2)(closure, model)()
    norms, everything = ["1.weight", "1.bias", "6.weight", "6.bias"], [n for n, _ in model.named_parameters()]
    assert learning == [norms, norms, everything]


def test_a_selection_of_nothing_says_what_there_is():
    model = nn.Linear(2, 1)
    with pytest.raises(ValueError, match="params='norms' selects none of the 2 trainable parameters"):
        SAM(params="norms")(lambda: torch.zeros(()), model)()


@pytest.mark.parametrize("kind", [SAM, ASAM])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ascent_batch_fraction": 0.0}, "ascent_batch_fraction is a share"),
        ({"ascent_batch_fraction": 1.5}, "ascent_batch_fraction is a share"),
        ({"params": []}, "params must be"),
    ],
)
def test_refuses_hyperparameters_without_meaning(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(**options)
