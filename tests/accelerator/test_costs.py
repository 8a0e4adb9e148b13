"""Launches and waits of training and prediction do not exceed the committed numbers in `budgets.json`."""

import pytest

from accelerator.costs import Cost, find_excess, read_budgets
from accelerator.measure import list_measured_pairs, measure_costs
from accelerator.training import NETWORKS

CASES = [(network, name) for network in NETWORKS for name in list_measured_pairs(network)]
SAMPLE = ("MAP/Plain", "MAP/SAM", "SWAG/SAM", "SGVB/SAM", "LRT/SAM")
"""Pairs that are measured on the slower networks in every run."""


def mark_case(network, name):
    """A case, marked slow unless it is in the sample or, with the MLP, has MAP or SAM."""
    is_fast = name in SAMPLE or (network == "mlp" and (name.startswith("MAP/") or name.endswith("/SAM")))
    return pytest.param(network, name, marks=() if is_fast else pytest.mark.slow, id=f"{network}-{name}")


@pytest.mark.parametrize(("network", "name"), [mark_case(*case) for case in CASES])
def test_no_more_launches_and_waits_than_committed(network, name, record_saving):
    budgets = read_budgets()
    messages = []
    for what, cost in measure_costs(network, name).items():
        budget = budgets[what][network][name]
        messages.append(find_excess(f"{what} of {name} on {network}", cost, budget))
        record_saving(budget, cost.totals)
    assert not any(messages), "\n\n".join(filter(None, messages))


def test_every_budget_is_that_of_a_case():
    budgets = read_budgets()
    assert {(n, name) for n, names in budgets["step"].items() for name in names} == set(CASES)
    for what, networks in budgets.items():
        assert {(n, name) for n, names in networks.items() for name in names} <= set(CASES), what


@pytest.mark.parametrize("network", NETWORKS)
def test_nothing_waits_in_a_step(network):
    waiting = {name: budget for name, budget in read_budgets()["step"][network].items() if budget["waits"]}
    assert not waiting, "no training step may wait for the device"


def test_an_excess_names_file_and_line():
    cost = Cost.of({"core/weights.py:159": 3}, {"data/standardize.py:81 (copy to the device)": 1})
    assert find_excess("step", cost, {"launches": 3, "waits": 1}) is None
    message = find_excess("step", cost, {"launches": 2, "waits": 0})
    assert "3 launches, at most 2; 1 waits, at most 0" in message
    assert "data/standardize.py:81 (copy to the device)" in message
    assert "core/weights.py:159" in message
