"""Prior precisions by pattern and from initial values, and their effect on SGVB and LRT."""

import copy
import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flatbayes.core.spec import instantiate, short_name, to_spec
from flatbayes.posteriors import LRT, SGVB, Ensemble
from flatbayes.posteriors.prior_precision import (
    check_prior_precision_spec,
    expand_precisions,
    initial_scale,
    resolve_prior_precisions,
)
from flatbayes.posteriors.variational import raw_to_std
from support import alternating_params

BOTH = pytest.mark.parametrize("method", [SGVB, LRT])


def network():
    torch.manual_seed(0)
    return nn.ModuleDict({"body": nn.Linear(4, 5), "head": nn.Linear(5, 3)}).double()


def precisions(given, model=None):
    model = network() if model is None else model
    return resolve_prior_precisions(model, dict(model.named_parameters()), given)


def test_one_number_is_stored_as_one():
    assert precisions(3.0) is None


def test_the_first_matching_pattern_applies():
    by_name = precisions({"head.bias": 1.0, "head.*": 2.0, "*": 3.0})
    assert by_name == {"body.weight": 3.0, "body.bias": 3.0, "head.weight": 2.0, "head.bias": 1.0}
    assert list(by_name) == ["body.weight", "body.bias", "head.weight", "head.bias"]


def test_initial_is_the_root_mean_square_of_each_tensor():
    model = network()
    by_name = precisions("initial", model)
    for name, param in model.named_parameters():
        assert by_name[name] == pytest.approx(param.numel() / param.detach().square().sum().item(), rel=1e-12)


def test_zero_tensors_have_the_scale_of_their_layer():
    zero = torch.zeros
    others = {"a.weight": zero(3, 8, 2), "a.bias": zero(3), "norm.weight": torch.ones(3), "norm.bias": zero(3)}
    others |= {"rnn.weight_ih_l0": zero(6, 9), "rnn.bias_ih_l0": zero(6), "weight": zero(2, 25), "bias": zero(2)}
    expected = {"a.weight": 1 / 4, "a.bias": 1 / 4, "norm.bias": 1.0, "rnn.bias_ih_l0": 1 / 3, "bias": 1 / 5}
    assert {name: initial_scale(name, others[name], others) for name in expected} == pytest.approx(expected)
    assert initial_scale("gain", zero(4), {"gain": zero(4)}) == 1
    parametrized = {"a.bias": zero(4), "a.parametrizations.weight.original1": zero(4, 16)}
    assert initial_scale("a.bias", zero(4), parametrized) == 0.25
    assert initial_scale("a.bias", torch.tensor([3.0, -4.0]), others) == pytest.approx(math.sqrt(12.5))


@pytest.mark.parametrize("transposed", [False, True])
def test_the_vector_has_one_precision_per_weight(transposed):
    model = nn.Linear(2, 3).double()
    if transposed:
        model.weight = nn.Parameter(torch.zeros(2, 3).double().T)
    vector = expand_precisions({"weight": 2.0, "bias": 5.0}, dict(model.named_parameters()))
    assert vector.tolist() == [2.0] * 6 + [5.0] * 3
    assert vector.dtype == torch.float64
    assert not vector.requires_grad


def test_precisions_of_a_network_in_half_precision_are_not_rounded():
    model = nn.Linear(2, 1, dtype=torch.bfloat16)
    vector = expand_precisions({"weight": 100.3, "bias": 0.7}, dict(model.named_parameters()))
    assert torch.equal(vector, torch.tensor([100.3, 100.3, 0.7]))


@pytest.mark.parametrize(
    ("method", "given"), alternating_params([SGVB, LRT], [{"head.*": 16.0, "*": 4.0}, "initial"]), ids=str
)
def test_without_data_each_parameter_converges_to_its_own_prior(method, given):
    model = network()
    posterior = method(prior_precision=given, initial_std=0.3)
    state = posterior.init(model, partial(torch.optim.Adam, lr=0.02), 10)
    expected = precisions({"head.*": 16.0, "*": 4.0} if given != "initial" else given)

    def closure():
        state.model.zero_grad()
        loss = (state.model["head"](state.model["body"](torch.zeros(2, 4).double())) * 0).sum()
        loss.backward()
        return loss.detach()

    for _ in range(700):
        posterior.step(state, closure)
    if method is SGVB:
        stds = raw_to_std(state.statistics["raw_scale"]).split([p.numel() for p in model.parameters()])
    else:
        stds = [raw_to_std(state.statistics[f"raw_scale.{name}"]).flatten() for name in expected]
    for std, precision in zip(stds, expected.values(), strict=True):
        torch.testing.assert_close(std, torch.full_like(std, precision**-0.5), rtol=1e-2, atol=0)
    means = torch.cat([p.detach().flatten() for p in state.model.parameters()])
    torch.testing.assert_close(means, torch.zeros_like(means), rtol=0, atol=1e-3)


@BOTH
def test_patterns_that_agree_are_one_number(method):
    results = []
    for given in (4.0, {"*": 4.0}):
        posterior = method(prior_precision=given)
        state = posterior.init(network(), partial(torch.optim.Adam, lr=0.1), 10)

        def closure(state=state):
            state.model.zero_grad()
            x = torch.ones(6, 4, dtype=torch.float64)
            loss = F.cross_entropy(state.model["head"](state.model["body"](x)), torch.arange(6) % 3)
            loss.backward()
            return loss.detach()

        torch.manual_seed(1)
        for _ in range(4):
            posterior.step(state, closure)
        results.append(torch.cat([p.detach().flatten() for p in state.model.parameters()]))
    assert torch.equal(*results)


@BOTH
def test_the_initial_prior_is_restored_with_the_state(method):
    posterior = method(prior_precision="initial")
    state = posterior.init(network(), partial(torch.optim.Adam, lr=0.1), 10)
    kept = {name: t for name, t in state.statistics.items() if name.startswith("prior_precision")}
    assert kept
    other = network()
    with torch.no_grad():
        other["head"].weight.mul_(3)
    loaded = posterior.init(other, None, 10)
    assert any(not torch.equal(loaded.statistics[name], tensor) for name, tensor in kept.items())
    loaded.load_state_dict(copy.deepcopy(state.state_dict()))
    assert all(torch.equal(loaded.statistics[name], tensor) for name, tensor in kept.items())


@pytest.mark.parametrize(
    "posterior",
    [
        SGVB(prior_precision={"head.*": 4.0, "*": 1.0}, params=["head.*", "*.bias"]),
        Ensemble(SGVB(prior_precision="initial", params="biases"), size=2),
        LRT(prior_precision={"*": 1.0}),
    ],
    ids=short_name,
)
def test_posteriors_with_mappings_and_lists_are_hashable_and_serializable(posterior):
    again = instantiate(to_spec(posterior), package="flatbayes.posteriors")
    assert again == posterior
    assert hash(again) == hash(posterior)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"head.*": 1.0}, r"no pattern for \['body\.weight', 'body\.bias'\]\. Add one, or '\*' at the end"),
        (
            {"*": 1.0, "head.*": 2.0},
            r"'head\.\*' of prior_precision applies to no .*: they are \['body\.weight', .* first",
        ),
        ({"tail.*": 1.0, "*": 2.0}, r"'tail\.\*' of prior_precision applies to no parameter with a distribution"),
    ],
)
@BOTH
def test_refuses_mappings_that_do_not_fit_the_model(method, given, message):
    with pytest.raises(ValueError, match=message):
        method(prior_precision=given).init(network(), None, 10)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "at least one name pattern"),
        ({"*": 0.0}, r"prior_precision of '\*' must be positive and finite, got 0.0"),
        ({"*": math.nan}, r"prior_precision of '\*' must be positive and finite, got nan"),
        (-1.0, "prior_precision must be positive and finite, got -1.0"),
    ],
)
@BOTH
def test_refuses_invalid_numbers(method, given, message):
    with pytest.raises(ValueError, match=message):
        method(prior_precision=given)


def test_refuses_an_unknown_word():
    with_initial = SGVB(prior_precision="initial")
    object.__setattr__(
        with_initial, "prior_precision", "final"
    )  # beartype, in the tests only, would be first to refuse
    with pytest.raises(ValueError, match="must be a number, a mapping or 'initial', got 'final'"):
        with_initial.__post_init__()
    check_prior_precision_spec("initial")


def test_a_precision_may_be_any_number():
    numpy = pytest.importorskip("numpy")
    check_prior_precision_spec(numpy.float32(2.0))
    for wrong in (None, [1.0]):
        with pytest.raises(ValueError, match="must be a number, a mapping or 'initial'"):
            check_prior_precision_spec(wrong)


def test_tiny_initial_values_count_as_zero():
    assert initial_scale("weight", torch.full((3, 4), 1e-22), {}) == 0.5
