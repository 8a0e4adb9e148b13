"""Commands that are disturbed in every way, and what has to be true afterwards."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from forked import Ended, call
from safetensors.torch import load_file

TINY = ["--data=digits", "--data.train_size=60", "--model=mlp", "--model.hidden=[8]", "--batch_size=20",
        "--num_draws=2", "--collection.start_fraction=0", "--posterior.rank=2"]  # fmt: skip
OWN = [word for word in TINY if not word.startswith("--posterior")]


@dataclass(frozen=True)
class Case:
    """A command, and what it needs before.

    Attributes:
        words: The command; the same words go on with what was stopped.
        first: What has to be done before.
    """

    words: list[str]
    first: list[list[str]]


FIT = ["fit", *TINY, "--epochs=4", "--checkpoint_steps=1", "--checkpoint_seconds=0", "--resume", "--out=run"]
COMPARE = ["compare", *OWN, "--posteriors=[MAP]", "--epochs=2", "--num_seeds=2", "--num_jobs=1", "--out=cmp"]
CASES = {
    "fit": Case(FIT, []),
    "compare": Case(COMPARE, []),
    "evaluate": Case(["evaluate", "run", "--num_draws=3"], [FIT]),
    "predict": Case(["predict", "run", "--input=new.npz", "--output=out.csv", "--overwrite", "--num_draws=3"], [FIT]),
    "report": Case(["report", "cmp"], [COMPARE]),
    "tune": Case(["tune", *TINY, "--epochs=2", "--num_trials=2", "--num_seeds=1", "--out=tuned"], []),
}  # fmt: skip


@dataclass(frozen=True)
class Whole:
    """A case done without any disturbance.

    Attributes:
        folder: As it was before.
        seconds: What it took.
        outcome: What came of it.
    """

    folder: Path
    seconds: float
    outcome: str


def whole(case: Case, below: Path) -> Whole:
    """Do what has to be done before, and then the case, in a copy."""
    folder = below / "before"
    folder.mkdir(parents=True)
    np.savez(folder / "new.npz", x=np.random.default_rng(0).integers(0, 17, (7, 8, 8)).astype(np.uint8))
    for words in case.first:
        _must(call(words, folder))
    undisturbed = below / "undisturbed"
    shutil.copytree(folder, undisturbed)
    ended = _must(call(case.words, undisturbed))
    return Whole(folder, ended.seconds, outcome(undisturbed))


def outcome(folder: Path) -> str:
    """A digest of what commands made, without the times that it took."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.name.startswith("norm-statistics-"):  # a cache, which may be lost
            continue
        if path.suffix == ".safetensors":
            found[path.name.split("-")[0]] = {
                key: tensor.numpy().tobytes().hex() for key, tensor in sorted(load_file(path).items())
            }
        elif path.name == "results.json":
            runs = json.loads(path.read_text())["runs"]
            found[name] = sorted(
                json.dumps([run["flatness"], run["seed"], run.get("split"), run["metrics"]]) for run in runs
            )
        elif path.suffix == ".csv":
            found[name] = path.read_text()
        elif path.is_file() and path.suffix in (".html", ".yaml"):
            found[name] = ""
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def complaints(folder: Path, ended: Ended) -> list[str]:
    """What is wrong with a folder after a command was disturbed: nothing, it should be."""
    found = [f"exit code {ended.code}"] if ended.code not in (0, 2, 130) else []
    found += ["traceback"] if "Traceback" in ended.err else []
    found += ["no message"] if ended.code and not ended.said else []
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.suffix == ".tmp" or path.name == ".lock":
            found.append(f"{name} is left")
        reader = READERS.get(path.suffix)
        if reader is not None and path.is_file() and not path.name.startswith("study"):
            try:
                reader(path)
            except Exception as error:
                found.append(f"{name} is not whole: {error}")
    return found


def goes_on(case: Case, done: Whole, folder: Path) -> list[str]:
    """What is wrong with the same command afterwards."""
    ended = call(case.words, folder)
    if ended.code:
        return [f"afterwards: {ended.err[-300:]}"]
    return [] if outcome(folder) == done.outcome else ["afterwards: another result"]


def _lines(path: Path) -> None:
    for line in path.read_text(encoding="utf-8").splitlines():
        json.loads(line)


READERS: dict[str, Callable[[Path], Any]] = {
    ".json": lambda path: json.loads(path.read_text(encoding="utf-8")),
    ".jsonl": _lines,
    ".safetensors": load_file,
}


def _must(ended: Ended) -> Ended:
    if ended.code:
        raise RuntimeError(f"exit code {ended.code}: {ended.err}")
    return ended
