"""Table of the noise that adapters tolerate, for docs/adapters.md."""

import math
from collections.abc import Callable
from statistics import fmean
from typing import Any

VARIANTS = ("Plain", "SAM")


def render_table(rows: list[dict[str, Any]]) -> str:
    """Table of the accepted noise and the test NLL by seed, plain and with SAM, and what the comparison says."""
    by_seed = {
        seed: {row["flatness"]: row for row in rows if row["seed"] == seed}
        for seed in sorted({row["seed"] for row in rows})
    }
    pairs = [pair for pair in by_seed.values() if len(pair) == len(VARIANTS)]
    columns: dict[str, Callable[[dict[str, Any]], float]] = {
        "σ by NLL": lambda row: row["std"],
        "σ by classes": lambda row: row["std_changed_classes"],
        "test NLL of MAP": lambda row: row["test"]["MAP"]["nll"],
        "test NLL of TFB": lambda row: row["test"]["TFB"]["nll"],
    }
    lines = [f"| Seed | {', plain → SAM | '.join(columns)}, plain → SAM |", "|---" * (1 + len(columns)) + "|"]
    for pair in pairs:
        cells = (" → ".join(f"{get(pair[name]):.3g}" for name in VARIANTS) for get in columns.values())
        lines.append(f"| {pair['Plain']['seed']} | {' | '.join(cells)} |")
    counts = {name: sum(get(pair["SAM"]) > get(pair["Plain"]) for pair in pairs) for name, get in columns.items()}
    get_std = columns["σ by classes"]
    ratio = math.exp(fmean(math.log(get_std(pair["SAM"]) / get_std(pair["Plain"])) for pair in pairs))
    return "\n".join(
        [
            *lines,
            "",
            f"After SAM the accepted σ is larger in {counts['σ by NLL']} of {len(pairs)} seeds by the NLL, and in "
            f"{counts['σ by classes']} by changed classes, where it is {ratio:.2g} times as large (geometric mean). "
            f"The test NLL is lower with SAM in {len(pairs) - counts['test NLL of MAP']} seeds for MAP, and in "
            f"{len(pairs) - counts['test NLL of TFB']} for TFB.",
        ]
    )
