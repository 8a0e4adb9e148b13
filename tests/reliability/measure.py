"""What is tried against the command line, in numbers: writes one part of docs/results/reliability.json.

    python tests/reliability/measure.py commands 1500
    python tests/reliability/measure.py configurations 1000
    python tests/reliability/measure.py interruptions 40
    python tests/reliability/measure.py writes 1
    python tests/reliability/measure.py places 0
    python tests/reliability/measure.py hyperparameters 0
    python tests/reliability/measure.py faults 60
    python tests/reliability/measure.py "power cuts" 20
    python tests/reliability/measure.py races 50
    python tests/reliability/measure.py soak 300
    python tests/reliability/measure.py fits 2000

The number is how many commands, configurations, fits, or disturbances of each command there are, the step between
writes, or the number of cycles. What went wrong is printed, and there is to be nothing.
"""

import argparse
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def measured(part: str, number: int, first: int) -> dict[str, Any]:
    """Try, and count."""
    if part in ("commands", "configurations"):
        from commands import main as commands

        return {"counts": commands(part, first, number)}
    if part == "interruptions":
        from cases import CASES
        from interrupting import main as interrupting

        return interrupting(list(CASES), number, first)
    if part == "writes":
        from breaking import main as breaking
        from cases import CASES

        return breaking([name for name in CASES if name != "tune"], 10**6, number)
    if part == "places":
        from surroundings import PLACES
        from surroundings import main as surroundings

        return surroundings(list(PLACES))
    if part == "hyperparameters":
        from hyperparameters import main as hyperparameters

        return hyperparameters()
    if part == "faults":
        from faults import run_with_shim

        return run_with_shim(number, first)
    if part == "power cuts":
        from power_cuts import main as power_cuts

        return power_cuts([], number, first)
    if part == "races":
        from races import main as races

        return races(number)
    if part == "fits":
        from fits import main as fits

        return fits(first, number)
    from soak import soak

    return soak(number)


def main() -> None:
    """One part, merged into what is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "part",
        choices=[
            "commands",
            "configurations",
            "interruptions",
            "writes",
            "places",
            "hyperparameters",
            "faults",
            "power cuts",
            "races",
            "soak",
            "fits",
        ],
    )
    parser.add_argument("number", type=int)
    parser.add_argument("--first", type=int, default=10000)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "reliability.json")
    options = parser.parse_args()
    began = time.time()
    found = measured(options.part, options.number, options.first)
    for line in found.get("bad", []):
        sys.stderr.write(f"{line}\n")
    wrong = len(found.get("bad", [])) + sum(
        count for end, count in found.get("counts", {}).items() if end.startswith("bad")
    )
    found = {
        **found,
        "bad": wrong,
        "number": options.first,
        "seconds": round(time.time() - began),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
    }
    everything = json.loads(options.out.read_text()) if options.out.is_file() else {}
    everything[options.part] = found
    options.out.write_text(json.dumps(everything) + "\n")
    sys.stdout.write(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
