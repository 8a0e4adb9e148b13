"""Parameters that are frozen, unfrozen, added or replaced after the start of a posterior, in a loop of the user."""

from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace as with_fields

import pytest
import torch
from torch import nn

from flatbayes import MAP, SWAG, Categorical, FittedPosterior
from flatbayes.core.buffers import eval_mode
from flatbayes.posteriors.parameter_guard import train_as_at_start
from support import POSTERIORS, Counted, batch, descent, named, network, train

WITH_STATISTICS = [p for p in POSTERIORS if p.init(network(), descent(p), 36).statistics]
WITHOUT_STATISTICS = [p for p in POSTERIORS if p not in WITH_STATISTICS]


def freeze(model):
    model[9].requires_grad_(False)


def unfreeze(model):
    model[0].requires_grad_(True)


def replace(model):
    model[9] = nn.Linear(16, 3)


def add(model):
    model.append(nn.Linear(3, 3))


def exchange(model):  # as many weights as before
    model[5] = nn.Linear(144, 16)
    model[0].requires_grad_(True)
    model[9].requires_grad_(False)


CHANGES = {
    "freeze": (freeze, r"frozen or removed: \['9.weight', '9.bias'\]"),
    "unfreeze": (unfreeze, r"unfrozen or added: \['0.weight', '0.bias'\]"),
    "replace": (replace, r"replaced: \['9.weight', '9.bias'\]"),
    "add": (add, r"unfrozen or added: \['10.weight', '10.bias'\]"),
    "exchange": (exchange, r"replaced: .*; frozen or removed: .*; unfrozen or added: "),
}


def start(posterior):
    """A state with a frozen first layer, after one step."""
    model = network()
    model[0].requires_grad_(False)
    state = posterior.init(model, descent(posterior), 36)
    posterior.step(state, Counted(state.model, *batch()))
    return state


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("posterior", WITH_STATISTICS, ids=named(WITH_STATISTICS))
def test_changed_parameters_are_refused_in_the_next_step_and_snapshot(posterior, change):
    state = start(posterior)
    apply, message = CHANGES[change]
    apply(state.model)
    with pytest.raises(ValueError, match=message):
        posterior.step(state, Counted(state.model, *batch()))
    if posterior.snapshot_requirements.max_used:
        with pytest.raises(ValueError, match=message):
            posterior.collect(state)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("posterior", WITHOUT_STATISTICS, ids=named(WITHOUT_STATISTICS))
def test_posteriors_without_statistics_train_what_is_trainable(posterior, change):
    state = start(posterior)
    CHANGES[change][0](state.model)
    assert posterior.step(state, Counted(state.model, *batch())).isfinite()


@pytest.mark.parametrize("posterior", POSTERIORS, ids=named(POSTERIORS))
@pytest.mark.parametrize("frozen", ["all", "last", "none"])
def test_draws_do_not_depend_on_what_is_frozen_after_training(posterior, frozen):
    model = network()
    model[0].requires_grad_(False)
    state, _ = train(posterior, lambda closure, *_: closure, model=model)

    def draw():
        with posterior.draw(state, torch.Generator().manual_seed(0)) as drawn, torch.no_grad():
            torch.manual_seed(0)  # dropout masks
            return drawn(batch()[0])

    expected = draw()
    flags = [p.requires_grad for p in state.model.parameters()]
    part = {"all": state.model, "last": state.model[-1], "none": state.model}[frozen]
    part.requires_grad_(frozen == "none")
    changed = [p.requires_grad for p in state.model.parameters()]
    assert changed != flags
    assert torch.equal(draw(), expected)
    assert [p.requires_grad for p in state.model.parameters()] == changed


def test_a_network_that_is_frozen_for_prediction_predicts_the_same():
    for posterior in (SWAG(rank=3), SWAG(rank=3, params="last_layer")):
        state, _ = train(posterior, lambda closure, *_: closure)

        def predict(posterior=posterior, state=state):
            fitted = FittedPosterior(posterior, [state], Categorical(3), statistics_inputs=[batch()[0]])
            return fitted.predict(batch()[0], num_draws=3).mean

        expected = predict()
        state.model.requires_grad_(False)
        assert torch.equal(predict(), expected)


def test_a_compiled_or_wrapped_network_has_the_same_parameters():
    posterior = SWAG(rank=2)
    state = start(posterior)
    state.model = nn.Sequential(state.model)  # other names, the same parameters
    posterior.step(state, Counted(state.model, *batch()))
    posterior.collect(state)


def test_the_flags_are_restored_after_an_error():
    state = start(SWAG(rank=2))
    state.model[9].requires_grad_(False)
    with pytest.raises(ArithmeticError), train_as_at_start(state), eval_mode(state.model):
        assert state.model[9].weight.requires_grad
        raise ArithmeticError
    assert not state.model[9].weight.requires_grad


def test_a_state_with_another_network_is_over_its_parameters_of_the_same_names():
    state = start(MAP())
    state.model.requires_grad_(False)
    copied = with_fields(state, model=deepcopy(state.model))
    assert copied.trained.keys() == state.trained.keys()
    assert all(dict(copied.model.named_parameters())[name] is param for name, param in copied.trained.items())


def test_a_move_of_the_state_that_replaces_parameters_is_no_change():
    """The device "meta" stands for one whose tensors are of another type."""
    state = SWAG(rank=2).init(nn.Linear(4, 3), descent(SWAG(rank=2)), 36)
    before = dict(state.trained)
    with torch_overwrites_parameters():
        state.to("meta")
    assert state.trained == dict(state.model.named_parameters())
    assert state.trained.keys() == before.keys()
    assert all(state.trained[name] is not param for name, param in before.items())


@contextmanager
def torch_overwrites_parameters():
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)
