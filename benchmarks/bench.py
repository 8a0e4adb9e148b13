"""What everything costs, as a table of ratios: ours, those of peers, the limit, and the target.

make bench                    # all of it, about a quarter of an hour; writes docs/results/benchmarks.json
make bench-quick              # does it run? its numbers mean nothing
python benchmarks/bench.py --only step loop --out FILE
"""

import argparse
import importlib
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from flatbayes.core.files import read_json, write_json
from flatbayes.experiments.run_folder import describe_environment

MODULES = ("step", "loop", "memory", "prediction", "swag", "ensembles", "variational")
PEERS = ("pytorch_optimizer", "bayesian_torch")


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=MODULES, choices=MODULES, help="what to measure")
    parser.add_argument("--quick", action="store_true", help="only see that it runs")
    parser.add_argument("--out", type=Path, help="JSON to write; what it holds of other parts stays")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    console = Console(width=None if Console().is_terminal else 150)
    kept = read_json(options.out)["parts"] if options.out and options.out.exists() else {}
    for name in options.only:
        begin = time.perf_counter()
        found = importlib.import_module(name).rows(options.quick)
        about = {
            "date": time.strftime("%Y-%m-%d"),
            "environment": describe_environment(),
            "seconds": time.perf_counter() - begin,
        }
        kept[name] = {**about, "rows": found}
        console.print(table(name, found))
        if options.out:
            write_json(options.out, {"parts": {part: kept[part] for part in MODULES if part in kept}})
    if not options.quick:
        missing = [peer for peer in PEERS if importlib.util.find_spec(peer) is None]
        if missing:
            console.print(f"without peers: {', '.join(missing)} (benchmarks/requirements-peers.txt)")


def table(name: str, rows: list[dict]) -> Table:
    """One line a row."""
    shown = Table(title=name, title_justify="left")
    for column in ("case", "threads", "ours, ms", "ratio", "limit", "target", "peers", "note"):
        shown.add_column(column, justify="left" if column in ("case", "peers", "note") else "right")
    for r in rows:
        milliseconds = "" if r["ours"] is None else f"{1e3 * r['ours']:.3g}"
        limit, target = ("" if r[key] is None else f"{r[key]:.2f}" for key in ("limit", "target"))
        peers = ", ".join(f"{peer} {value:.2f}" for peer, value in r["peers"].items())
        style = "" if r["target"] is None else "green" if r["ratio"] <= r["target"] else "yellow"
        ratio = f"[{style}]{r['ratio']:.2f}[/{style}]" if style else f"{r['ratio']:.2f}"
        shown.add_row(
            f"{r['group']}: {r['case']}", str(r["threads"]), milliseconds, ratio, limit, target, peers, r["note"]
        )
    return shown


if __name__ == "__main__":
    main()
