"""Training progress: steps, saved state, and namespaces of flatnesses."""

import copy

import torch
from torch import nn

from flatbayes.core import TrainingProgress


def test_loading_goes_back_to_the_saved_step_and_state():
    progress = TrainingProgress(total_steps=10, seed=3, members=(2, 5), restart=(1, 0.7))
    progress.store_state("sum", {"a": torch.ones(2)})
    progress.advance()
    saved = copy.deepcopy(progress.state_dict())
    progress.advance()
    progress.store_state("sum", {"a": torch.zeros(2), "b": torch.zeros(1)})
    for target in (progress, TrainingProgress()):
        target.load_state_dict(saved)
        assert (target.step, target.total_steps, target.seed, target.members) == (1, 10, 3, (2, 5))
        assert target.restart == (1, 0.7)
        assert set(target.flatness_state) == {"sum/a"}
        assert target.flatness_state["sum/a"].tolist() == [1, 1]
        target.flatness_state["sum/a"].add_(1)  # a copy of what was saved
        assert saved["flatness_state"]["sum/a"].tolist() == [1, 1]


def test_the_fraction_after_a_restart_is_that_of_the_whole_training():
    assert TrainingProgress(step=7, total_steps=10).fraction == 0.7
    assert [TrainingProgress(step=k, total_steps=11, restart=(6, 0.7)).fraction for k in (6, 11)] == [0.7, 1.0]
    assert TrainingProgress(total_steps=0).fraction == 1.0


def test_a_saved_state_does_not_change_afterwards():
    progress = TrainingProgress()
    progress.store_state("sum", {"a": torch.ones(2)})
    saved = progress.state_dict()
    progress.store_state("sum", {"a": torch.zeros(2)})
    assert saved["flatness_state"]["sum/a"].tolist() == [1, 1]


def test_a_state_of_version_0_1_is_loaded():
    progress = TrainingProgress(seed=4, members=(1,))
    progress.load_state_dict({"step": 5, "total_steps": 9, "kept": {"msam/weight": torch.ones(2)}})
    assert (progress.step, progress.total_steps, progress.seed, progress.members) == (5, 9, 4, (1,))
    assert progress.load_state("msam", {"weight": torch.zeros(2)})["weight"].tolist() == [1, 1]


def test_state_is_loaded_by_kind_and_name():
    model, progress = nn.Linear(2, 1), TrainingProgress()
    params = dict(model.named_parameters())
    assert progress.load_state("sum", params) == {}
    progress.store_state("sum", {"weight": params["weight"] + 1, "elsewhere": torch.zeros(1)})
    progress.store_state("other", {"bias": torch.zeros(1)})
    state = progress.load_state("sum", params)
    assert list(state) == ["weight"]
    assert not state["weight"].requires_grad
    assert torch.equal(state["weight"], params["weight"] + 1)


def test_scopes_have_the_same_step_and_state_of_their_own():
    progress, params = TrainingProgress(step=3, total_steps=10, seed=2, members=(7,)), {"w": torch.zeros(2)}
    inner = progress.scope("flatness").scope("before")
    assert (inner.step, inner.total_steps, inner.seed, inner.members) == (3, 10, 2, (7,))
    inner.store_state("sum", {"w": torch.ones(2)})
    for other in (progress, progress.scope("flatness"), progress.scope("before")):
        assert other.load_state("sum", params) == {}
    assert progress.scope("flatness").scope("before").load_state("sum", params)["w"].tolist() == [1, 1]
    assert list(progress.state_dict()["flatness_state"]) == ["flatness/before/sum/w"]
