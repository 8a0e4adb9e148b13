"""Published results and their references."""

import math

import pytest

from reproduction import REFERENCES, list_tables, load_published_results
from reproduction.published import read_rows


def figure(table, cell, metric, source):
    (found,) = [f for f in load_published_results(table)[cell] if (f.metric, f.reference) == (metric, source)]
    return found


def test_values_of_some_results():
    logs = "flat_bnn-logs"
    best = [figure("cifar10", "wrn28x10-swag-diag-flat", metric, logs).mean for metric in ("accuracy", "nll", "ece")]
    assert best == [0.9703, 0.0894, 0.0044]
    assert figure("cifar100", "preresnet164-swag-plain", "nll", logs).mean == 0.7272
    readme = figure("cifar100", "preresnet164-swag-plain", "nll", "swa_gaussian")
    assert (readme.mean, readme.std, readme.num_seeds) == (0.71, 0.02, 3)
    assert figure("cifar10", "wrn28x10-map-flat", "accuracy", "ot_mdr").std == 0.00007


def test_each_result_has_a_reference_and_a_provenance():
    for table in list_tables():
        for cell, figures in load_published_results(table).items():
            places = [(f.metric, f.reference) for f in figures]
            assert len(set(places)) == len(places), cell
            for one in figures:
                assert one.reference in REFERENCES
                assert one.provenance[0] in "VM"
                assert ("unverified" in one.note) == (one.provenance == "M")
                assert math.isfinite(one.mean)
                assert 0 < one.mean < (3 if one.metric == "nll" else 1)


def test_cells_without_a_result_are_marked():
    none = [row for row in read_rows() if not row["metric"]]
    assert {row["note"] for row in none} == {"no figure could be read"}
    assert {row["method"] for row in none} >= {"sgvb", "sgvb-lrt", "sgld"}
    assert load_published_results("cifar10")["resnet18-sgvb-flat"] == []


def test_inferred_variants_are_flagged():
    found = figure("cifar10", "wrn28x10-ensemble-plain", "nll", "flat_bnn-ensembles")
    assert found.mean == 0.1032
    assert "inferred" in found.provenance


def test_another_table_has_no_results():
    assert load_published_results("imagenet") == {}
    with pytest.raises(KeyError):
        load_published_results("cifar10")["vgg16-map-flat"]
