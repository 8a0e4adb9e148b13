"""Laws that every exported flatness obeys: side effects, cost, perturbation, resuming, serialisation."""

import copy
import math
from dataclasses import fields, replace

import pytest
import torch
from beartype.roar import BeartypeCallHintViolation
from torch import nn

from flatbayes.core import TrainingProgress, subset_batch
from flatbayes.core.gaussians import weight_distribution
from flatbayes.core.parameter_selection import select_parameters
from flatbayes.core.randomness import RandomState
from flatbayes.core.spec import instantiate, short_name, to_spec
from flatbayes.flatness import (
    ASAM,
    GSAM,
    LESAM,
    MSAM,
    SAM,
    WSAM,
    Delayed,
    FisherSAM,
    Flatness,
    FriendlySAM,
    GaussianSmoothing,
    LookSAM,
    Periodic,
    Plain,
    PosteriorSAM,
    RandomPerturbation,
    StableSAM,
    VaSSO,
)
from flatbayes.flatness.asam import adaptive_scale
from flatbayes.flatness.fisher_sam import inverse_diagonal, relative_weight
from support import (
    BALLS,
    FLAT,
    FLATNESSES,
    WITH_RADIUS,
    Counted,
    assert_same,
    batch,
    distribute_all_weights,
    get_weight_distribution,
    innermost,
    make_active_progress,
    named,
    network,
    snapshot,
    starts_at_the_weights,
    with_radius,
)

ASCENTS = [f for f in BALLS if not isinstance(f, RandomPerturbation)]  # perturbed along the gradient
SCALE_FREE = [f for f in FLATNESSES if not isinstance(innermost(f), LESAM)]  # its budget has the unit of the loss
# An overflow is seen in a gradient, so those with just one gradient have perturbed the weights by then.
FIRST_PASS_AT_WEIGHTS = [f for f in FLATNESSES if starts_at_the_weights(f)]
WITH_PROGRESS = MSAM | LookSAM | Periodic | Delayed | GaussianSmoothing | RandomPerturbation | VaSSO | FriendlySAM
NEEDS_PROGRESS = [f for f in FLATNESSES if isinstance(f, WITH_PROGRESS) or (isinstance(f, LESAM) and f.anneal > 0)]

AT_PERTURBED_WEIGHTS = [f for f in BALLS if not isinstance(f, WSAM | StableSAM | GSAM)]  # their gradient is of two

every_flatness = pytest.mark.parametrize("flat", FLATNESSES, ids=named(FLATNESSES))
every_flat = pytest.mark.parametrize("flat", FLAT, ids=named(FLAT))
every_ball = pytest.mark.parametrize("flat", BALLS, ids=named(BALLS))


def call_flat(flat, closure, model, progress=None):
    """Call the flat closure at a step where it perturbs, with a weight distribution for every parameter."""

    def whole_closure():
        loss = closure()
        subset_batch(torch.zeros(1))  # to MSharpness a batch of one example, unless the closure subsets its own
        return loss

    with distribute_all_weights(model):
        return flat(whole_closure, model, make_active_progress(flat, model) if progress is None else progress)()


@every_flatness
def test_leaves_everything_as_one_plain_call_does(flat):
    model, plain_model = network(), network()
    begin = snapshot(model)["weights"]
    closure = Counted(model, *batch(), seen=[])
    torch.manual_seed(3)
    loss = call_flat(flat, closure, model)

    with torch.no_grad():
        for param, value in zip(plain_model.parameters(), closure.seen[0], strict=True):
            param.copy_(value)
    torch.manual_seed(3)
    plain_loss = Counted(plain_model, *batch())()

    assert_same(snapshot(model), snapshot(plain_model) | {"weights": begin})
    assert torch.equal(loss, plain_loss)
    if not isinstance(flat, Plain):
        original = network()
        torch.manual_seed(3)
        Counted(original, *batch())()
        grads = zip(model.parameters(), original.parameters(), strict=True)
        assert any(not torch.equal(a.grad, b.grad) for a, b in grads)


@every_flatness
def test_costs_what_is_declared(flat):
    model, progress, spent = network(), TrainingProgress(total_steps=20), []
    inner = Counted(model, *batch())

    def closure():
        (rows,) = subset_batch(torch.arange(12))
        spent.append(len(rows) / 12)
        return inner()

    for _ in range(20):
        call_flat(flat, closure, model, progress)
        progress.advance()
    assert sum(spent) / 20 == pytest.approx(flat.gradients_per_step)


@every_flatness
def test_a_closure_that_ignores_the_batch_fraction_computes_whole_gradients(flat):
    model = network()
    closure = Counted(model, *batch())
    call_flat(flat, closure, model)
    inner = innermost(flat)
    single_pass = isinstance(inner, Plain | MSAM | GaussianSmoothing)
    ascent_steps = 0 if single_pass else getattr(inner, "ascent_steps", 1)
    assert closure.calls == 1 + ascent_steps


@every_flat
def test_a_failure_in_any_pass_restores_everything(flat):
    count = Counted(network(), *batch())
    call_flat(flat, count, count.model)
    for fail_at in range(1, count.calls + 1):
        model, plain_model = network(), network()
        begin = snapshot(model)
        torch.manual_seed(3)
        if fail_at > 1:
            Counted(plain_model, *batch())()
        expected = snapshot(plain_model)
        torch.manual_seed(3)
        with pytest.raises(ArithmeticError):
            call_flat(flat, Counted(model, *batch(), fail_at=fail_at), model)
        after = snapshot(model)
        assert all(torch.equal(after["weights"][name], value) for name, value in begin["weights"].items())
        assert all(param.requires_grad for param in model.parameters())
        if fail_at > 1:  # what a failing first pass leaves is that of the closure itself
            assert all(torch.equal(after["buffers"][name], value) for name, value in expected["buffers"].items())
            assert after["mode"] == expected["mode"]
            assert torch.equal(after["rng"], expected["rng"])


@every_flat
def test_a_run_resumed_from_its_progress_is_the_same_bit_for_bit(flat):
    def steps(model, optimizer, progress, count):
        for _ in range(count):
            with distribute_all_weights(model):
                flat(Counted(model, *batch(progress.step % 3)), model, progress)()
            optimizer.step()
            progress.advance()

    def make_run():
        model = network()
        return model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), TrainingProgress(total_steps=12)

    torch.manual_seed(3)
    straight = make_run()
    steps(*straight, 7)
    saved, rng = copy.deepcopy([stateful.state_dict() for stateful in straight]), torch.get_rng_state()
    steps(*straight, 5)

    resumed = make_run()
    for stateful, state in zip(resumed, saved, strict=True):
        stateful.load_state_dict(state)
    torch.set_rng_state(rng)
    steps(*resumed, 5)
    assert_same(snapshot(straight[0]), snapshot(resumed[0]))
    for name, tensor in straight[2].flatness_state.items():
        assert torch.equal(tensor, resumed[2].flatness_state[name])


@pytest.mark.parametrize("flat", NEEDS_PROGRESS, ids=named(NEEDS_PROGRESS))
def test_the_error_without_progress_gives_the_code_to_write(flat):
    model = network()
    with pytest.raises(ValueError, match=r"progress = TrainingProgress\(total_steps=...\)"):
        flat(Counted(model, *batch()), model)


@pytest.mark.parametrize("flat", [f for f in FLATNESSES if f not in NEEDS_PROGRESS], ids=short_name)
def test_the_others_ignore_the_progress(flat):
    grads = []
    for progress in ((), (TrainingProgress(step=3),)):
        model = network()
        torch.manual_seed(3)
        with distribute_all_weights(model):
            flat(Counted(model, *batch()), model, *progress)()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert torch.equal(*grads)


@every_ball
def test_the_perturbation_has_the_radius_and_no_feasible_one_rises_faster(flat):
    model = network(torch.float64).eval()
    closure = Counted(model, *batch(dtype=torch.float64), seen=[])
    call_flat(flat, closure, model)
    first, last = closure.seen[0], closure.seen[-1]
    mask = _perturbed_mcall_flat(flat, model)
    e = torch.cat([(b - a).flatten() for a, b in zip(first, last, strict=True)])
    assert not e[~mask].any()
    e = e[mask]
    with torch.no_grad():  # the last perturbation is along the gradient of the pass before
        for p, w in zip(model.parameters(), closure.seen[-2], strict=True):
            p.copy_(w)
    Counted(model, *batch(dtype=torch.float64))()
    g = torch.cat([p.grad.flatten() for p in model.parameters()])[mask]
    with torch.no_grad():
        for p, w in zip(model.parameters(), first, strict=True):
            p.copy_(w)
    scale = _geometry(flat, model)[mask]
    assert torch.linalg.vector_norm(e / scale).item() == pytest.approx(flat.radius, rel=1e-9)
    if flat in ASCENTS:
        reached = g @ e
        for k in range(200):
            z = torch.randn(e.shape, generator=torch.Generator().manual_seed(k), dtype=e.dtype)
            feasible = scale * z * (flat.radius / z.norm())
            assert g @ feasible < reached


@pytest.mark.parametrize("flat", AT_PERTURBED_WEIGHTS, ids=named(AT_PERTURBED_WEIGHTS))
def test_on_an_isotropic_quadratic_the_gradient_is_that_of_the_perturbed_weights(flat):
    a, model = 4.0, Vector([0.3, -0.7, 0.2])
    w = model.weight.detach().clone()
    seen = []

    def closure():
        model.zero_grad()
        seen.append(model.weight.detach().clone())
        loss = a * model.weight.square().sum() / 2
        loss.backward()
        return loss.detach()

    loss = call_flat(flat, closure, model)
    assert loss.item() == pytest.approx(a * seen[0].square().sum().item() / 2)
    assert torch.equal(seen[0], w) is starts_at_the_weights(flat)
    torch.testing.assert_close(model.weight.grad, a * seen[-1])
    if type(flat) is SAM:
        torch.testing.assert_close(seen[-1], w * (1 + flat.radius / w.norm()))


@every_flatness
def test_a_zero_gradient_perturbs_nothing(flat):
    model = Vector([0.5, -0.5])

    def closure():
        model.zero_grad()
        assert model.weight.isfinite().all()
        loss = (model.weight * 0).sum()
        loss.backward()
        return loss.detach()

    assert call_flat(flat, closure, model).item() == 0
    assert model.weight.tolist() == [0.5, -0.5]
    assert model.weight.grad.tolist() == [0, 0]


@pytest.mark.cpu_path  # on accelerators the passes go on: tests/flatness/test_nonfinite_gradients.py
@pytest.mark.parametrize("flat", FIRST_PASS_AT_WEIGHTS, ids=named(FIRST_PASS_AT_WEIGHTS))
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_ends_the_ascent(flat, bad):
    model, calls = Vector([0.5, -0.5]), []

    def closure():
        model.zero_grad()
        calls.append(model.weight.detach().clone())
        loss = (model.weight * torch.tensor([1.0, bad], dtype=torch.float64)).sum()
        loss.backward()
        return loss.detach()

    call_flat(flat, closure, model)
    assert len(calls) == 1
    assert all(w.tolist() == [0.5, -0.5] for w in calls)
    assert model.weight.tolist() == [0.5, -0.5]
    assert not model.weight.grad.isfinite().all()


@every_flatness
def test_parameters_without_gradient_stay_out_of_it(flat):
    model = network()
    model.extra = nn.Parameter(torch.full((3,), 2.0))
    model[0].weight.requires_grad_(False)
    closure = Counted(model, *batch(), seen=[])
    call_flat(flat, closure, model)
    for seen in closure.seen:
        by_name = dict(zip([n for n, _ in model.named_parameters()], seen, strict=True))
        if starts_at_the_weights(flat):  # the others perturb before a gradient shows which parameters take part
            assert by_name["extra"].tolist() == [2, 2, 2]
        assert torch.equal(by_name["0.weight"], model[0].weight)


@every_flat
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_precision_follows_the_model(flat, dtype):
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).to(dtype)
    x, y = torch.randn(6, 5, dtype=dtype), torch.arange(6) % 3
    before = [p.detach().clone() for p in model.parameters()]
    call_flat(flat, Counted(model, x, y), model)
    assert all(p.grad.dtype == dtype and p.grad.isfinite().all() for p in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("flat", SCALE_FREE, ids=named(SCALE_FREE))
def test_does_not_depend_on_the_scale_of_the_loss(flat):
    grads = []
    for scale in (1.0, 2.0**20):
        model = network(torch.float64)
        torch.manual_seed(3)
        inner = Counted(model, *batch(dtype=torch.float64))

        def closure(inner=inner, scale=scale, model=model):
            inner.calls += 1
            model.zero_grad()
            loss = nn.functional.cross_entropy(model(inner.inputs), inner.targets) * scale
            loss.backward()
            return loss.detach()

        call_flat(flat, closure, model)
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]) / scale)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-9, atol=1e-12)


@every_ball
def test_noise_is_replayed_unless_it_is_resampled(flat):
    for resample in (False, True):
        model = Vector([0.5, -0.5])
        draws = []

        def closure(model=model, draws=draws):
            model.zero_grad()
            draws.append(torch.rand(2))
            loss = (model.weight.square() * draws[-1]).sum()
            loss.backward()
            return loss.detach()

        state = RandomState.capture(model)
        call_flat(replace(flat, resample_noise=resample), closure, model)
        assert torch.equal(draws[0], draws[1]) is not resample
        if not resample:
            after = torch.get_rng_state()
            state.restore()
            torch.rand(2)
            assert torch.equal(after, torch.get_rng_state())


@pytest.mark.parametrize("flat", WITH_RADIUS, ids=named(WITH_RADIUS))
@pytest.mark.parametrize("rho", [-0.1, math.inf, math.nan])
def test_an_invalid_radius_is_refused(flat, rho):
    with pytest.raises(ValueError, match="rho is the radius of a ball"):
        with_radius(flat, rho)


@every_flatness
def test_a_word_in_place_of_a_number_is_refused_except_an_automatic_radius(flat):
    for field in fields(flat):
        if field.type is float or field.name == flat.radius_field:
            for word in ("auto", "large"):
                if (field.name, word) != (flat.radius_field, "auto"):
                    changed = copy.copy(flat)
                    object.__setattr__(changed, field.name, word)  # the tests check the types of arguments before
                    with pytest.raises((TypeError, ValueError, BeartypeCallHintViolation)):
                        changed.__post_init__()


@every_flatness
def test_serialisation_round_trips(flat):
    assert instantiate(to_spec(flat), package="flatbayes.flatness") == flat
    assert isinstance(flat, Flatness)


@every_flatness
def test_tied_weights_are_perturbed_once(flat):
    model = Tied()
    closure = Counted(model, torch.randn(6, 4), torch.arange(6) % 4, seen=[])
    call_flat(flat, closure, model)
    assert len(closure.seen[0]) == 1
    if flat in BALLS:
        first, last = closure.seen[0], closure.seen[-1]
        e = last[0] - first[0]
        closure()  # the gradient that the perturbation is along
        scale = _geometry(flat, model).view_as(e)
        assert (e / scale).norm().item() == pytest.approx(flat.radius, rel=1e-4)


def test_adaptive_sharpness_is_invariant_to_rescaling_of_layers():
    def make_rescaled(c):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 5, bias=False), nn.ReLU(), nn.Linear(5, 3, bias=False)).double()
        with torch.no_grad():
            model[0].weight *= c
            model[2].weight /= c
        losses = []

        def closure():
            model.zero_grad()
            x = torch.randn(8, 4, generator=torch.Generator().manual_seed(1)).double()
            loss = nn.functional.cross_entropy(model(x), torch.arange(8) % 3)
            loss.backward()
            losses.append(loss.item())
            return loss.detach()

        return model, closure, losses

    gaps = {}
    for flat in (ASAM(rho=0.2, eta=0.0), SAM(rho=0.2), PosteriorSAM(rho=2.0)):
        for c in (1.0, 10.0):
            model, closure, losses = make_rescaled(c)
            params = list(model.parameters())
            stds = [torch.full_like(p, 0.1 * factor) for p, factor in zip(params, (c, 1 / c), strict=True)]
            with weight_distribution(params, [p.detach() for p in params], stds):  # the same posterior over functions
                flat(closure, model)()
            gaps[type(flat), c] = losses[1] - losses[0]
    for kind in (ASAM, PosteriorSAM):
        assert gaps[kind, 1.0] == pytest.approx(gaps[kind, 10.0], rel=1e-9)
    assert gaps[SAM, 1.0] != pytest.approx(gaps[SAM, 10.0], rel=0.1)


class Vector(nn.Module):
    def __init__(self, values):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(values, dtype=torch.float64))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4, bias=False)
        self.second = nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


def _perturbed_mcall_flat(flat, model):
    """Which weights are perturbed, of all in one vector."""
    selected = select_parameters(model, getattr(flat, "params", "all"), "params")
    return torch.cat([torch.full((p.numel(),), name in selected) for name, p in model.named_parameters()])


def _geometry(flat, model):
    """T, such that the perturbation e has norm ||e / T||, from the weights and gradients that `model` holds."""
    weights = dict(model.named_parameters())
    if isinstance(flat, FisherSAM):
        grads = [w.grad for w in weights.values()]
        inverse = inverse_diagonal(grads, relative_weight(grads, flat.eta))
        return torch.cat([s.sqrt().flatten() for s in inverse])
    if isinstance(flat, PosteriorSAM):
        with distribute_all_weights(model):
            distributions = [get_weight_distribution(w) for w in weights.values()]
        scales = [d.std if flat.geometry == "std" else d.mean.abs() / d.std for d in distributions]
        return torch.cat([s.flatten() for s in scales])
    scale = (
        adaptive_scale(weights, flat.eta)
        if isinstance(flat, ASAM)
        else [torch.ones_like(w) for w in weights.values()]
    )
    return torch.cat([s.detach().flatten() for s in scale])
