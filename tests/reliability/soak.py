"""Hours of use in minutes: cycles of fit, save, load and predict in one process, which must not grow.

After a warm-up, memory (resident, from the operating system), open files, threads, live tensors and files in the
folder for temporary ones are counted every few cycles; a leak shows as a slope.
"""

import gc
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from flatbayes.data import Digits
from flatbayes.flatness import SAM, LookSAM, Plain
from flatbayes.models import MLP, ConvNet
from flatbayes.posteriors import SGVB, SWAG, Ensemble, Laplace, MCDropout
from flatbayes.prediction import FittedPosterior, evaluate
from flatbayes.training import Checkpoints, CollectionConfig, TrainingConfig, fit

METHODS = [(SWAG(rank=2), SAM()), (Ensemble(SWAG(rank=2), size=2), LookSAM()), (SGVB(), Plain()),
           (MCDropout(), SAM()), (Laplace(temperature=0.03), Plain())]  # fmt: skip
NETWORKS = [partial(MLP, hidden=(8,), dropout=0.1), partial(ConvNet, width=2, dropout=0.1)]


def counts(temporary: Path) -> dict[str, int]:
    """What the process holds now."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "memory_kib": pages * os.sysconf("SC_PAGESIZE") // 1024,
        "open_files": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "tensors": sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects()),
        "temporary_files": len(list(temporary.iterdir())),
    }


def cycle(number: int, folder: Path) -> None:
    """Fit, save, load, predict, evaluate, and fit again from a checkpoint; then forget it all."""
    posterior, flatness = METHODS[number % len(METHODS)]
    data = Digits(train_size=60, test_size=0.9).load(seed=number % 7)
    checkpoints = Checkpoints(folder / "checkpoints", min_interval_seconds=0.0)
    config = TrainingConfig(epochs=2, batch_size=20, collection=CollectionConfig(start_fraction=0))
    model = NETWORKS[number % len(NETWORKS)]
    fit(model, data, posterior, flatness, config, seed=number, show_progress=False, checkpoints=checkpoints)
    fitted = fit(model, data, posterior, flatness, config, seed=number, show_progress=False, checkpoints=checkpoints)
    fitted.save(folder / "artefact")
    loaded = FittedPosterior.load(folder / "artefact")
    loaded.predict(data.test.input_tensor[:50], 3)
    evaluate(loaded, data.val.inputs, data.val.targets, 3)
    checkpoints.remove()


def course(cycles: int, every: int, folder: Path) -> Iterator[tuple[int, dict[str, int]]]:
    """What the process holds after every so many cycles."""
    for number in range(cycles):
        cycle(number, folder / "work")
        shutil.rmtree(folder / "work")
        if (number + 1) % every == 0:
            yield number + 1, counts(folder)


def soak(cycles: int, warm: int = 20) -> dict[str, Any]:
    """So many cycles after a warm-up: the first counts, the last, and what memory grew by in a cycle."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as below:
        folder = Path(below)
        before = tempfile.tempdir
        tempfile.tempdir = str(folder)
        try:
            for _ in course(warm, warm + 1, folder):
                pass
            first = counts(folder)
            seen = list(course(cycles, max(1, cycles // 20), folder))
        finally:
            tempfile.tempdir = before
    last = seen[-1][1]
    half = seen[len(seen) // 2]
    return {
        "cycles": cycles,
        "first": first,
        "last": last,
        "kib_per_cycle_in_the_second_half": round(
            (last["memory_kib"] - half[1]["memory_kib"]) / max(1, cycles - half[0]), 2
        ),
        "memory_kib": [one["memory_kib"] for _, one in seen],
        "seconds_of_soak": round(time.monotonic() - began),
    }


if __name__ == "__main__":
    import json
    import sys

    torch.set_num_threads(1)
    json.dump(soak(int(sys.argv[1])), sys.stdout)
