import pytest

from flatbayes.metrics import DEFINITIONS, HIGHER_IS_BETTER, classification, regression


def test_directions_and_definitions_of_both_tasks_are_there():
    tasks = [
        (classification.CLASSIFICATION_HIGHER_IS_BETTER, classification.CLASSIFICATION_DEFINITIONS),
        (regression.REGRESSION_HIGHER_IS_BETTER, regression.REGRESSION_DEFINITIONS),
    ]
    for directions, definitions in tasks:
        assert {name: HIGHER_IS_BETTER[name] for name in directions} == directions
        assert set(definitions) <= set(DEFINITIONS)
    assert set(HIGHER_IS_BETTER) <= set(DEFINITIONS)


def test_what_both_tasks_have_is_defined_for_both():
    assert "label" in DEFINITIONS["nll"]
    assert "log density" in DEFINITIONS["nll"]


def test_they_cannot_be_edited_by_accident():
    with pytest.raises(TypeError):
        HIGHER_IS_BETTER["rmse"] = True
