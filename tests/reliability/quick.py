"""A little of everything in one process, for the fast tests: run as a script, prints what came of it as JSON."""

import json
import sys

from breaking import main as breaking
from commands import main as commands
from hyperparameters import main as hyperparameters
from interrupting import main as interrupting
from surroundings import PLACES
from surroundings import main as surroundings

FEW = ["folder called '日本 ünï 🙂'", "no HOME", "no network", "only ASCII", "reader of standard output gone",
       "out in /proc", "folder vanishes"]  # fmt: skip

if __name__ == "__main__":
    found = {
        "commands": commands("commands", 0, 16),
        "configurations": commands("configurations", 0, 12),
        "hyperparameters": hyperparameters(),
        "interruptions": interrupting(["fit"], 3, 0),
        "writes": breaking(["fit"], 10**6, 30),
        "places": surroundings([name for name in PLACES if name in FEW]),
    }
    json.dump(found, sys.stdout)
