"""A machine with torch and few other packages: training and prediction from a source tree on the import path."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ABSENT = ("jsonargparse", "docstring_parser", "beartype", "optuna", "lightning_fabric", "pytorch_lightning")
"""Packages that a machine may lack; Lightning Fabric is then a part of the package lightning."""

SCRIPT = """
import importlib.abc, importlib.metadata, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

def find_no_version(name, original=importlib.metadata.version):
    if name == "flatbayes":
        raise importlib.metadata.PackageNotFoundError(name)
    return original(name)

sys.meta_path.insert(0, Absent())
importlib.metadata.version = find_no_version

import torch
from flatbayes import MLP, SAM, SWAG, Digits, TrainingConfig, fit

data = Digits(train_size=40).load(seed=0)
config = TrainingConfig(epochs=2, batch_size=20, num_validations=1, precision={{"mode": "bf16-mixed"}})
fitted = fit(MLP, data, SWAG(rank=2), SAM(), config)
assert fitted.predict(data.test.inputs[:5], 3).mean.shape == (5, 10)
print(fitted.info["flatbayes"], "lightning.fabric" in sys.modules, *({absent!r} & sys.modules.keys()))
"""


@pytest.mark.timeout(120)
def test_it_trains_and_predicts_without_packages_that_only_other_commands_need():
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", SCRIPT.format(absent=set(ABSENT))]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    version, has_fabric, *imported = done.stdout.split()
    assert f'version = "{version}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert has_fabric == "True"
    assert not imported
