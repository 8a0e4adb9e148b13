import pytest

from flatbayes.metrics import (
    CLASSIFICATION_METRICS,
    DEFINITIONS,
    HIGHER_IS_BETTER,
    METRIC_FAMILIES,
    REGRESSION_METRICS,
    MetricFamily,
)


def test_every_metric_has_a_definition_and_most_a_direction():
    groups = [CLASSIFICATION_METRICS, REGRESSION_METRICS, *METRIC_FAMILIES.values()]
    for metrics in groups:
        for name, definition in metrics.items():
            assert DEFINITIONS[name] == definition.text or name == "nll"
            assert HIGHER_IS_BETTER.get(name) == definition.higher_is_better
    without_direction = set(DEFINITIONS) - set(HIGHER_IS_BETTER)
    assert without_direction == {"coverage_95", "width_95"}


def test_nll_is_defined_for_both_tasks():
    assert "label" in DEFINITIONS["nll"]
    assert "log density" in DEFINITIONS["nll"]


def test_families_are_complete_and_disjoint():
    assert set(METRIC_FAMILIES) == set(MetricFamily)
    names = [name for metrics in METRIC_FAMILIES.values() for name in metrics]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("table", [HIGHER_IS_BETTER, DEFINITIONS, METRIC_FAMILIES, METRIC_FAMILIES["Shift"]])
def test_tables_are_read_only(table):
    with pytest.raises(TypeError):
        table["rmse"] = True


def test_every_family_has_an_introduction_in_reports():
    from flatbayes.reporting.text import FAMILY_TEXTS

    assert set(FAMILY_TEXTS) == set(MetricFamily)
