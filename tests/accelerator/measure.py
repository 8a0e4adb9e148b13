"""Launches and waits of a training step on the pretend device, for every flatness and posterior.

Run it in a checkout with a network, and with `Posterior/Flatness` patterns if only some pairs are wanted:

    PYTHONPATH=src:tests python tests/accelerator/measure.py preresnet20 "MAP/*" --places
"""

import argparse
import sys
import warnings
from fnmatch import fnmatch

from accelerator.training import NETWORKS, StepCost, list_pairs, measure_step


def main() -> None:
    """Print a line for each pair, and the lines of flatbayes that its launches and waits come from."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("pairs", nargs="*", default=["*"], help="patterns of Posterior/Flatness")
    parser.add_argument("--places", action="store_true", help="print where launches and waits come from")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    for name, (posterior, flat) in list_pairs().items():
        if any(fnmatch(name, pattern) for pattern in arguments.pairs):
            print_cost(name, measure_step(arguments.network, posterior, flat), with_places=arguments.places)


def print_cost(name: str, cost: StepCost, *, with_places: bool) -> None:
    """Print the counts of a step."""
    print(f"{name:45} {cost.num_launches:8.1f} launches {cost.num_waits:6.1f} waits", flush=True)
    for kind in ("launches", "waits") if with_places else ("waits",):
        for place, count in sorted(getattr(cost, kind).items(), key=lambda item: -item[1]):
            print(f"    {count:8.1f} {kind} {place}")


if __name__ == "__main__":
    sys.exit(main())
