from functools import partial

import pytest

from flatbayes.estimators.base import get_nested_params, replace_nested_params
from flatbayes.flatness import SAM, Periodic
from flatbayes.posteriors import SWAG, Ensemble
from flatbayes.training import TrainingConfig


def test_fields_of_fields_have_nested_names():
    params = get_nested_params("flatness", Periodic(SAM(rho=0.3), period=5))
    assert params["flatness__period"] == 5
    assert params["flatness__flatness"] == SAM(rho=0.3)
    assert params["flatness__flatness__rho"] == 0.3


@pytest.mark.parametrize("value", [None, 3, SAM, partial(SAM, rho=1.0), (1, 2)])
def test_other_values_have_no_parameters(value):
    assert get_nested_params("a", value) == {}


def test_a_field_is_replaced_before_its_fields():
    before = Ensemble(size=2)
    changed = replace_nested_params("p", before, {"member__rank": 3, "member": SWAG(), "size": 4})
    assert changed == Ensemble(SWAG(rank=3), size=4)
    assert before == Ensemble(size=2)


def test_invalid_values_and_names_raise():
    with pytest.raises(ValueError, match="rho"):
        replace_nested_params("f", SAM(), {"rho": -1.0})
    with pytest.raises(ValueError, match=r"p is None, which has no parameter 'x'"):
        replace_nested_params("p", None, {"x": 1})
    with pytest.raises(ValueError, match=r"p__member is MAP.*'rank'"):
        replace_nested_params("p", Ensemble(size=2), {"member__rank": 1})


def test_option_groups_have_nested_names():
    config = TrainingConfig(epochs=3)
    assert get_nested_params("config", config)["config__optimization__clip_norm"] is None
    changed = replace_nested_params("config", config, {"optimization__clip_norm": 2.0, "epochs": 4})
    assert (changed.epochs, changed.optimization.clip_norm) == (4, 2.0)
