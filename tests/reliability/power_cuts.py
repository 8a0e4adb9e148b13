"""Power cuts: copies of a block device while commands write to it, each of which is mounted and used.

A file with an ext4 file system is mounted through a loop device, without the heuristic of ext4 that writes a file to
disk when it replaces another one. Copies of that file at random moments hold what had reached the disk by then. In
each copy the artefact that had been announced loads and predicts the same numbers, and the same command ends with the
result of an undisturbed one. Needs Linux and the right to mount.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

from cases import FIT, Case, complaints, goes_on, outcome, whole
from faults import BATCH_NORM, predict_with_artefact
from forked import call

KEEP = ["--checkpoint_steps=1", "--checkpoint_seconds=0", "--resume"]
FIT_NORM = ["fit", *BATCH_NORM, "--epochs=3", *KEEP, "--out=run"]
CASES = {
    "fit, MLP": Case(FIT, []),
    "fit, BatchNorm": Case(FIT_NORM, []),
    "evaluate, BatchNorm": Case(["evaluate", "run", "--num_draws=3"], [FIT_NORM]),
}
IMAGE_BYTES = 24 << 20
OPTIONS = "loop,noauto_da_alloc,commit=300"
SECONDS_AFTER = 1.0
"""Copies are also made in this time after the end of a command, when its files may still be in memory only."""


@contextmanager
def mounted(image: Path, folder: Path) -> Iterator[Path]:
    """Mount an image."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", OPTIONS, str(image), str(folder)], check=True, capture_output=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True, capture_output=True)


def can_mount() -> bool:
    """Whether this process may mount an image."""
    if sys.platform != "linux" or os.geteuid() != 0 or not shutil.which("mkfs.ext4"):
        return False
    with tempfile.TemporaryDirectory() as below:
        try:
            with mounted(make_image(Path(below) / "image"), Path(below) / "mounted"):
                return True
        except subprocess.CalledProcessError:
            return False


def make_image(path: Path) -> Path:
    """An empty file system."""
    with path.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    subprocess.run(["mkfs.ext4", "-q", str(path)], check=True, capture_output=True)
    return path


def cut(case: Case, start: Path, below: Path, moments: list[float]) -> list[tuple[Path, bool]]:
    """Run a command on a file system of its own, and copy it at some moments (seconds since the start).

    Returns:
        The copies, and whether the command had ended before.
    """
    image, copies = make_image(below / "image"), []
    with mounted(image, below / "mounted") as folder:
        shutil.copytree(start, folder, dirs_exist_ok=True)
        os.sync()
        child = os.fork()
        if child == 0:
            ended = call(case.words, folder)
            (below / "ended").write_text(json.dumps([ended.code, time.time()]))
            os._exit(0)
        began = time.time()
        for moment in sorted(moments):
            time.sleep(max(0.0, began + moment - time.time()))
            copies.append((below / f"copy-{len(copies)}", time.time()))
            shutil.copyfile(image, copies[-1][0])
        os.waitpid(child, 0)
    code, end = json.loads((below / "ended").read_text())
    if code:
        raise RuntimeError(f"{case.words} ended with {code}")
    return [(copy, moment > end) for copy, moment in copies]


def main(names: list[str], count: int, seed: int) -> dict[str, Any]:
    """Cut the power `count` times in each command."""
    random, bad, counts = Random(seed), [], {}
    for name in names or list(CASES):
        case = CASES[name]
        with tempfile.TemporaryDirectory() as temporary:
            below = Path(temporary)
            done = whole(case, below / "whole")
            artefact = predict_with_artefact(done.folder) or predict_with_artefact(below / "whole" / "undisturbed")
            moments = [random.uniform(0, done.seconds + SECONDS_AFTER) for _ in range(count)]
            ends: Counter[str] = Counter()
            for copy, was_announced in cut(case, done.folder, below, moments):
                with mounted(copy, below / "mounted") as folder:
                    wrong = complaints_of_state(folder)
                    if (was_announced or name.startswith("evaluate")) and predict_with_artefact(folder) != artefact:
                        wrong.append("the artefact is lost or changed")
                    if was_announced and outcome(folder) != done.outcome:
                        wrong.append("a result that was announced is lost")
                    shutil.rmtree(folder / "lost+found", ignore_errors=True)
                    wrong += goes_on(case, done, folder)
                ends["after the end" if was_announced else "before the end"] += 1
                ends["wrong"] += bool(wrong)
                bad += [f"{name} at {copy.name}: {'; '.join(wrong)}"] if wrong else []
                copy.unlink()
            counts[name] = dict(ends)
    return {"counts": counts, "bad": bad}


def complaints_of_state(folder: Path) -> list[str]:
    """Files that are neither complete nor absent; temporary files may be left."""
    from forked import Ended

    return [text for text in complaints(folder, Ended(0, "", "", 0.0)) if "is left" not in text]


if __name__ == "__main__":
    json.dump(main(sys.argv[3:], int(sys.argv[1]), int(sys.argv[2])), sys.stdout, indent=1)
