"""Benchmarks of speed and memory, as tables of ratios: ours, limit, target, and peers.

make bench                    # all of it, about half an hour; writes docs/results/benchmarks.json
make bench-quick              # a test that everything runs; the numbers are meaningless
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

MODULES = (
    "step",
    "loop",
    "memory",
    "prediction",
    "metrics",
    "streaming",
    "swag",
    "ensembles",
    "variational",
    "startup",
    "laplace_approximation",
)
BEFORE = read_json(Path(__file__).parent / "before.json")
"""Ratios of version 0.1, or of 0.2 before the change that a part measures, by part, threads and case."""
PEERS = ("pytorch_optimizer", "bayesian_torch", "torchmetrics", "laplace", "backpack")


def main() -> None:
    """Run the selected benchmarks, print tables and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=MODULES, choices=MODULES, help="benchmarks to run")
    parser.add_argument("--quick", action="store_true", help="only test that everything runs")
    parser.add_argument("--out", type=Path, help="JSON file; results of other benchmarks in it are kept")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    console = Console(width=None if Console().is_terminal else 150)
    results = read_json(options.out)["parts"] if options.out and options.out.exists() else {}
    for name in options.only:
        start = time.perf_counter()
        rows = [add_before(name, row) for row in importlib.import_module(name).rows(options.quick)]
        about = {
            "date": time.strftime("%Y-%m-%d"),
            "environment": describe_environment(),
            "seconds": time.perf_counter() - start,
        }
        results[name] = {**about, "rows": rows}
        console.print(make_table(name, rows))
        if options.out:
            write_json(options.out, {"parts": {module: results[module] for module in MODULES if module in results}})
    if not options.quick:
        missing = [peer for peer in PEERS if importlib.util.find_spec(peer) is None]
        if missing:
            console.print(f"without peers: {', '.join(missing)} (benchmarks/requirements-peers.txt)")


def add_before(name: str, row: dict) -> dict:
    """The row with its ratio at version 0.1, None if that was not measured, unless it has one."""
    before = BEFORE.get(name, {}).get(str(row["threads"]), {})
    return {"before": before.get(f"{row['group']}: {row['case']}")} | row


def make_table(name: str, rows: list[dict]) -> Table:
    """Table of the rows of a benchmark."""
    table = Table(title=name, title_justify="left")
    for column in ("case", "threads", "ours, ms", "before", "ratio", "limit", "target", "peers", "note"):
        table.add_column(column, justify="left" if column in ("case", "peers", "note") else "right")
    for r in rows:
        milliseconds = "" if r["ours"] is None else f"{1e3 * r['ours']:.3g}"
        before, limit, target = ("" if r[key] is None else f"{r[key]:.2f}" for key in ("before", "limit", "target"))
        peers = ", ".join(f"{peer} {value:.2f}" for peer, value in r["peers"].items())
        style = "" if r["target"] is None else "green" if r["ratio"] <= r["target"] else "yellow"
        ratio = f"[{style}]{r['ratio']:.2f}[/{style}]" if style else f"{r['ratio']:.2f}"
        table.add_row(
            f"{r['group']}: {r['case']}",
            str(r["threads"]),
            milliseconds,
            before,
            ratio,
            limit,
            target,
            peers,
            r["note"],
        )
    return table


if __name__ == "__main__":
    main()
