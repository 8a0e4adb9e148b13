"""Start of processes: imports, the command line, a small training, and a comparison of two tiny runs.

Every measurement is a new process, with bytecode of all modules. The clock is the CPU time of the process and its
children; for the comparison, whose workers are the point, it is the wall-clock time.

Set FLATBAYES_BEFORE to the `src` folder of another version to measure it beside this one, in the column `before`.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from timing import Work, make_row, summarize

import flatbayes

SOURCE = Path(flatbayes.__file__).parents[1]
BY_HAND = """
import torch
inputs = torch.randn(64, 4)
targets = (inputs[:, 0] > 0).long()
network = torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))
optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
for _ in range(40):
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(network(inputs), targets).backward()
    optimizer.step()
"""
FIT = """
import torch
import flatbayes as fb
inputs = torch.randn(64, 4)
targets = (inputs[:, 0] > 0).long()
fitted = fb.fit(fb.MLP, (inputs, targets), fb.SWAG(), fb.SAM(), fb.TrainingConfig(epochs=20, batch_size=32))
fitted.predict(inputs)
fb.evaluate(fitted, inputs, targets)
"""
COMPARE = """
import tempfile
from flatbayes import MAP, MLP, Digits, SAM, compare
if __name__ == "__main__":
    config = {{"epochs": 5, "batch_size": 20}}
    compare(MLP, Digits(train_size=60), [MAP()], SAM(), config, num_seeds=1, num_draws=2, num_jobs={num_jobs})
"""
CASES = {
    "import flatbayes": (["-c", "import flatbayes"], 1.15),
    "from flatbayes import *": (["-c", "import torch\nfrom flatbayes import *"], None),
    "flatbayes --help": (["-m", "flatbayes", "--help"], 1.2),
    "flatbayes fit --help": (["-m", "flatbayes", "fit", "--help"], 1.2),
    "flatbayes fit --epoch 3": (["-m", "flatbayes", "fit", "--data", "digits", "--epoch", "3", "--out", "x"], 1.2),
    "flatbayes --completion": (["-m", "flatbayes", "--completion"], 1.2),
}
"""Arguments of Python, and the target, in imports of torch."""


def children_seconds() -> float:
    """CPU time of the processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def rows(quick: bool) -> list[dict]:
    """Rows of the table."""
    torch = ["-c", "import torch"]
    compare, alone = (["-c", COMPARE.format(num_jobs=num_jobs)] for num_jobs in (None, 1))
    cases = [
        (case, arguments, torch, target, "in imports of torch", children_seconds)
        for case, (arguments, target) in CASES.items()
    ]
    cases += [
        ("fit, predict, evaluate", ["-c", FIT], ["-c", BY_HAND], 1.5, "in trainings by hand", children_seconds),
        ("compare, 2 tiny runs", compare, alone, 1.05, "in wall-clock times with one process", time.perf_counter),
    ]
    with tempfile.TemporaryDirectory() as folder:
        return [
            measure_start(*case, rounds=1 if quick else 7, folder=folder) for case in (cases[:3] if quick else cases)
        ]


def measure_start(
    case: str,
    ours: list[str],
    baseline: list[str],
    target: float | None,
    note: str,
    clock: Callable[[], float],
    *,
    rounds: int,
    folder: str,
) -> dict:
    """Measure a case, alternating with its baseline and, if there is one, the version before."""
    before = os.environ.get("FLATBAYES_BEFORE")
    works = {"baseline": start_python(baseline, folder), "ours": start_python(ours, folder)}
    if before:
        works["before"] = start_python(ours, folder, before)
    times: dict[str, list[float]] = {name: [] for name in works}
    for k in range(rounds + 1):  # the first round compiles
        for name, work in works.items():
            start = clock()
            work()
            if k:
                times[name].append(clock() - start)
    seconds, ratios = summarize(times)
    results = make_row(
        "start",
        case,
        ratios["ours"],
        ours=seconds["ours"],
        baseline=seconds["baseline"],
        target=target,
        note=note,
    )
    return results | ({"before": ratios["before"]} if before else {})


def start_python(arguments: list[str], folder: str, source: str | None = None) -> Work:
    """The work of a new Python process, whose bytecode is kept in a folder.

    Args:
        arguments: Arguments of Python.
        folder: Folder of bytecode, and working folder.
        source: Import path of flatbayes; None for that of this process.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"PYTHONPATH": source or str(SOURCE), "PYTHONPYCACHEPREFIX": folder, "OMP_NUM_THREADS": "1"}

    def work() -> None:
        subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, check=False)

    return work
