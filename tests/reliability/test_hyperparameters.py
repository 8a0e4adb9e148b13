"""Whatever numbers hyperparameters are, they make an object that survives being written down, or a ValueError."""

from dataclasses import fields, is_dataclass
from typing import get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flatbayes import flatness, posteriors
from flatbayes.core.spec import instantiate, to_spec
from flatbayes.training import TrainingConfig, schedules

METHODS = [
    found
    for module in (posteriors, flatness, schedules)
    for found in vars(module).values()
    if isinstance(found, type) and is_dataclass(found)
]
OF = {int: st.integers(), float: st.floats()}


@pytest.mark.parametrize("num_examples", [25, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("method", [*METHODS, TrainingConfig], ids=lambda method: method.__name__)
def test_unusual_values_are_accepted_or_refused(method, num_examples):
    hints = get_type_hints(method, localns={"Fabric": object})
    numbers = {field.name: OF[hints[field.name]] for field in fields(method) if hints.get(field.name) in OF}

    @settings(max_examples=num_examples)
    @given(st.fixed_dictionaries({}, optional=numbers))
    def tried(values):
        try:
            made = method(**values)
        except ValueError:
            return
        assert made == method(**values) == instantiate(to_spec(made))

    tried()
