"""Checksums of instances: equal for equal content, different where any attribute differs."""

import threading
from collections import OrderedDict
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from flatbayes.core.content import hash_content
from flatbayes.core.spec import short_name, to_spec
from flatbayes.data import RawSplits
from flatbayes.data.source import DataSource
from flatbayes.flatness import SAM, Flatness
from flatbayes.models import MLP


class Cube(Flatness):
    def __init__(self, rho):
        self._rho = rho

    def __call__(self, closure, model, progress=None):
        raise NotImplementedError

    def step(self):
        pass


class Wider(SAM):
    """Not a dataclass itself, so that `width` is no field."""

    def __init__(self, rho, width):
        super().__init__(rho)
        object.__setattr__(self, "width", width)


class Slotted:
    __slots__ = ("size",)

    def __init__(self, size):
        self.size = size


class Cached(DataSource):
    def read(self) -> RawSplits:
        raise NotImplementedError


def linear(value):
    network = nn.Linear(2, 1)
    nn.init.constant_(network.weight, value)
    nn.init.constant_(network.bias, 0)
    return network


def with_hook(value):
    network = nn.Sequential(OrderedDict(a=nn.Dropout(value), b=nn.ReLU()))
    network.register_forward_hook(lambda *_: None)
    return network.train(value > 0.3)


MAKERS = [
    Cube,
    partial(Wider, 0.1),
    Slotted,
    linear,
    with_hook,
    nn.Dropout,
    Path,
    lambda value: Cube(np.array([value, 1.0])),
    lambda value: Cube(torch.tensor([value], dtype=torch.bfloat16)),
    lambda value: Cube({("a", 1): {value}, 2: [Slotted(value)]}),
    lambda value: Cube(torch.float32 if value == "0.1" else torch.float64),
    lambda value: nn.CrossEntropyLoss(label_smoothing=float(value)),
    lambda value: nn.CrossEntropyLoss(torch.tensor([float(value), 1.0])),
    lambda value: partial(MLP, value),
    lambda value: Cube(value).step,
    lambda value: [Cube(value), threading.Lock()],
]


@pytest.mark.parametrize("make", MAKERS)
def test_instances_are_told_apart_by_their_content(make):
    values = ("0.1", "0.5") if make is Path or make is MAKERS[10] else (0.1, 0.5)
    one, same, other = (to_spec(make(value), allow_instances=True) for value in (values[0], *values))
    assert one == same != other


def test_what_cannot_be_read_counts_by_its_class():
    assert hash_content(threading.Lock()) is None
    assert hash_content(Cube(lambda: 1)) == hash_content(Cube(lambda: 2))
    loop = Cube(0.1)
    loop.itself = [loop]
    assert hash_content(loop) is not None


def test_the_mode_of_a_network_does_not_count():
    assert hash_content(nn.Dropout(0.1).eval()) == hash_content(nn.Dropout(0.1).train())


def test_descriptions_of_what_has_no_other_content_stay_as_they_were():
    assert to_spec(SAM(0.1), allow_instances=True) == to_spec(SAM(0.1))
    assert set(to_spec(object(), allow_instances=True)) == {"class_path", "init_args"}
    source = Cached()
    source.rows = [1]  # read once and kept; its content has a fingerprint
    assert to_spec(source, allow_instances=True) == to_spec(Cached(), allow_instances=True)
    assert short_name(Cube(0.1)) == "Cube"
