import copy

import torch
from torch import nn

from flatbayes.core import TrainingProgress


def test_counts_steps_and_goes_back_to_where_it_was_saved():
    course = TrainingProgress(total_steps=10)
    course.store_state("sum", {"a": torch.ones(2)})
    course.advance()
    saved = copy.deepcopy(course.state_dict())
    course.advance()
    course.store_state("sum", {"a": torch.zeros(2), "b": torch.zeros(1)})
    course.load_state_dict(saved)
    assert (course.step, course.total_steps) == (1, 10)
    assert set(course.flatness_state) == {"sum/a"}
    assert course.flatness_state["sum/a"].tolist() == [1, 1]
    course.flatness_state["sum/a"].add_(1)  # what was saved is not shared
    assert saved["kept"]["sum/a"].tolist() == [1, 1]


def test_a_state_is_that_of_when_it_was_taken():
    course = TrainingProgress()
    course.store_state("sum", {"a": torch.ones(2)})
    state = course.state_dict()
    course.store_state("sum", {"a": torch.zeros(2)})
    assert state["kept"]["sum/a"].tolist() == [1, 1]


def test_recalls_by_kind_and_name():
    model, course = nn.Linear(2, 1), TrainingProgress()
    params = dict(model.named_parameters())
    assert course.load_state("sum", params) == {}
    course.store_state("sum", {"weight": params["weight"] + 1, "elsewhere": torch.zeros(1)})
    course.store_state("other", {"bias": torch.zeros(1)})
    found = course.load_state("sum", params)
    assert list(found) == ["weight"]
    assert not found["weight"].requires_grad
    assert torch.equal(found["weight"], params["weight"] + 1)
