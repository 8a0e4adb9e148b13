"""Laws that hold for every exported posterior."""

import copy
from functools import cache

import pytest
import torch

from flatbayes.core.spec import instantiate, short_name, to_spec
from flatbayes.flatness import SAM, Plain
from flatbayes.posteriors import SWAG, MCDropout, Posterior
from flatbayes.training import CollectionConfig, TrainingConfig, fit
from support import (
    FLAT,
    POSTERIORS,
    Counted,
    advance,
    assert_same,
    batch,
    classes_of,
    descent,
    named,
    needs_weight_distribution,
    network,
    pair_params,
    set_zero_radius,
    sets_weight_distribution,
    snapshot,
    train,
)

every = pytest.mark.parametrize("posterior", POSTERIORS, ids=named(POSTERIORS))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@every
def test_init_leaves_the_model_unchanged(posterior):
    model = network()
    before = snapshot(model)
    state = posterior.init(model, lambda p: torch.optim.SGD(p, lr=0.1), 10)
    assert isinstance(state.model, torch.nn.Module)
    assert_same(snapshot(model), before)


@cache
def train_once(index, flat):
    """State, losses and a snapshot of the model after training; not to be changed. Draws restore what they change."""
    state, losses = train(POSTERIORS[index], flat)
    return state, losses, snapshot(state.model)


def trained(posterior, flat=Plain()):
    return train_once(POSTERIORS.index(posterior), flat)


@pytest.mark.parametrize(("posterior", "flat"), pair_params([p for p in POSTERIORS if not p.perturbs_weights], FLAT))
def test_radius_zero_is_plain_bit_for_bit(posterior, flat):
    state, losses, expected = trained(posterior)
    if needs_weight_distribution(flat) and not sets_weight_distribution(posterior):
        with pytest.raises(ValueError, match="this one has none"):
            train(posterior, set_zero_radius(flat))
        return
    other, other_losses = train(posterior, set_zero_radius(flat))
    assert_same(snapshot(other.model), expected)
    assert all(torch.equal(a, b) for a, b in zip(losses, other_losses, strict=True))
    assert all(torch.equal(state.statistics[k], other.statistics[k]) for k in state.statistics)


@every
def test_weight_distribution_is_set_exactly_where_declared(posterior):
    assert sets_weight_distribution(posterior) is posterior.has_weight_distribution


@pytest.mark.parametrize("posterior", [p for p in POSTERIORS if p.trajectory], ids=short_name)
def test_what_a_trajectory_promises(posterior):
    """The model stays the one that was given, snapshots change only statistics, and steps only those declared."""
    model = network()
    state = posterior.init(model, descent(posterior), 36)
    assert state.model is model
    initial = {name: statistic.clone() for name, statistic in state.statistics.items()}
    for k in range(3):
        posterior.step(state, Counted(model, *batch(k)))
    declared = posterior.trajectory.statistics
    assert {n for n, x in state.statistics.items() if not torch.equal(x, initial[n])} == declared
    before, velocity = snapshot(model), {name: state.statistics[name].clone() for name in declared}
    posterior.collect(state)
    assert_same(snapshot(model), before)
    assert all(torch.equal(state.statistics[name], value) for name, value in velocity.items())


@every
def test_training_and_flatness_change_the_weights(posterior):
    begin = snapshot(network())["weights"]
    plain, flat = (trained(posterior, flat)[2]["weights"] for flat in (Plain(), SAM()))
    for name in (n for n in begin if n.endswith("weight")):  # a bias before BatchNorm has no gradient
        assert not torch.equal(begin[name], plain[name])
        if getattr(posterior, "noise", None) != "lattice":  # where a small tensor can take the same few steps
            assert not torch.equal(plain[name], flat[name])
    assert any(not torch.equal(plain[name], flat[name]) for name in begin)


@every
def test_same_seed_same_run(posterior):
    (_, losses, expected), (other, other_losses) = trained(posterior, SAM()), train(posterior, SAM())
    assert_same(expected, snapshot(other.model))
    assert torch.equal(torch.stack(losses), torch.stack(other_losses))


@pytest.mark.parametrize(
    "posterior", {classes_of(posterior): posterior for posterior in POSTERIORS}.values(), ids=str
)
def test_a_fit_depends_on_its_seed_and_not_on_the_global_random_state(posterior):
    fits = []
    collection = CollectionConfig(start_fraction=0.0, snapshots_per_epoch=2)
    config = TrainingConfig(
        epochs=1, batch_size=12, optimizer=descent(posterior), num_validations=0, collection=collection
    )
    for global_seed in (0, 1):
        torch.manual_seed(global_seed)
        fits.append(fit(lambda: network(), batch(size=24), posterior, Plain(), config, show_progress=False))
    for one, other in zip(fits[0].states, fits[1].states, strict=True):
        tensors, others = ({**state.model.state_dict(), **state.statistics} for state in (one, other))
        assert all(torch.equal(tensors[key], others[key]) for key in tensors)
    if len(fits[0].states) == 2:
        first, second = (state.statistics.get("particles") for state in fits[0].states)
        assert first is None or not torch.equal(first, second)


@every
def test_a_saved_state_resumes_bit_for_bit(posterior):
    straight, _, expected = trained(posterior, SAM())

    half, _ = train(posterior, SAM(), steps=3)
    saved, rng = copy.deepcopy(half.state_dict()), torch.get_rng_state()
    fresh = posterior.init(network(), descent(posterior), 36)
    fresh.load_state_dict(saved)
    torch.set_rng_state(rng)
    advance(posterior, SAM(), fresh, range(3, 6))

    assert_same(snapshot(fresh.model), expected)
    assert all(torch.equal(straight.statistics[k], fresh.statistics[k]) for k in fresh.statistics)


@every
def test_a_draw_restores_everything(posterior):
    state, _, _ = trained(posterior)
    x, _ = batch(9)
    before = snapshot(state.model)
    with posterior.draw(state, generator(1)) as outer:
        assert (
            outer is state.model
        ) or not posterior.needs_norm_reestimation  # a linearised network is another module
        assert not outer.training or isinstance(posterior, MCDropout)  # which drops as in training
        first = outer(x)
        with posterior.draw(state, generator(2)) as inner:
            inner(x)
        if not any(m.training for m in outer.modules()):
            assert torch.equal(outer(x), first)
    assert_same(snapshot(state.model), before)
    with pytest.raises(ArithmeticError), posterior.draw(state, generator(1)):
        raise ArithmeticError("on purpose")
    assert_same(snapshot(state.model), before)


@every
def test_draws_are_functions_of_their_generator(posterior):
    state, _, _ = trained(posterior)
    x, _ = batch(9)
    outputs = []
    for seed in (1, 1, 2):
        torch.rand(3)  # the global stream has no say
        with posterior.draw(state, generator(seed)) as model:
            outputs.append(model(x).detach())
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2]) is not posterior.stochastic


@every
def test_draws_have_new_weights_only_if_norms_are_reestimated(posterior):
    state, _, _ = trained(posterior)
    before = snapshot(state.model)["weights"]
    with posterior.draw(state, generator()):
        inside = snapshot(state.model)["weights"]
    moved = any(not torch.equal(inside[name], before[name]) for name in before)
    assert moved is posterior.needs_norm_reestimation


@every
def test_precision_follows_the_model(posterior):
    state, losses = train(posterior, SAM(), dtype=torch.float64)
    assert losses[0].dtype == torch.float64
    asked = {torch.bfloat16} if "bfloat16=True" in str(posterior) else set()
    assert {t.dtype for t in state.statistics.values()} <= {torch.float64, torch.int64} | asked
    x, _ = batch(9, dtype=torch.float64)
    with posterior.draw(state, generator()) as model:
        assert model(x).dtype == torch.float64


STORED_WEIGHTS = {"snapshots", "anchor_snapshots", "deviations", "particles", "velocity"}


@every
def test_averages_of_half_precision_are_in_single_precision(posterior):
    state, _ = train(posterior, Plain(), steps=4, dtype=torch.bfloat16)
    widened = {name for name, tensor in state.statistics.items() if tensor.dtype in (torch.float32, torch.int64)}
    copies = {"mean"} if "finished" in state.statistics else set()
    assert state.statistics.keys() - widened <= STORED_WEIGHTS | copies
    assert {param.dtype for param in state.model.parameters()} == {torch.bfloat16}
    x, _ = batch(9, dtype=torch.bfloat16)
    with posterior.draw(state, generator()) as drawn:
        assert drawn(x).dtype == torch.bfloat16


@every
def test_a_state_without_optimizer_is_not_trained(posterior):
    state = posterior.init(network(), None, 10)
    with pytest.raises(RuntimeError, match="no optimizer"):
        posterior.step(state, lambda: torch.zeros(()))


@every
def test_refuses_a_model_without_trainable_parameters(posterior):
    model = network().requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameters"):
        posterior.init(model, None, 10)
    with pytest.raises(ValueError, match="num_data"):
        posterior.init(network(), None, 0)


@every
def test_frozen_parameters_are_not_changed(posterior):
    model = network()
    frozen = [*model[0].parameters(), *model[1].parameters(), model[5].bias]
    for param in frozen:
        param.requires_grad_(False)
    before = [param.clone() for param in frozen]
    state, _ = train(posterior, SAM() if not posterior.perturbs_weights else Plain(), steps=3, model=model)
    with posterior.draw(state, generator()):
        pass
    names = [name for name, param in model.named_parameters() if not param.requires_grad]
    assert names == ["0.weight", "0.bias", "1.weight", "1.bias", "5.bias"]
    assert all(torch.equal(*pair) for pair in zip(before, frozen, strict=True))


@every
def test_spec_round_trip(posterior):
    assert instantiate(to_spec(posterior), package="flatbayes.posteriors") == posterior
    assert isinstance(posterior, Posterior)
    assert posterior.num_members >= 1


@every
def test_statistics_of_another_method_are_refused(posterior):
    state = posterior.init(network(), descent(posterior), 36)
    saved = copy.deepcopy(state.state_dict())
    saved["statistics"]["stranger"] = torch.zeros(2)
    with pytest.raises(ValueError, match="do not fit this posterior"):
        state.load_state_dict(saved)


def test_draw_before_collecting_is_refused():
    state = SWAG().init(network(), None, 10)
    for count in (0, 1):
        with (
            pytest.raises(RuntimeError, match=f"at least 2 collected snapshots before a draw, got {count}"),
            SWAG().draw(state, generator()),
        ):
            pass
        SWAG().collect(state)


def take_step(posterior, *, is_precomputed):
    """Weights after a step, with a gradient that is computed in the step or before; None if the step is refused."""
    torch.manual_seed(0)
    state = posterior.init(network(), posterior.default_optimizer, 10)
    closure = Counted(state.model, *batch())
    torch.manual_seed(1)
    if is_precomputed:
        loss = closure()
        closure = lambda: loss  # noqa: E731
    try:
        posterior.step(state, closure)
    except RuntimeError:  # LRT finds that the gradient did not pass through its noise
        return None
    return torch.cat([param.detach().flatten() for param in state.model.parameters()])


@every
def test_a_step_that_uses_the_gradient_only_takes_one_computed_before(posterior):
    expected, weights = (take_step(posterior, is_precomputed=flag) for flag in (False, True))
    assert (weights is not None and torch.equal(weights, expected)) is posterior.uses_gradient_only


def test_a_subclass_with_another_step_does_not_inherit_that_it_uses_the_gradient_only():
    class Twice(SWAG):
        def step(self, state, closure):
            closure()
            return super().step(state, closure)

    class Step:
        step = Twice.step

    class Mixed(Step, SWAG):
        pass

    class Renamed(SWAG):
        pass

    assert [posterior().uses_gradient_only for posterior in (Twice, Mixed, Renamed)] == [False, False, True]
