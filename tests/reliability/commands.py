"""Random commands and configurations through the command line: run as a script, prints the counts as JSON.

Each ends in exit code 0 with finite metrics, or in exit code 2 with our message and nothing that claims to be a
result; or it asked for very much and was still at work when its time was up.
"""

import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from forked import OUT_OF_TIME, Ended, call
from generate import asks_much, command, configuration

from flatbayes.cli.fit import make_parser as fit_options

BASE = ["--data=digits", "--data.train_size=40", "--data.test_size=0.9", "--model=mlp", "--model.hidden=[8]",
        "--model.dropout=0.1", "--epochs=2", "--batch_size=20", "--collection.start_fraction=0", "--num_draws=2",
        "--posterior.rank=2"]  # fmt: skip
SECONDS = 20.0
RESULTS = ("results.json", "report.html")


def judged(ended: Ended, folder: Path, may_be_long: bool) -> str:
    """What kind of end it was; those that begin with `bad` must not be."""
    if (folder / "pwned").exists() or not (folder / "victim").exists():
        return "bad: a stranger's code ran"
    unfinished = list(folder.rglob("*.tmp"))
    if ended.code == OUT_OF_TIME:
        return "still at work" if may_be_long else "bad: out of time"
    if unfinished:
        return "bad: unfinished files are left"
    if "Traceback" in ended.err:
        return "bad: traceback"
    if ended.code == 0:
        found = [json.loads(path.read_text()) for path in folder.rglob("results.json")]
        metrics = [item for one in found for run in one["runs"] for item in run["metrics"].items()]
        numbers = [
            value for name, value in metrics if name != "auroc_correct"
        ]  # has no value if all are right, or none
        if not numbers:
            return "bad: no results"
        return "ran" if None not in numbers else "bad: metrics that are not numbers"
    if ended.code != 2:
        return f"bad: exit code {ended.code}"
    if not ended.said or len(ended.said) < 20:
        return "bad: no message"
    if any(path.name in RESULTS for path in folder.rglob("*")) and "seed 0: " not in ended.err:
        return "bad: a result is left"
    if (folder / "out" / "posterior.json").exists():  # it is fitted, and could not be measured as it was asked for
        again = call(["evaluate", "out", "--num_draws=1"], folder, seconds=SECONDS)
        return "fitted, not measured" if again.code == 0 else "bad: a posterior of no use is left"
    return "refused in words"


def prepared(folder: Path) -> Path:
    """A folder with small data."""
    folder.mkdir()
    dice = np.random.default_rng(0)
    x, labels = dice.normal(size=(60, 4)).astype(np.float32), np.arange(60) % 3
    np.savez(folder / "classes.npz", x=x, y=labels)
    for name, target in {"classes": [f"c{k}" for k in labels], "numbers": x.sum(axis=1)}.items():
        rows = [",".join(map(str, [*row, t])) for row, t in zip(x, target, strict=True)]
        (folder / f"{name}.csv").write_text("\n".join(["a,b,c,d,target", *rows]) + "\n")
    (folder / "victim").mkdir()
    return folder


def trial(number: int, kind: str, below: Path) -> tuple[str, list[str], Ended]:
    """The command, or configuration, of a number: what became of it."""
    dice = random.Random(f"{kind} {number}")
    folder = prepared(below / f"{kind}-{number}")
    if kind == "commands":
        words = [*command(dice), "--out=out"]
        ended = call(words, folder, seconds=SECONDS)
        return judged(ended, folder, asks_much(words)), words, ended
    text = configuration(dice, whole_config())
    (folder / "self.yaml").write_bytes(text)
    words = ["fit", "--config=self.yaml", *(BASE[:4] if dice.random() < 0.5 else []), "--out=out"]
    ended = call(words, folder, seconds=SECONDS)
    asked = [f"epochs={line}" for line in text.decode("utf-8", "replace").splitlines()]
    return judged(ended, folder, asks_much(asked)), words, ended


def whole_config() -> dict[str, Any]:
    """Everything that `fit` takes, as a configuration file has it."""
    named = {"--data=digits": "--data=flatbayes.data.Digits", "--model=mlp": "--model=flatbayes.models.MLP"}
    words = [named.get(word, word) for word in BASE]
    found: dict[str, Any] = fit_options().parse_args([*words, "--out=out"]).as_dict()
    found.pop("config", None)
    return json.loads(json.dumps(found, default=str))  # type: ignore[no-any-return]


def main(kind: str, first: int, count: int, show: str = "bad") -> dict[str, int]:
    """Try so many, and count how they ended."""
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as below:
        for number in range(first, first + count):
            outcome, words, ended = trial(number, kind, Path(below))
            counts[outcome] += 1
            if outcome.startswith(show):
                tail = ended.err.strip().splitlines()[-12:]
                sys.stderr.write(
                    f"{number} {outcome} ({ended.seconds:.1f} s): {' '.join(words)}\n   " + "\n   ".join(tail) + "\n"
                )
            shutil.rmtree(Path(below) / f"{kind}-{number}", ignore_errors=True)
    return dict(sorted(counts.items()))


if __name__ == "__main__":
    kind, first, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    json.dump(main(kind, first, count, *sys.argv[4:]), sys.stdout)
