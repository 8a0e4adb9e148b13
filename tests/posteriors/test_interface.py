"""The interface of posteriors: three abstract methods, defaults for everything else, and delegation by ensembles."""

import inspect
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import nn

import flatbayes
from flatbayes.core import State
from flatbayes.posteriors import LRT, SGHMC, SGLD, SGVB, Ensemble, Laplace, Posterior, presets
from flatbayes.posteriors.optimization import resolve_temperature
from flatbayes.posteriors.requirements import SnapshotRequirements

DEFAULTS = {
    "num_members": 1,
    "stochastic": True,
    "needs_norm_reestimation": True,
    "shardable": False,
    "requires_stationary_loss": "never",
    "has_weight_distribution": False,
    "perturbs_weights": False,
    "tolerates_skipped_steps": True,
    "uses_gradient_only": False,
    "snapshot_requirements": (0, 0),
}


class Minimal(Posterior):
    """Only what is abstract."""

    def init(self, model, make_optimizer, num_data):
        return State(model, make_optimizer and make_optimizer(model.parameters()), num_data)

    def step(self, state, closure):
        loss = closure()
        state.optimizer.step()
        return loss

    @contextmanager
    def draw(self, state, generator):
        yield state.model.eval()


@dataclass(frozen=True)
class Unusual(Minimal):
    """Every member differs from its default, and every call is recorded."""

    num_members = 3
    stochastic = False
    needs_norm_reestimation = False
    shardable = True
    requires_stationary_loss = "at_end"
    has_weight_distribution = True
    perturbs_weights = True
    tolerates_skipped_steps = False
    uses_gradient_only = True
    snapshot_requirements = SnapshotRequirements(2, 7)

    @property
    def default_optimizer(self):
        return partial(torch.optim.Adam, lr=0.5)

    def collect(self, state):
        state.statistics["collected"] = torch.ones(1)

    def finalize(self, state, examples, loss_fn):
        state.statistics["finalized"] = torch.tensor(len(list(examples)))


def test_only_init_step_and_draw_are_abstract():
    assert Posterior.__abstractmethods__ == {"init", "step", "draw"}


def test_defaults_of_the_other_members():
    posterior = Minimal()
    assert {name: getattr(posterior, name) for name in DEFAULTS} == DEFAULTS
    group = posterior.default_optimizer(nn.Linear(2, 2).parameters()).param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.1, 0.9, 5e-4)


def test_collect_and_finalize_do_nothing_by_default():
    state = Minimal().init(nn.Linear(2, 2), None, 10)
    weight = state.model.weight.clone()
    Minimal().collect(state)
    Minimal().finalize(state, iter(()), nn.functional.cross_entropy)
    assert not state.statistics
    assert torch.equal(state.model.weight, weight)


def test_members_of_version_0_1_are_refused():
    """Their overrides would have no effect."""
    with pytest.raises(TypeError, match="Old defines members of flatbayes 0.1. Rename finish to finalize"):
        type("Old", (Minimal,), {"finish": lambda self, state, examples, loss_fn: None})


def test_an_ensemble_delegates_every_member_of_the_interface():
    """A default in the base class would hide a member that the ensemble does not delegate."""
    member = Unusual()
    ensemble = Ensemble(member, size=2)
    for name, default in DEFAULTS.items():
        expected = getattr(member, name)
        assert expected != default, f"{name} of the member must differ from the default, or this test cannot fail"
        assert getattr(ensemble, name) == (6 if name == "num_members" else expected)
    assert ensemble.default_optimizer.func is torch.optim.Adam
    public = {name for name in vars(Posterior) if not name.startswith("_")} - {"get_draw_option"}  # of one class
    assert public <= vars(Ensemble).keys()

    state = ensemble.init(nn.Linear(2, 2), ensemble.default_optimizer, 10)
    ensemble.collect(state)
    ensemble.finalize(state, [(torch.zeros(1, 2), torch.zeros(1))] * 2, nn.functional.cross_entropy)
    assert state.statistics["collected"] == 1
    assert state.statistics["finalized"] == 2


@pytest.mark.parametrize("posterior", [SGLD(), SGHMC(), SGVB(), LRT(), Laplace()], ids=lambda p: type(p).__name__)
def test_the_default_temperature_is_the_bayesian_posterior(posterior):
    """One word, one meaning, one default: the docstrings share the sentence that says it."""
    assert resolve_temperature(posterior.temperature) == 1.0
    sentence = "T in the posterior density p(w) exp(-num_data / T * mean NLL(w)): 1 is the Bayesian posterior,"
    assert sentence in type(posterior).__doc__


def test_presets_hold_the_tuned_temperatures():
    assert (presets.LAPLACE_LAST_LAYER.structure, presets.LAPLACE_LAST_LAYER.temperature) == (None, 0.03)
    assert (presets.LAPLACE_KRON.structure, presets.LAPLACE_KRON.temperature) == ("kron", 0.001)


@pytest.mark.parametrize("name", [name for name in flatbayes.posteriors.__all__ if name != "Posterior"])
def test_method_files_open_with_pseudo_code(name):
    assert "    draw: " in inspect.getmodule(getattr(flatbayes.posteriors, name)).__doc__
