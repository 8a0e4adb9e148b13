"""Launches and waits of training and prediction on the pretend device, for every flatness and posterior.

Run it in a checkout with a network, and with `Posterior/Flatness` patterns if only some pairs are wanted:

    PYTHONPATH=src:tests python tests/accelerator/measure.py preresnet20 "MAP/*" "*/SAM" --places

    PYTHONPATH=src:tests python tests/accelerator/measure.py --write    # the budgets of the tests, in ten minutes
"""

import argparse
import json
import re
import warnings
from fnmatch import fnmatch

from accelerator.costs import BUDGETS, Cost, measure_fit, measure_prediction, read_budgets
from accelerator.training import NETWORKS, list_pairs

PREDICTED = {"mlp": "*/SAM", "preresnet20": "S*/SAM", "vit": ""}
"""Pattern of the pairs whose snapshots and predictions are measured, too."""


def measure_costs(network: str, name: str) -> dict[str, Cost]:
    """Costs of a pair by what is counted."""
    posterior, flat = list_pairs()[name]
    fit_cost = measure_fit(network, posterior, flat)
    costs = {"step": fit_cost.step}
    if fnmatch(name, PREDICTED[network]):
        costs |= {"snapshot": fit_cost.snapshot, **measure_prediction(network, fit_cost.fitted)}
    return costs


def list_measured_pairs(network: str) -> list[str]:
    """Pairs with a budget: all with the MLP; with slower networks each posterior with SAM, each flatness with MAP.

    Networks of a linearised posterior are computed by forward-mode differentiation, which fake tensors do not support
    for batch normalisation.
    """
    names = list_pairs()
    if network == "mlp":
        return list(names)
    return [name for name in names if (name.startswith("MAP/") or name.endswith("/SAM")) and "kron" not in name]


def write_budgets() -> None:
    """Measure every pair, those without a budget first, and write its numbers at once, a line for each."""
    names = {network: list_measured_pairs(network) for network in NETWORKS}
    budgets = read_budgets()
    pairs = [(network, name) for network in NETWORKS for name in names[network]]
    for network, name in sorted(pairs, key=lambda pair: pair[1] in budgets["step"][pair[0]]):
        for what, cost in measure_costs(network, name).items():
            rows = budgets[what][network] | {name: cost.totals}
            budgets[what][network] = {key: rows[key] for key in names[network] if key in rows}
        text = re.sub(r"\{\s+(\"launches\".*?)\s+(\"waits\".*?)\s+\}", r"{\1 \2}", json.dumps(budgets, indent=2))
        BUDGETS.write_text(text + "\n", encoding="utf-8")
        print(network, name, budgets["step"][network][name], flush=True)


def main() -> None:
    """Print a line for each pair, and the lines of flatbayes that its launches and waits come from."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", nargs="?", choices=NETWORKS)
    parser.add_argument("pairs", nargs="*", default=["*"], help="patterns of Posterior/Flatness")
    parser.add_argument("--places", action="store_true", help="print where launches and waits come from")
    parser.add_argument("--write", action="store_true", help="write the budgets of the tests")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.write:
        write_budgets()
    elif not arguments.network:
        parser.error("name a network, or give --write")
    for name in list_pairs() if arguments.network else ():
        if any(fnmatch(name, pattern) for pattern in arguments.pairs):
            for what, cost in measure_costs(arguments.network, name).items():
                totals = cost.totals
                print(
                    f"{name:35} {what:15} {totals['launches']:8.1f} launches {totals['waits']:6.1f} waits", flush=True
                )
                if arguments.places:
                    print(cost.format_places(), flush=True)


if __name__ == "__main__":
    main()
