"""Commands in odd places: run as a script, prints what became of each as JSON.

The main path (fit, evaluate, predict) runs to its end where it can, wherever it is; where it cannot, it says so.
"""

import json
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from cases import TINY
from forked import Ended, run

from flatbayes.cli import main as flatbayes

ODD_NAMES = ["with space", "new\nline", "日本 ünï 🙂", "-dash", "quote'\"", "a" * 200, "per%cent{brace}[bracket]",
             "tab\t"]  # fmt: skip


def path(out: str = "run") -> int:
    """The main path: fit, evaluate, predict."""
    np.savez("new.npz", x=np.zeros((3, 8, 8), np.uint8))
    commands = [
        ["fit", *TINY, "--epochs=2", f"--out={out}"],
        ["evaluate", *(["--"] if out.startswith("-") else []), out],
        ["predict", "--input=new.npz", f"--output={out}/out.csv", *(["--"] if out.startswith("-") else []), out],
    ]
    return next((code for code in map(flatbayes, commands) if code), 0)


def fit(out: str) -> int:
    """The first of it."""
    return flatbayes(["fit", *TINY, "--epochs=2", f"--out={out}"])


def tune() -> int:
    """What prints the most unusual letters."""
    return flatbayes(["tune", *TINY, "--epochs=2", "--num_trials=2", "--num_seeds=1", "--out=tuned"])


def no_home() -> None:
    """Neither HOME nor any other folder of the user's."""
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "USER", "LOGNAME"):
        os.environ.pop(name, None)
    os.environ["HOME"] = "/nonexistent"


def no_network() -> None:
    """Nothing can be reached, nor looked up."""

    def refuse(event: str, what: tuple[Any, ...]) -> None:
        if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
            raise OSError(f"no network: {event} {what}")

    sys.addaudithook(refuse)


def ascii_only() -> None:
    """What is printed must be ASCII."""
    sys.stdout = open(1, "w", encoding="ascii", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="ascii", closefd=False, errors="backslashreplace")  # noqa: SIM115
    os.environ.update(LANG="C", LC_ALL="C")


def gone() -> None:
    """The working directory has been removed."""
    here = Path.cwd()
    os.chdir(tempfile.mkdtemp(dir=here))
    Path.cwd().rmdir()


def closed(number: int) -> None:
    """One of the standard streams is closed, as by `>&-`."""
    os.close(number)
    setattr(sys, ("stdin", "stdout", "stderr")[number], None)


def broken_pipe() -> None:
    """Whoever was reading has gone."""
    reading, writing = os.pipe()
    os.close(reading)
    os.dup2(writing, 1)


def folder_vanishes() -> int:
    """The folder is removed after the first epoch."""
    from flatbayes.training.callbacks.loggers import JSONLinesLogger

    write = JSONLinesLogger.on_epoch_end

    def epoch(self: JSONLinesLogger, record: Any) -> None:
        shutil.rmtree("run", ignore_errors=True)
        write(self, record)

    JSONLinesLogger.on_epoch_end = epoch  # type: ignore[method-assign]
    return fit("run")


Place = tuple[Callable[[], Any], Callable[[], int], int]
PLACES: dict[str, Place] = {
    **{f"folder called {name!r:.30}": (lambda: None, lambda name=name: path(name), 0) for name in ODD_NAMES},
    "folder whose name is not UTF-8": (lambda: None, lambda: fit("\udcff"), 2),
    "no HOME": (no_home, path, 0),
    "no network": (no_network, path, 0),
    "only ASCII": (ascii_only, path, 0),
    "only ASCII, tune": (ascii_only, tune, 0),
    "20 columns": (lambda: os.environ.update(COLUMNS="20"), path, 0),
    "1 column": (lambda: os.environ.update(COLUMNS="1"), path, 0),
    "no terminal": (lambda: os.environ.update(TERM="dumb", NO_COLOR="1"), path, 0),
    "standard input closed": (lambda: closed(0), path, 0),
    "standard output closed": (lambda: closed(1), path, 0),
    "standard error closed": (lambda: closed(2), path, 0),
    "reader of standard output gone": (broken_pipe, path, 1),
    "working directory removed": (gone, lambda: fit("run"), 2),
    "out below a file": (lambda: Path("file").write_text(""), lambda: fit("file/run"), 2),
    "out a file": (lambda: Path("file").write_text(""), lambda: fit("file"), 2),
    "out in /proc": (lambda: None, lambda: fit("/proc/run"), 2),
    "out in /sys": (lambda: None, lambda: fit("/sys/run"), 2),
    "out too long a name": (lambda: None, lambda: fit("a" * 300), 2),
    "out with a NUL": (lambda: None, lambda: fit("a\0b"), 2),
    "out a broken link": (lambda: Path("link").symlink_to("nowhere/at/all"), lambda: fit("link"), 2),
    "out a loop of links": (lambda: Path("loop").symlink_to("loop"), lambda: fit("loop"), 2),
    "folder vanishes": (lambda: None, folder_vanishes, 2),
    "no temporary folder": (lambda: os.environ.update(TMPDIR="/nonexistent"), path, 0),
}  # fmt: skip


def main(names: list[str]) -> dict[str, Any]:
    """Try these places."""
    found: dict[str, int] = {}
    bad: list[str] = []
    with tempfile.TemporaryDirectory() as below:
        for number, name in enumerate(names):
            before, action, expected = PLACES[name]
            folder = Path(below) / str(number)
            folder.mkdir()
            ended: Ended = run(action, folder, before=before)
            found[name] = ended.code
            silent = "closed" in name or "gone" in name
            traced = "Traceback" in ended.err or "Exception ignored" in ended.err
            if ended.code != expected or traced or (ended.code == 2 and not ended.said and not silent):
                bad.append(f"{name}: exit code {ended.code}, expected {expected}\n{ended.err[-1500:]}")
    return {"places": len(found), "as expected": len(found) - len(bad), "codes": found, "bad": bad}


if __name__ == "__main__":
    socket.setdefaulttimeout(5)
    json.dump(main(sys.argv[1:] or list(PLACES)), sys.stdout, indent=1)
