"""Flatness in a training loop of the user's: optimisers, schedulers, clipping, accumulation, autocast, GradScaler."""

import copy
import math
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flatbayes.core import TrainingProgress, subset_batch
from flatbayes.core.spec import short_name
from flatbayes.flatness import SAM, Plain
from support import FLAT, alternating_params, distribute_all_weights

DENSE = [
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.RMSprop,
    torch.optim.Adagrad,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.Adadelta,
    torch.optim.Adamax,
    torch.optim.ASGD,
    torch.optim.Rprop,
]


def task(dtype=torch.float32):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 3)).to(
        dtype
    )
    x = torch.randn(60, 6, dtype=dtype)
    return model, x, x[:, :3].argmax(1)


def plain_closure(model, optimizer, x, y):
    def closure():
        optimizer.zero_grad()
        inputs, targets = subset_batch(x, y)
        loss = F.cross_entropy(model(inputs), targets)
        loss.backward()
        return loss.detach()

    return closure


@pytest.mark.parametrize(
    ("make", "flat"),
    alternating_params(DENSE, FLAT, every=4),
    ids=lambda value: getattr(value, "__name__", None) or short_name(value),
)
def test_any_optimizer_learns(make, flat):
    model, x, y = task()
    optimizer = make(
        model.parameters(), **({} if make in (torch.optim.Adadelta, torch.optim.Rprop) else {"lr": 0.05})
    )
    losses, progress = [], TrainingProgress(total_steps=25)
    for _ in range(25):
        with distribute_all_weights(model):
            losses.append(flat(plain_closure(model, optimizer, x, y), model, progress)().item())
        optimizer.step()
        progress.advance()
    assert losses[-1] < losses[0]
    assert model[1].num_batches_tracked == 25 * getattr(flat, "num_sub_batches", 1)


def test_an_optimizer_that_calls_the_closure():
    model, x, y = task(torch.float64)
    model.eval()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=5)
    closure = SAM(rho=0.01)(plain_closure(model, optimizer, x, y), model)
    first = closure().item()
    for _ in range(5):
        optimizer.step(closure)
    assert closure().item() < first / 2


def test_scheduler_and_state_dict_are_untouched():
    model, x, y = task()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
    rates = []
    for k in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        SAM()(plain_closure(model, optimizer, x, y), model)()
        optimizer.step()
        scheduler.step()
        if k == 4:
            saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), scheduler.state_dict()))
            rng = torch.get_rng_state()
    assert rates[5] == pytest.approx(0.05)
    expected = [p.detach().clone() for p in model.parameters()]

    model, x, y = task()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
    for restored, state in zip((model, optimizer, scheduler), saved, strict=True):
        restored.load_state_dict(state)
    torch.set_rng_state(rng)
    for _ in range(5):
        SAM()(plain_closure(model, optimizer, x, y), model)()
        optimizer.step()
        scheduler.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), expected, strict=True))


def test_clipping_acts_on_the_final_gradient():
    model, x, y = task()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    SAM(rho=0.5)(plain_closure(model, optimizer, x, y), model)()
    before = nn.utils.clip_grad_norm_(model.parameters(), 0.01)
    assert before > 0.01
    assert nn.utils.get_total_norm([p.grad for p in model.parameters()]).item() == pytest.approx(0.01, rel=1e-4)
    optimizer.step()


def test_accumulation_inside_the_closure_is_one_large_batch():
    grads = []
    for pieces in (1, 4):
        model, x, y = task(torch.float64)
        model.eval()  # BatchNorm and dropout see batches, not examples

        def closure(model=model, x=x, y=y, pieces=pieces):
            model.zero_grad()
            total = torch.zeros(())
            for micro_batch, target in zip(x.chunk(pieces), y.chunk(pieces), strict=True):
                loss = F.cross_entropy(model(micro_batch), target) / pieces
                loss.backward()
                total += loss.detach()
            return total

        SAM(rho=0.3)(closure, model)()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.parametrize("where", ["inside the closure", "around the step"])
def test_bf16_autocast_computes_at_the_perturbed_weights(where):
    grads = {}
    for rho in (0.0, 0.5):
        model, x, y = task()
        model.eval()
        inside = torch.autocast("cpu", torch.bfloat16, enabled=where == "inside the closure")
        around = torch.autocast("cpu", torch.bfloat16, enabled=where == "around the step")

        def closure(model=model, x=x, y=y, inside=inside):
            model.zero_grad()
            with inside:
                loss = F.cross_entropy(model(x).float(), y)
            loss.backward()
            return loss.detach()

        with around:
            SAM(rho=rho)(closure, model)()
        grads[rho] = torch.cat([p.grad.flatten() for p in model.parameters()])

        if rho:  # the same by hand, with fresh casts: perturbed weights that stay
            fresh, _, _ = task()
            fresh.eval()
            with torch.autocast("cpu", torch.bfloat16):
                F.cross_entropy(fresh(x).float(), y).backward()
            g = [p.grad.clone() for p in fresh.parameters()]
            norm = nn.utils.get_total_norm(g)
            fresh.zero_grad()
            with torch.no_grad():
                for p, gradient in zip(fresh.parameters(), g, strict=True):
                    p += gradient * (rho / norm)
            with torch.autocast("cpu", torch.bfloat16):
                F.cross_entropy(fresh(x).float(), y).backward()
            expected = torch.cat([p.grad.flatten() for p in fresh.parameters()])
            error = (grads[rho] - expected).norm() / expected.norm()
            stale = (grads[0.0] - expected).norm() / expected.norm()  # what stale casts would give
            assert error < 0.02
            assert stale > 0.2


def test_grad_scaler_gives_the_step_of_no_scaler_and_survives_overflow():
    results = []
    for scaled in (False, True):
        model, x, y = task()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14, enabled=scaled)
        for _ in range(5):

            def closure(model=model, x=x, y=y, scaler=scaler, optimizer=optimizer):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y)
                scaler.scale(loss).backward()
                return loss.detach()

            SAM(rho=0.1)(closure, model)()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
        results.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)

    before, scale = results[1], scaler.get_scale()
    calls = []

    def overflowing():
        calls.append(1)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y) * math.inf
        scaler.scale(loss).backward()
        return loss.detach()

    SAM(rho=0.1)(overflowing, model)()
    scaler.step(optimizer)
    scaler.update()
    assert calls == [1]
    assert torch.equal(torch.cat([p.detach().flatten() for p in model.parameters()]), before)
    assert scaler.get_scale() < scale


def test_plain_is_the_closure_itself():
    model, x, y = task()
    closure = plain_closure(model, torch.optim.SGD(model.parameters(), lr=0.1), x, y)
    assert Plain()(closure, model) is closure


def test_zeroing_in_place_makes_no_difference():
    grads = []
    for to_none in (True, False):
        model, x, y = task()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            torch.manual_seed(1)

            def closure(model=model, optimizer=optimizer, x=x, y=y, to_none=to_none):
                optimizer.zero_grad(set_to_none=to_none)
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                return loss.detach()

            SAM(rho=0.1, ascent_steps=2)(closure, model)()
            optimizer.step()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert torch.equal(grads[0], grads[1])


def test_what_is_no_model_is_refused():
    code = """
from torch import nn
from flatbayes import flatness
from flatbayes.core import TrainingProgress

model = nn.Linear(2, 2)
for name in sorted(set(flatness.__all__) - {"Flatness", "Plain", "Delayed"}):
    method = getattr(flatness, name)
    if isinstance(method, type) and issubclass(method, flatness.Flatness):
        for given in ([*model.parameters()], model.parameters(), print):
            try:
                method()(lambda: None, given, TrainingProgress(total_steps=1))()
            except TypeError as error:
                assert "The model must be an nn.Module, got a" in str(error), error
                print(name)
"""
    # In a process of its own, without the checks of types that the tests add.
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert len(result.stdout.split()) == 3 * 16
