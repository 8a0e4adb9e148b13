"""A disk that is full from some write on, at every write of a command: run as a script, prints the counts as JSON.

Two ways: every file that is opened for writing, renamed or made from the n-th on fails with "no space left on
device"; and no file may grow beyond so many bytes, which also reaches those that are written by native code.
"""

import errno
import json
import os
import resource
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from cases import CASES, complaints, goes_on, whole
from forked import call

SIZES = (0, 1, 50, 100, 500, 1000, 2000, 4000, 8000, 16000, 32000, 64000)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Full:
    """The disk is full from the n-th write below a folder on, counted from 0."""

    def __init__(self, folder: Path, first: int, seen: Path) -> None:
        self.folder, self.first, self.seen, self.count = str(folder), first, seen, 0

    def __call__(self) -> None:
        """Begin; there is no end to it in this process."""
        self.log = os.open(self.seen, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        sys.addaudithook(self.hear)

    def hear(self, event: str, what: tuple[Any, ...]) -> None:
        """Count the writes, and let them fail."""
        if event not in ("open", "os.rename", "os.mkdir") or not isinstance(what[0], str | os.PathLike):
            return
        if event == "open" and not (what[2] or 0) & WRITING:
            return
        path = os.path.abspath(os.fspath(what[0]))
        if isinstance(path, str) and path.startswith(self.folder):
            os.write(self.log, b".")
            self.count += 1
            if self.count > self.first:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


def small(size: int) -> None:
    """No file may be larger."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def main(names: list[str], most: int, step: int) -> dict[str, Any]:
    """Let the disk be full from every `step`-th write of each command on, and at every size."""
    counts: dict[str, dict[str, int]] = {}
    bad: list[str] = []
    with tempfile.TemporaryDirectory() as below:
        for name in names:
            case = CASES[name]
            done = whole(case, Path(below) / name)
            seen = Path(below) / f"{name}.seen"
            folder = Path(below) / name / "counted"
            shutil.copytree(done.folder, folder)
            call(case.words, folder, before=Full(folder, 10**9, seen))
            writes = len(seen.read_bytes())
            ends: Counter[str] = Counter(writes=writes)
            faults = [("write", n) for n in range(0, min(writes, most), step)] + [("size", n) for n in SIZES[::step]]
            for kind, number in faults:
                folder = Path(below) / name / f"{kind}-{number}"
                shutil.copytree(done.folder, folder)
                how = Full(folder, number, seen) if kind == "write" else lambda size=number: small(size)
                ended = call(case.words, folder, before=how)
                ends[
                    "ended with our message" if ended.code == 2 else "ended well" if ended.code == 0 else "other"
                ] += 1
                wrong = complaints(folder, ended) + goes_on(case, done, folder)
                if kind == "write" and ended.code == 0:
                    wrong.append("nobody noticed")
                if wrong:
                    bad.append(f"{name} {kind} {number}: {'; '.join(wrong)}\n{ended.err[-1500:]}")
                ends["went on to the same end"] += not wrong
                shutil.rmtree(folder)
            counts[name] = dict(ends)
    return {"counts": counts, "bad": bad}


if __name__ == "__main__":
    json.dump(main(sys.argv[3:] or list(CASES), int(sys.argv[1]), int(sys.argv[2])), sys.stdout, indent=1)
