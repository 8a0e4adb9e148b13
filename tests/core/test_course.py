import copy

import torch
from torch import nn

from flatbayes.core import Course


def test_counts_steps_and_goes_back_to_where_it_was_saved():
    course = Course(total_steps=10)
    course.remember("sum", {"a": torch.ones(2)})
    course.advance()
    saved = copy.deepcopy(course.state_dict())
    course.advance()
    course.remember("sum", {"a": torch.zeros(2), "b": torch.zeros(1)})
    course.load_state_dict(saved)
    assert (course.step, course.total_steps) == (1, 10)
    assert set(course.kept) == {"sum/a"}
    assert course.kept["sum/a"].tolist() == [1, 1]
    course.kept["sum/a"].add_(1)  # what was saved is not shared
    assert saved["kept"]["sum/a"].tolist() == [1, 1]


def test_a_state_is_that_of_when_it_was_taken():
    course = Course()
    course.remember("sum", {"a": torch.ones(2)})
    state = course.state_dict()
    course.remember("sum", {"a": torch.zeros(2)})
    assert state["kept"]["sum/a"].tolist() == [1, 1]


def test_recalls_by_kind_and_name():
    model, course = nn.Linear(2, 1), Course()
    params = dict(model.named_parameters())
    assert course.recall("sum", params) == {}
    course.remember("sum", {"weight": params["weight"] + 1, "elsewhere": torch.zeros(1)})
    course.remember("other", {"bias": torch.zeros(1)})
    found = course.recall("sum", params)
    assert list(found) == ["weight"]
    assert not found["weight"].requires_grad
    assert torch.equal(found["weight"], params["weight"] + 1)
