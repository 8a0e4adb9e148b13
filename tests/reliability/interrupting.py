"""Ctrl-C at random moments of every command: run as a script, prints the counts as JSON.

Whenever it comes, a command ends with exit code 130 and a word, without a traceback; files are whole; and the same
command afterwards comes to the same end as one that nobody disturbed.
"""

import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from cases import CASES, complaints, goes_on, whole
from forked import call


def main(names: list[str], times: int, seed: int) -> dict[str, Any]:
    """Interrupt each command so many times."""
    counts: dict[str, dict[str, int]] = {}
    bad: list[str] = []
    with tempfile.TemporaryDirectory() as below:
        for name in names:
            case, dice = CASES[name], random.Random(f"{name} {seed}")
            done = whole(case, Path(below) / name)
            ends: Counter[str] = Counter()
            for number in range(times):
                folder = Path(below) / name / str(number)
                shutil.copytree(done.folder, folder)
                moment = dice.uniform(0, 1.05 * done.seconds)
                ended = call(case.words, folder, interrupt=moment)
                ends["interrupted" if ended.code == 130 else "had ended before" if ended.code == 0 else "other"] += 1
                wrong = complaints(folder, ended) + (["exit code 2"] if ended.code == 2 else [])
                wrong += goes_on(case, done, folder)
                if wrong:
                    where = f"{name} {number} at {moment:.3f} of {done.seconds:.3f} s"
                    bad.append(f"{where}: {'; '.join(wrong)}\n{ended.err[-1500:]}")
                ends["went on to the same end"] += not wrong
                shutil.rmtree(folder)
            counts[name] = dict(ends)
    return {"counts": counts, "bad": bad}


if __name__ == "__main__":
    json.dump(main(sys.argv[3:] or list(CASES), int(sys.argv[1]), int(sys.argv[2])), sys.stdout, indent=1)
