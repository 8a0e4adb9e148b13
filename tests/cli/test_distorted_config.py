"""A `config.json` with wrong content: every verb that reads a run works, or says in one message what is wrong."""

import copy
import json
import shutil

import numpy as np
import pytest

from flatbayes.cli import main

FIT = ["fit", "--data=digits", "--data.train_size=60", "--model=mlp", "--model.hidden=[4]", "--epochs=1",
       "--posterior=map", "--num_draws=2"]  # fmt: skip
FEW = ["--num_draws=1", "--max_examples=8"]
VERBS = {
    "evaluate": ["--num_draws=1"],
    "calibrate": ["--num_draws=1"],
    "shift": [*FEW, "--corruptions=none", "--overwrite"],
    "diagnose": [*FEW, "--overwrite"],
    "certify": ["--num_draws=9", "--num_trial_draws=2", "--num_test_draws=2", "--overwrite"],
    "predict": ["--input=new.npz", "--output=out.csv", "--overwrite", "--num_draws=1"],
    "fit": ["--resume"],
}
NESTED: list = []
for _ in range(200):
    NESTED = [NESTED]
VALUES = {
    "null": None,
    "a number": 3,
    "a huge number": 10**400,
    "a fraction": -1e308,
    "a text": "x",
    "controls": "\x1b[2J\x00[red]</b>&<script>",
    "an empty object": {},
    "nested lists": NESTED,
    "an object without arguments": {"class_path": "flatbayes.data.Digits"},
    "a class of another kind": {"class_path": "flatbayes.flatness.SAM", "init_args": {"rho": []}},
    "arguments of another type": {"class_path": 3, "init_args": "x"},
}
KEYS = ["data", "data.class_path", "data.init_args", "data.init_args.train_size", "model", "model.init_args",
        "model.init_args.hidden", "posterior", "posterior.class_path", "flatness", "flatness.init_args",
        "flatness.init_args.rho", "config", "config.epochs", "config.batch_size", "config.optimizer",
        "config.optimizer.init_args", "config.schedule", "config.collection", "config.distribution", "seed",
        "data_fingerprint", "data_fingerprint.train"]  # fmt: skip
WHOLE = {"a list": [], "a number": 3, "null": None, "a text": "x", "nothing": {}, "lists": NESTED}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    assert main([*FIT, "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def here(run_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run_folder, "run")
    np.savez("new.npz", x=np.zeros((2, 1, 8, 8), "float32"))
    return tmp_path


def replace(config, key, value):
    distorted = copy.deepcopy(config)
    *path, last = key.split(".")
    inner = distorted
    for name in path:
        if not isinstance(inner.get(name), dict):
            inner[name] = {}
        inner = inner[name]
    inner[last] = value
    return distorted


def run_verb(verb, capfd):
    words = [*FIT, *VERBS[verb], "--out=run"] if verb == "fit" else [verb, "run", *VERBS[verb]]
    code = main(words)
    printed = capfd.readouterr()
    return code, printed


def complain(verb, code, printed):
    """What is wrong with the end of a command; empty if nothing is."""
    lines = [line for line in printed.err.splitlines() if line.startswith("flatbayes: ")]
    problems = [] if code in (0, 2) else [f"exit code {code}"]
    problems += ["Traceback"] if "Traceback" in printed.err else []
    problems += ["no message"] if code == 2 and len(lines) != 1 else []
    problems += ["a long message"] if code == 2 and len(printed.err) > 1500 else []
    problems += ["control characters"] if "\x1b[2J" in printed.out + printed.err else []
    return [f"{verb}: {problem}: {printed.err[-300:]}" for problem in problems]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("step", [37, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("verb", VERBS)
def test_distorted_configurations_are_used_or_refused(here, verb, step, capfd):
    path = here / "run" / "config.json"
    config = json.loads(path.read_text())
    problems = []
    distortions = [(f"{key} is {kind}", replace(config, key, VALUES[kind])) for key in KEYS for kind in VALUES]
    distortions += [(f"the file is {kind}", value) for kind, value in WHOLE.items()]
    for name, distorted in distortions[list(VERBS).index(verb) :: step]:
        path.write_text(json.dumps(distorted))
        try:
            problems += [f"{name}, {text}" for text in complain(verb, *run_verb(verb, capfd))]
        except BaseException as error:
            capfd.readouterr()
            problems.append(f"{name}, {verb}: {type(error).__name__} {str(error)[:200]}")
    assert not problems, "\n".join(problems)
