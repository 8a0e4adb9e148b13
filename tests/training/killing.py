"""A training that is killed again and again: run as a script, prints what happened as JSON.

Every attempt is a forked process, so that torch is imported once. It is killed by SIGKILL after a random time, until
one comes to its end; which must be that of a training that nobody disturbed, bit for bit.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from functools import partial
from pathlib import Path

import lightning_fabric  # noqa: F401  # once, before any fork
import torch

from flatbayes.data import Digits
from flatbayes.flatness import SAM, Flatness, LookSAM, Plain
from flatbayes.models import ConvNet
from flatbayes.posteriors import IVON, LRT, SGLD, SGVB, SWAG, Ensemble, Laplace, MCDropout, Posterior
from flatbayes.training import Checkpoints, DistributionConfig, History, TrainingConfig, fit

MOMENTUM = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
PAIRS: dict[str, tuple[Posterior, Flatness, TrainingConfig]] = {
    "SWAG-SAM": (SWAG(rank=3), SAM(), TrainingConfig(optimizer=MOMENTUM)),
    "SWAG-LookSAM": (SWAG(rank=3), LookSAM(), TrainingConfig(optimizer=MOMENTUM)),
    "SGLD": (SGLD(max_snapshots=3, temperature=0.1), SAM(), TrainingConfig()),
    "SGVB": (SGVB(num_samples=1), SAM(), TrainingConfig()),
    "IVON": (IVON(beta2=0.99), SAM(), TrainingConfig()),
    "LRT": (LRT(), Plain(), TrainingConfig()),
    "dropout": (MCDropout(rate=0.2), SAM(), TrainingConfig(optimizer=MOMENTUM)),
    "Laplace": (Laplace(prior_precision=1.0), SAM(), TrainingConfig(optimizer=MOMENTUM)),
    "ensemble": (Ensemble(SWAG(rank=2), size=2), SAM(), TrainingConfig(optimizer=MOMENTUM)),
    "ensemble-together": (
        Ensemble(SWAG(rank=2), size=2),
        SAM(),
        TrainingConfig(optimizer=MOMENTUM, distribution=DistributionConfig(members="vectorized")),
    ),
}


def train(name: str, out: Path, checkpoints: Checkpoints | None) -> None:
    """Fit, and write everything that came of it."""
    posterior, flatness, config = PAIRS[name]
    config = config.with_options(epochs=4, batch_size=16, num_validations=4, collection={"start_fraction": 0.25})
    data = Digits(train_size=96).load(seed=3)
    curves = History()
    fitted = fit(
        partial(ConvNet, width=2), data, posterior, flatness, config, seed=7, callback=curves, checkpoints=checkpoints
    )
    found = {
        "states": [{**s.model.state_dict(), **s.statistics} for s in fitted.states],
        "records": curves.records,
        "gradients": fitted.info["cost"]["gradients"],
    }
    torch.save(found, out)


def attempt(name: str, out: Path, checkpoints: Checkpoints, seconds: float | None) -> bool:
    """Whether an attempt of at most so many seconds came to its end."""
    child = os.fork()
    if child == 0:
        try:
            train(name, out, checkpoints)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit("an attempt raised an error")
    return os.WIFEXITED(status)


def same(one: object, other: object) -> bool:
    """Whether two nested things are equal, tensors bit for bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other) and one.dtype == other.dtype
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))  # type: ignore[arg-type]
    return one == other


def main(name: str, folder: Path, kills: int, seed: int) -> None:
    """Kill a training so many times at random moments, then let it come to its end."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    train(name, folder / "undisturbed.pt", None)
    whole = time.perf_counter() - started
    dice, out = random.Random(seed), folder / "killed.pt"
    checkpoints = Checkpoints(folder / "checkpoints", every_n_steps=1, min_interval_seconds=0.0)
    killed, torn, starts = 0, 0, set()
    started = time.perf_counter()
    first = os.fork()
    if first == 0:
        train(name, out, checkpoints)
        os._exit(0)
    while not any(checkpoints.folder.glob("[0-9]*.pt")):
        time.sleep(0.001)
    os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)
    start = time.perf_counter() - started  # what an attempt takes before its first checkpoint
    while killed < kills:  # each a little further on average than the one before, but seldom to the end
        if attempt(name, out, checkpoints, dice.uniform(0.5 * start, 1.2 * start + 2 * whole / kills)):
            checkpoints.remove()
            continue
        killed += 1
        torn += any(checkpoints.folder.glob(".*.tmp"))
        starts.add(tuple(sorted(path.name for path in checkpoints.folder.glob("*.pt"))))
    attempt(name, out, checkpoints, None)
    is_same = same(torch.load(folder / "undisturbed.pt"), torch.load(out))
    json.dump({"same": is_same, "killed": killed, "torn": torn, "places": len(starts), "seconds": whole}, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
